"""Kernels, initial ramdisks and root disks: inspect, unpack, build."""
