"""Operations on CPU pools."""

from __future__ import annotations

import asyncio

from pyxen import api, scheduling_api
from pyxen.xend.http.operation import Call, Operation

_ALL = "/v1/cpupools"
_ONE = "/v1/cpupools/{pool}"


async def _list(call: Call) -> scheduling_api.CpuPoolList:
    return await asyncio.to_thread(call.core.cpupools.list)


async def _create(call: Call) -> scheduling_api.CpuPool:
    return await call.core.cpupools.create(call.body)


async def _destroy(call: Call) -> None:
    await call.core.cpupools.destroy(call.ref("pool"))


async def _add(call: Call) -> scheduling_api.CpuPool:
    return await call.core.cpupools.add_cpus(call.ref("pool"), call.body)


async def _remove(call: Call) -> scheduling_api.CpuPool:
    return await call.core.cpupools.remove_cpus(call.ref("pool"), call.body)


async def _split(call: Call) -> scheduling_api.CpuPoolList:
    return await call.core.cpupools.split_by_nodes()


async def _migrate(call: Call) -> api.Domain:
    return await call.core.cpupools.migrate(call.ref("domain"), call.body)


OPERATIONS = (
    Operation(
        "GET", _ALL, "listCpuPools", "CPU pools, Pool-0 first, and free CPUs", _list,
        result=scheduling_api.CpuPoolList,
    ),
    Operation(
        "POST", _ALL, "createCpuPool", "Make a pool of CPUs that are free", _create,
        body=scheduling_api.CreateCpuPoolRequest, result=scheduling_api.CpuPool, status=201, errors=(409, 507),
    ),
    Operation("DELETE", _ONE, "destroyCpuPool", "End a pool without domains; its CPUs are free then", _destroy,
              status=204, errors=(404, 409, 507)),
    Operation(
        "POST", f"{_ONE}/add-cpus", "addCpus", "Put free CPUs into a pool", _add,
        body=scheduling_api.CpuPoolCpusRequest, result=scheduling_api.CpuPool, errors=(404, 409, 507),
    ),
    Operation(
        "POST", f"{_ONE}/remove-cpus", "removeCpus", "Take CPUs out of a pool; they are free then", _remove,
        body=scheduling_api.CpuPoolCpusRequest, result=scheduling_api.CpuPool, errors=(404, 409, 507),
    ),
    Operation("POST", "/v1/split-cpupools", "splitCpuPools", "Make a pool of each NUMA node", _split,
              result=scheduling_api.CpuPoolList, errors=(409, 507)),
    Operation(
        "POST", "/v1/domains/{domain}/set-pool", "setPool", "Move a domain to another CPU pool", _migrate,
        body=scheduling_api.SetPoolRequest, result=api.Domain, errors=(404, 409, 422, 500, 507),
    ),
)  # fmt: skip
