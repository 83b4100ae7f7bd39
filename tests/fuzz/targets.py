"""What can be attacked, by name."""

from __future__ import annotations

from tests.fuzz.agent import HostileAgent
from tests.fuzz.blkif import HostileBlkfront, RacingBlkfront
from tests.fuzz.console import HostileConsole
from tests.fuzz.control import HostileCaller
from tests.fuzz.fifo import HostileFifo
from tests.fuzz.harness import Kind
from tests.fuzz.hypercalls import HostileGuest
from tests.fuzz.loader import HostileKernel
from tests.fuzz.nbd import HostileServer
from tests.fuzz.netif import HostileNetfront
from tests.fuzz.xenstore import HostileClient

KINDS: dict[str, Kind] = {
    "hypercalls": Kind(HostileGuest, 1000, ("done", "-14", "-22")),
    "fifo": Kind(HostileFifo, 1000, ("done", "-22")),
    "xenstore": Kind(HostileClient, 2000, ("op 11", "op 2", "op 7", "EACCES", "EINVAL", "ENOENT", "reconnected")),
    "blkif": Kind(HostileBlkfront, 1000, ("op 0: 0", "op 1: 0", "op 6: 0", "op 0: -1", "jumped", "restless")),
    "race": Kind(RacingBlkfront, 2000, ("restless",)),
    "netif": Kind(HostileNetfront, 1000, ("sent", "refused", "offered", "restless", "ring broken")),
    "console": Kind(HostileConsole, 1000, ("printed", "silent", "typed", "full")),
    "control": Kind(HostileCaller, 1000, ("obeyed", "refused")),
    "loader": Kind(HostileKernel, 200, ("inspected", "refused", "built", "not built")),
    "agent": Kind(HostileAgent, 1000, ("HELLO", "DATA", "ACK", "EXIT", "RESULT", "STARTED", "hung up")),
    "nbd": Kind(HostileServer, 500, ("connected", "not connected", "served", "failed")),
}
