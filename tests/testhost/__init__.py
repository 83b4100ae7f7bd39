"""A machine with a KVM that works, wherever QEMU runs: TCG emulates a CPU with SVM, Debian's kernel drives it.

``run(["python", "-m", "pytest", …])`` boots it, runs the command in it and gives back what it printed and how it
ended. Inside are this Python with the packages that the tests need, ``src`` and ``tests`` as they are now, busybox,
and the kernel modules for KVM, in a RAM disk. It takes some 5 to 6 seconds to come up, and computes about 15 times
slower than this host.
"""

from tests.testhost.machine import Done, boot_shell, play, run

__all__ = ["Done", "boot_shell", "play", "run"]
