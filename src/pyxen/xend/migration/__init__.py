"""Moving running domains between hosts: the state goes over TLS from one xend to another.

``outgoing`` sends, ``incoming`` takes; ``wire`` is what they say to each other, ``fit`` what is looked at before,
``peers`` who may. The domain runs on exactly one of the two whatever breaks and whenever: docs/decisions/0011.
"""

from __future__ import annotations

from pyxen.xend.life import Life
from pyxen.xend.migration.incoming import ARRIVE, Incoming
from pyxen.xend.migration.outgoing import MIGRATE, Outgoing
from pyxen.xend.migration.peers import Peers
from pyxen.xend.records import GIVEN, is_given
from pyxen.xend.store import Record


class Migration:
    """Both directions, and the peers."""

    def __init__(self, life: Life) -> None:
        self.peers = Peers(life.roots.state / "peers")
        self.outgoing = Outgoing(life, self.peers)
        self.incoming = Incoming(life, self.peers)

    @staticmethod
    def concerns(record: Record) -> bool:
        """Is the record in the middle of a migration?"""
        return (record.intended or "").startswith((MIGRATE, GIVEN, ARRIVE))

    async def recall(self, record: Record) -> None:
        """A starting xend looks at a record: what has arrived, has, whatever became of it."""
        if (record.intended or "").startswith(ARRIVE):
            await self.incoming.remember(record)

    async def sweep(self) -> None:
        """Remove what an earlier xend has made for domains that have not arrived. After all are recalled."""
        await self.incoming.sweep()

    async def finish(self, record: Record) -> None:
        """Go on where an earlier xend was killed. The record's lock is held; its process, if it has one, is adopted."""
        if is_given(record):
            self.outgoing.settle_soon(record)
        elif (record.intended or "").startswith(ARRIVE):
            await self.incoming.finish(record)
        else:
            await self.outgoing.resume(record)
