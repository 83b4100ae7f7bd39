"""Operations on domains."""

from __future__ import annotations

from pyxen import api
from pyxen.xend.http.agent_ws import needs_websocket as agent_needs_websocket
from pyxen.xend.http.console_ws import needs_websocket
from pyxen.xend.http.operation import Call, Operation, Parameter

_ONE = "/v1/domains/{domain}"


async def _list(call: Call) -> api.DomainList:
    return api.DomainList(call.core.list())


async def _create(call: Call) -> api.Domain:
    return await call.core.create(call.body)


async def _get(call: Call) -> api.Domain:
    return call.core.get(call.ref("domain"))


async def _delete(call: Call) -> None:
    await call.core.delete(call.ref("domain"))


async def _start(call: Call) -> api.Domain:
    return await call.core.start(call.ref("domain"), paused=call.body.paused)


async def _shutdown(call: Call) -> api.Domain:
    return await call.core.shutdown(call.ref("domain"), call.body.reason)


async def _destroy(call: Call) -> api.Domain:
    return await call.core.destroy(call.ref("domain"))


async def _pause(call: Call) -> api.Domain:
    return await call.core.pause(call.ref("domain"))


async def _unpause(call: Call) -> api.Domain:
    return await call.core.unpause(call.ref("domain"))


async def _suspend(call: Call) -> api.Domain:
    return await call.core.suspend(call.ref("domain"))


async def _resume(call: Call) -> api.Domain:
    return await call.core.resume(call.ref("domain"))


async def _rename(call: Call) -> api.Domain:
    return await call.core.rename(call.ref("domain"), call.body.name)


async def _set_vcpus(call: Call) -> api.Domain:
    return await call.core.set_vcpus(call.ref("domain"), call.body.count)


async def _set_memory(call: Call) -> api.Domain:
    return await call.core.set_memory(call.ref("domain"), call.body.memory_mib)


async def _set_maxmem(call: Call) -> api.Domain:
    return await call.core.set_maxmem(call.ref("domain"), call.body.maxmem_mib)


async def _sysrq(call: Call) -> api.Domain:
    return await call.core.sysrq(call.ref("domain"), call.body.key)


async def _trigger(call: Call) -> api.Domain:
    return await call.core.trigger(call.ref("domain"), call.body.trigger, call.body.vcpu)


async def _dump_core(call: Call) -> api.CoreDump:
    return await call.core.dump_core(call.ref("domain"), call.body)


async def _save(call: Call) -> api.SavedState:
    return await call.core.save(call.ref("domain"), call.body)


async def _restore(call: Call) -> api.Domain:
    return await call.core.restore(call.body)


async def _vcpus(call: Call) -> api.VcpuList:
    return call.core.vcpus(call.ref("domain"))


