"""What goes over HTTP about the host's CPUs and who gets them; see :mod:`pyxen.api`."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from pyxen.config.model import CpuCap, CpuList, CpuWeight, IoWeight, Name


class PinVcpusRequest(Struct, forbid_unknown_fields=True):
    vcpu: Annotated[int, Meta(ge=0, le=511)] | None = None
    """None: all."""
    cpus: CpuList | None = None
    """Where it may run; None: as it is."""
    cpus_soft: CpuList | None = None
    """Where it should run; kept and shown, since Linux has no such preference. None: as it is."""


class SetCreditRequest(Struct, forbid_unknown_fields=True):
    weight: CpuWeight | None = None
    """Against other domains' where CPUs are busy; None: as it is."""
    cap: CpuCap | None = None
    """In percent of one CPU, 0: no limit; None: as it is."""


class SetIoWeightRequest(Struct, forbid_unknown_fields=True):
    weight: IoWeight
    """Against other domains' where the host's disks are busy."""


class CpuPool(Struct):
    """Some of the host's CPUs, and the domains that run there. Its scheduler is the host's: ``credit``, as Xen's."""

    name: str
    cpus: list[int]
    domains: list[str]
    """Names of those that run."""
    sched: str = "credit"


class CpuPoolList(Struct):
    pools: list[CpuPool]
    """Pool-0 first."""
    free: list[int]
    """CPUs that are in no pool."""


class CreateCpuPoolRequest(Struct, forbid_unknown_fields=True):
    name: Name
    cpus: CpuList | None = None
    """CPUs that are free; None: the first one that is."""


class CpuPoolCpusRequest(Struct, forbid_unknown_fields=True):
    cpus: CpuList


class SetPoolRequest(Struct, forbid_unknown_fields=True):
    pool: Name
