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
_LARGEST_FRAME = 64 * 1024
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


def open_tap(name: str, bridge: str, *, joined: bool = True) -> int:
    """Make the tap ``name``, put it on ``bridge``, bring it up; returns its descriptor. It goes when that is closed.

    Unless ``joined`` it is not on the bridge yet: :func:`join` puts it there.

    Raises Conflict if the name is taken, else EngineError.
    """
    check_bridging(bridge)
    if (_NET / name).exists():
        raise Conflict(f"there is a network device {name} already", hint="Choose another vifname.")
    try:
        fd = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR))
            _bring_up(name)
            if joined:
                _add(name, bridge)
        except BaseException:
            os.close(fd)
            raise
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise Conflict(f"the network device {name} is in use") from error
        raise EngineError(f"cannot make the network device {name} on {bridge}: {error.strerror}") from error
    return fd


def join(name: str, bridge: str) -> None:
    """Put a tap on ``bridge``, if it isn't on it. Raises EngineError."""
    if (_NET / name / "master").exists():
        return
    try:
        _add(name, bridge)
    except OSError as error:
        raise EngineError(f"cannot put the network device {name} on {bridge}: {error.strerror}") from error


def _add(name: str, bridge: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCBRADDIF, _IFREQ_INT.pack(bridge.encode(), socket.if_nametoindex(name)))


def _bring_up(name: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        _, flags = _IFREQ.unpack(fcntl.ioctl(control, _SIOCGIFFLAGS, _IFREQ.pack(name.encode(), 0)))
        fcntl.ioctl(control, _SIOCSIFFLAGS, _IFREQ.pack(name.encode(), flags | _IFF_UP))


def limit_rate(name: str, rate: int) -> str | None:
    """Let the guest send at most ``rate`` bytes a second, as Xen does; returns why not where that can't be done.

    What a guest sends comes *in* on its tap, where nothing can be held back: what is too much is dropped.
    """
    # A frame may have 64 KiB, since guests leave it to the card to cut up what they send.
    police = ["rate", f"{rate}bps", "burst", f"{max(rate // 10, _LARGEST_FRAME)}b", "mtu", "64kb", "drop"]
    everything = ["protocol", "all", "prio", "1", "u32", "match", "u32", "0", "0"]
    for words in (
        ["qdisc", "add", "dev", name, "ingress"],
        ["filter", "add", "dev", name, "parent", "ffff:", *everything, "police", *police, "flowid", ":1"],
    ):
        if (problem := _tc(words)) is not None:
            return problem
    return None


def change_rate(name: str, rate: int | None) -> str | None:
    """The same, of a tap that may have a rate already; None: the guest sends as much as it likes."""
    _tc(["qdisc", "del", "dev", name, "ingress"])  # which is there only with a rate
    return None if rate is None else limit_rate(name, rate)


def _tc(words: list[str]) -> str | None:
    """Have tc do something; returns why not if it doesn't."""
    tc = shutil.which("tc", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if tc is None:
        return "tc is not installed (apt-get install iproute2)"
    done = subprocess.run([tc, *words], capture_output=True, text=True, timeout=10, check=False)
    if done.returncode:
        reason = (done.stderr.splitlines() or [f"tc ended with {done.returncode}"])[0]
        return reason.removeprefix("Error: ").rstrip(".")
    return None
