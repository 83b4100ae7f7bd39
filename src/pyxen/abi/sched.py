"""sched_op: xen/include/public/sched.h."""

from __future__ import annotations

from typing import Final, NamedTuple

from pyxen.abi.layout import U16, U32, U64, Layout, Pointer

YIELD: Final = 0
BLOCK: Final = 1
SHUTDOWN: Final = 2
POLL: Final = 3
REMOTE_SHUTDOWN: Final = 4
SHUTDOWN_CODE: Final = 5
WATCHDOG: Final = 6
PIN_OVERRIDE: Final = 7

SHUTDOWN_POWEROFF: Final = 0
SHUTDOWN_REBOOT: Final = 1
SHUTDOWN_SUSPEND: Final = 2
SHUTDOWN_CRASH: Final = 3
SHUTDOWN_WATCHDOG: Final = 4
SHUTDOWN_SOFT_RESET: Final = 5
SHUTDOWN_MAX: Final = 5

MAX_POLL_PORTS: Final = 128


class Shutdown(NamedTuple):
    reason: U32


class Poll(NamedTuple):
    ports: Pointer
    nr_ports: U32
    timeout: U64
    """System time in ns; 0: none."""


class RemoteShutdown(NamedTuple):
    domain_id: U16
    reason: U32


class Watchdog(NamedTuple):
    id: U32
    timeout: U32
    """Seconds; 0 disables."""


SHUTDOWN_ARG: Final = Layout(Shutdown)
POLL_ARG: Final = Layout(Poll)
REMOTE_SHUTDOWN_ARG: Final = Layout(RemoteShutdown)
WATCHDOG_ARG: Final = Layout(Watchdog)
