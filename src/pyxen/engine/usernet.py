"""A user-mode network for a vif, without any rights: a process that speaks TCP and UDP for the guest.

passt where it is installed and the host has a route to somewhere (it refuses to start without), else QEMU's slirp in
a process of its own. Both show the guest the same network: it is 10.0.2.15, its gateway and DHCP server (and, for the
guest, the host) 10.0.2.2, its name server 10.0.2.3. Frames go over a stream socket, each after its length.

Both go into the background by themselves once they are ready, and say on their standard error why they are not.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

from pyxen.config.model import Forward
from pyxen.engine.forwards import slirp_words
from pyxen.engine.helpers import start_helper
from pyxen.engine.process import end_all, marker
from pyxen.engine.user import as_user
from pyxen.errors import EngineError, Unsupported

_GUEST, _GATEWAY, _BITS, _RESOLVER = "10.0.2.15", "10.0.2.2", 24, "10.0.2.3"
_ROUTES = Path("/proc/net/route")


def check_usernet() -> None:
    """Raises Unsupported if there is neither of the two programs."""
    if shutil.which("passt") is None and shutil.which("qemu-system-x86_64") is None:
        raise Unsupported(
            "a vif without a bridge needs passt, which is not installed", hint="Install it: apt-get install passt"
        )


def open_usernet(directory: Path, name: str, forwards: Sequence[Forward], uid: int | None) -> int:
    """Start the process of the network ``name`` for the domain in ``directory``; returns the stream's other end.

    The process ends when that is closed (passt), or by ``close_usernet`` and with the domain's other ones (slirp).
    Raises EngineError with its words.
    """
    check_usernet()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with theirs:
            _start(theirs.fileno(), name, forwards, directory, uid)
    except BaseException:
        ours.close()
        raise
    return ours.detach()


def close_usernet(directory: Path, name: str) -> None:
    """End a network's process that does not end when its stream is closed. Blocking."""
    end_all(directory, having=name)


def _start(fd: int, name: str, forwards: Sequence[Forward], directory: Path, uid: int | None) -> None:
    if shutil.which("passt") and _has_route():
        try:
            _run("passt", _passt(fd, forwards), fd, directory, uid)
            return
        except EngineError:
            # It may not like the route's interface, or the host's name spaces; slirp asks for nothing.
            if shutil.which("qemu-system-x86_64") is None:
                raise
    _run("QEMU's slirp", _slirp(fd, name, forwards, directory), fd, directory, uid)


def _has_route() -> bool:
    """Is there a default route, over which passt takes its own addresses?"""
    with contextlib.suppress(OSError):
        rows = [line.split() for line in _ROUTES.read_text().splitlines()[1:]]
        return any(row[1] == row[7] == "00000000" for row in rows)
    return False


def _passt(fd: int, forwards: Sequence[Forward]) -> list[str]:
    addresses = ["-a", _GUEST, "-n", str(_BITS), "-g", _GATEWAY, "-D", _RESOLVER, "--dns-forward", _RESOLVER]
    return ["passt", "--quiet", "--stderr", "--fd", str(fd), "-4", *addresses, *_passt_forwards(forwards)]


def _passt_forwards(forwards: Sequence[Forward]) -> Iterator[str]:
    for each in forwards:
        yield "-t" if each.protocol == "tcp" else "-u"
        yield f"{each.address}/{each.host}:{each.guest}"


def _slirp(fd: int, name: str, forwards: Sequence[Forward], directory: Path) -> list[str]:
    return [
        *("qemu-system-x86_64", "-machine", "none", "-nodefaults", "-no-user-config", "-display", "none"),
        # One more place to look for firmware, where there is none: what tells this process from all others.
        *("-L", marker(directory), "-sandbox", "on,obsolete=deny,resourcecontrol=deny", "-daemonize", "-name", name),
        *("-netdev", ",".join(["user,id=user", *slirp_words(forwards)])),
        *("-netdev", f"stream,id=stream,server=off,addr.type=fd,addr.str={fd}"),
        *("-netdev", "hubport,id=inner,hubid=0,netdev=user"),
        *("-netdev", "hubport,id=outer,hubid=0,netdev=stream"),
    ]


def _run(name: str, words: list[str], fd: int, directory: Path, uid: int | None) -> None:
    """Run what goes into the background; raises EngineError if it ends with an error instead."""
    if said := start_helper([*as_user(uid), *words], directory, pass_fds=[fd]):
        # passt complains of each line that no system log took.
        said = "; ".join(line for line in said.splitlines() if "syslog" not in line)
        raise EngineError(f"{name} can't make a user-mode network: {said}")