OPERATIONS = (
    Operation("GET", "/v1/domains", "listDomains", "All domains, Domain-0 first", _list, result=api.DomainList),
    Operation(
        "POST", "/v1/domains", "createDomain", "Create and start a domain, or only define a managed one", _create,
        body=api.CreateRequest, result=api.Domain, status=201, errors=(409, 422, 500, 507),
    ),
    Operation("GET", _ONE, "getDomain", "One domain", _get, result=api.Domain, errors=(404,)),
    Operation(
        "DELETE", _ONE, "deleteDomain", "Forget a managed domain that is not running", _delete,
        status=204, errors=(404, 409),
    ),
    Operation(
        "POST", f"{_ONE}/start", "startDomain", "Start a managed domain", _start,
        body=api.StartRequest, body_optional=True, result=api.Domain, errors=(404, 409, 422, 500, 507),
    ),
    Operation(
        "POST", f"{_ONE}/shutdown", "shutdownDomain", "Ask the guest to stop; does not wait for it", _shutdown,
        body=api.ShutdownRequest, body_optional=True, result=api.Domain, status=202, errors=(404, 409, 422, 500),
    ),
    Operation(
        "POST", f"{_ONE}/destroy", "destroyDomain", "End a domain at once", _destroy,
        result=api.Domain, errors=(404, 409, 500),
    ),
    Operation(
        "POST", f"{_ONE}/pause", "pauseDomain", "Stop a domain's VCPUs", _pause,
        result=api.Domain, errors=(404, 409, 500),
    ),
    Operation(
        "POST", f"{_ONE}/unpause", "unpauseDomain", "Let a domain's VCPUs run again", _unpause,
        result=api.Domain, errors=(404, 409, 500),
    ),
    Operation(
        "POST", f"{_ONE}/suspend", "suspendDomain", "Have the guest put itself in order and stand still", _suspend,
        result=api.Domain, errors=(404, 409, 422, 500),
    ),
    Operation(
        "POST", f"{_ONE}/resume", "resumeDomain", "Let a suspended guest go on", _resume,
        result=api.Domain, errors=(404, 409, 500),
    ),
    Operation(
        "POST", f"{_ONE}/rename", "renameDomain", "Give a domain another name", _rename,
        body=api.RenameRequest, result=api.Domain, errors=(404, 409),
    ),
    Operation("GET", f"{_ONE}/vcpus", "listVcpus", "A domain's VCPUs", _vcpus, result=api.VcpuList, errors=(404,)),
    Operation(
        "POST", f"{_ONE}/set-vcpus", "setVcpus", "Ask the guest to use more or fewer VCPUs; does not wait for it",
        _set_vcpus, body=api.SetVcpusRequest, result=api.Domain, status=202, errors=(404, 409, 422, 500, 507),
    ),
    Operation(
        "POST", f"{_ONE}/set-memory", "setMemory", "Ask the guest to shrink or grow; does not wait for it",
        _set_memory, body=api.SetMemoryRequest, result=api.Domain, status=202, errors=(404, 409, 422, 500, 507),
    ),
    Operation(
        "POST", f"{_ONE}/set-maxmem", "setMaxmem", "Set the most memory that a domain may be given", _set_maxmem,
        body=api.SetMaxmemRequest, result=api.Domain, errors=(404, 409, 422, 500, 507),
    ),
    Operation(
        "POST", f"{_ONE}/sysrq", "pressSysrq", "Press SysRq and a key in the guest", _sysrq,
        body=api.SysrqRequest, result=api.Domain, status=202, errors=(404, 409, 422, 500),
    ),
    Operation(
        "POST", f"{_ONE}/trigger", "triggerDomain", "Send the guest an event of hardware", _trigger,
        body=api.TriggerRequest, result=api.Domain, status=202, errors=(404, 409, 422, 500, 507),
    ),
    Operation(
        "POST", f"{_ONE}/dump-core", "dumpCore", "Write the guest's memory and registers to a file as an ELF core",
        _dump_core, body=api.DumpRequest, body_optional=True, result=api.CoreDump, errors=(404, 409, 422, 500, 507),
    ),
    Operation(
        "POST", f"{_ONE}/save", "saveDomain", "Write a domain's state to a file, and end it unless it is a checkpoint",
        _save, body=api.SaveRequest, result=api.SavedState, errors=(404, 409, 422, 500, 507),
    ),
    Operation(
        "POST", "/v1/restore", "restoreDomain", "Start a domain from its saved state", _restore,
        body=api.RestoreRequest, result=api.Domain, status=201, errors=(404, 409, 422, 500, 507),
    ),
    Operation(
        "GET", f"{_ONE}/agent", "openAgent", "A command or a file of the guest, over a WebSocket",
        agent_needs_websocket, status=101, stream=True, errors=(404, 409, 426),
    ),
    Operation(
        "GET", f"{_ONE}/console", "openConsole", "A domain's console, over a WebSocket", needs_websocket,
        status=101, stream=True, errors=(404, 409, 426),
        parameters=(
            Parameter("after", "the offset from which output is wanted; without it, the last 64 KiB"),
            Parameter("wait", "1: stay connected over restarts of the domain"),
        ),
    ),
)  # fmt: skip
