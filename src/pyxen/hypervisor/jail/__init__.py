"""The jail of a domain's process: a guest that takes the process over has got a guest's rights and no more.

Whoever breaks out of a guest runs in this process. What it needs it has opened by then, and holds as descriptors: so
once that is done it shuts itself in, layer by layer, before the guest's first instruction. ``docs/security.md`` says
what each layer is for. Some need what a host may not give; then the process goes on without, and says so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec

from pyxen.errors import InvalidRequest, Unsupported
from pyxen.hypervisor.jail import landlock, limits, namespaces, policy, privileges, seccomp

VARIABLE: Final = "PYXEN_JAIL"


class Mode(StrEnum):
    """What PYXEN_JAIL says; without it, ``on``."""

    ON = "on"
    """Do what this host lets us do, and tell of what it doesn't."""
    REQUIRE = "require"
    """Run no guest where anything is missing."""
    TRAP = "trap"
    """For development: say which system call the filter has stopped, then end."""
    LOG = "log"
    """For development: let all system calls pass; the kernel's log names those that the filter would have stopped."""
    OFF = "off"
    """For development: no jail at all."""


class Report(msgspec.Struct, kw_only=True):
    """What is in force, and what isn't and why not."""

    layers: list[str] = msgspec.field(default_factory=list)
    missing: list[str] = msgspec.field(default_factory=list)


def mode(environ: Mapping[str, str] = os.environ) -> Mode:
    """Raises InvalidRequest for a word that is none."""
    word = environ.get(VARIABLE) or Mode.ON
    try:
        return Mode(word)
    except ValueError:
        raise InvalidRequest(
            f"{VARIABLE} is {word!r}", hint=f"It can be one of {', '.join(each.value for each in Mode)}."
        ) from None


class Jail:
    """Made when the process has but one thread and has opened nothing; entered when it has opened everything."""

    def __init__(self, mode: Mode, *, keep: Iterable[int]) -> None:
        """Close what was inherited but ``keep``, and leave the host's namespaces: paths lead where they did before."""
        self.mode = mode
        self.report = Report()
        self._own_namespaces = False
        if mode is Mode.OFF:
            self.report.missing.append(f"all of it: {VARIABLE} is {Mode.OFF}")
            return
        self._try("descriptors", lambda: limits.close_others(keep))
        self._own_namespaces = self._try("namespaces", namespaces.unshare)

    def enter(self, directory: Path, *, uid: int | None, vcpus: int) -> None:
        """Shut the process in. ``directory`` must exist; ``uid`` is who to be from now on, if not who we are.

        Raises Unsupported in the mode REQUIRE where a layer can't be had.
        """
        if self.mode is Mode.OFF:
            return
        if self._own_namespaces:
            self._try("empty root", lambda: namespaces.empty_root(directory))
        if os.geteuid() == 0 and uid is None:
            self.report.missing.append("user: it was started as root, without a user to become")
        # Its user's number is a domain's own: nobody else's threads count.
        self._try("limits", lambda: limits.limit(threads=None if uid is None else vcpus))
        privileges.empty_bounding_set()
        if uid is not None:
            self._try("user", lambda: privileges.become(uid))
        self._try("no capabilities", privileges.no_capabilities)
        self._try("no new privileges", privileges.no_new)
        self._try("not dumpable", privileges.not_dumpable)
        self._landlock()
        # The last one: it would refuse the others.
        self._try("seccomp", self._seccomp)
        if self.mode is Mode.REQUIRE and self.report.missing:
            raise Unsupported(
                f"the jail is incomplete: {'; '.join(self.report.missing)}",
                hint=f"{VARIABLE}={Mode.REQUIRE} asks for all of it; without that it starts with what can be had.",
            )

    def _landlock(self) -> None:
        abi = landlock.version()
        if abi:
            self._try("landlock", lambda: landlock.restrict(abi))
        else:
            self.report.missing.append("landlock: the kernel has none, or it is switched off")

    def _seccomp(self) -> None:
        if self.mode is Mode.TRAP:
            seccomp.trap()
        unknown = {Mode.TRAP: policy.TRAP, Mode.LOG: policy.LOG}.get(self.mode, policy.KILL)
        seccomp.install(policy.build(policy.rules(os.getpid()), policy.refusals(), unknown=unknown))

    def _try(self, layer: str, step: Callable[[], None]) -> bool:
        try:
            step()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            self.report.missing.append(f"{layer}: {reason}")
            return False
        self.report.layers.append(layer)
        return True
