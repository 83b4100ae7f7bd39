"""A domain's end of a bridge: a tap device that lives as long as the process which holds it.

Numbers are from linux/if_tun.h and linux/sockios.h; ``struct ifreq`` is a name of 16 bytes and a union of 24.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
import struct
import subprocess
from pathlib import Path

from pyxen.errors import Conflict, EngineError, NotFound, Unsupported

_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCBRADDIF = 0x8913, 0x8914, 0x89A2
_IFF_UP = 0x1
_IFREQ = struct.Struct("16sH22x")
_IFREQ_INT = struct.Struct("16si20x")
_TUN = "/dev/net/tun"
_NET = Path("/sys/class/net")


def check_bridging(bridge: str) -> None:
    """Raises Unsupported where taps can't be made, NotFound without that bridge."""
    if os.geteuid() != 0:
        raise Unsupported(
            f"a vif on bridge {bridge} needs root: xend makes a network device for it",
            hint="Without bridge=… a vif is on a user-mode network, which needs no rights.",
        )
    if not Path(_TUN).exists():
        raise Unsupported(f"a vif on bridge {bridge} needs {_TUN}, which is missing", hint="Try: modprobe tun")
    if not (_NET / bridge).exists():
        raise NotFound(f"there is no bridge {bridge}", hint=f"Make it: ip link add {bridge} type bridge")
    if not (_NET / bridge / "bridge").exists():
        raise Unsupported(f"{bridge} is a network device, but not a bridge")


def open_tap(name: str, bridge: str) -> int:
    """Make the tap ``name``, put it on ``bridge``, bring it up; returns its descriptor. It goes when that is closed.

    Raises Conflict if the name is taken, else EngineError.
    """
    check_bridging(bridge)
    if (_NET / name).exists():
        raise Conflict(f"there is a network device {name} already", hint="Choose another vifname.")
    try:
        fd = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR))
            _join(name, bridge)
        except BaseException:
            os.close(fd)
            raise
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise Conflict(f"the network device {name} is in use") from error
        raise EngineError(f"cannot make the network device {name} on {bridge}: {error.strerror}") from error
    return fd


def _join(name: str, bridge: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCBRADDIF, _IFREQ_INT.pack(bridge.encode(), socket.if_nametoindex(name)))
        _, flags = _IFREQ.unpack(fcntl.ioctl(control, _SIOCGIFFLAGS, _IFREQ.pack(name.encode(), 0)))
        fcntl.ioctl(control, _SIOCSIFFLAGS, _IFREQ.pack(name.encode(), flags | _IFF_UP))


def limit_rate(name: str, rate: int) -> str | None:
    """Let the guest receive at most ``rate`` bytes a second; returns why not where that can't be done."""
    tc = shutil.which("tc", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if tc is None:
        return "tc is not installed (apt-get install iproute2)"
    # The bucket holds what arrives in a tenth of a second, and at least a few large frames.
    bucket = max(rate // 10, 16 * 1024)
    limits = ["rate", f"{rate}bps", "burst", f"{bucket}b", "latency", "50ms"]
    done = subprocess.run(
        [tc, "qdisc", "replace", "dev", name, "root", "tbf", *limits],
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    return None if done.returncode == 0 else done.stderr.strip() or f"tc exited with {done.returncode}"
