"""The domain builder: from a kernel, a ramdisk and a size to memory that a VCPU can start in, as libxl makes it."""
