"""Devices of the host that a guest gets: what there is (sysfs), and what must be so before it can be given away."""
