"""Operations on domains."""

from __future__ import annotations

from pyxen import api
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


async def _rename(call: Call) -> api.Domain:
    return await call.core.rename(call.ref("domain"), call.body.name)


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
        "POST", f"{_ONE}/rename", "renameDomain", "Give a domain another name", _rename,
        body=api.RenameRequest, result=api.Domain, errors=(404, 409),
    ),
    Operation("GET", f"{_ONE}/vcpus", "listVcpus", "A domain's VCPUs", _vcpus, result=api.VcpuList, errors=(404,)),
    Operation(
        "GET", f"{_ONE}/console", "openConsole", "A domain's console, over a WebSocket", needs_websocket,
        status=101, stream=True, errors=(404, 409, 426),
        parameters=(
            Parameter("after", "the offset from which output is wanted; without it, the last 64 KiB"),
            Parameter("wait", "1: stay connected over restarts of the domain"),
        ),
    ),
)  # fmt: skip
