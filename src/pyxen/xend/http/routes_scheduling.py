"""Operations on which CPUs domains run on, and how much of them they get."""

from __future__ import annotations

from pyxen import api, scheduling_api
from pyxen.xend.http.operation import Call, Operation

_ONE = "/v1/domains/{domain}"


async def _pin(call: Call) -> api.Domain:
    return await call.core.scheduling.pin(call.ref("domain"), call.body)


async def _set_credit(call: Call) -> api.Domain:
    return await call.core.scheduling.set_credit(call.ref("domain"), call.body)


async def _set_io_weight(call: Call) -> api.Domain:
    return await call.core.scheduling.set_io_weight(call.ref("domain"), call.body.weight)


OPERATIONS = (
    Operation(
        "POST", f"{_ONE}/pin-vcpus", "pinVcpus", "Say which of the host's CPUs VCPUs may run on", _pin,
        body=scheduling_api.PinVcpusRequest, result=api.Domain, errors=(404, 409, 422, 500, 507),
    ),
    Operation(
        "POST", f"{_ONE}/set-credit", "setCredit", "Set a domain's weight and cap, its part of the host's CPUs",
        _set_credit, body=scheduling_api.SetCreditRequest, result=api.Domain, errors=(404, 409, 422, 500, 507),
    ),
    Operation(
        "POST", f"{_ONE}/set-io-weight", "setIoWeight", "Set a domain's part of the host's disks", _set_io_weight,
        body=scheduling_api.SetIoWeightRequest, result=api.Domain, errors=(404, 409, 422, 500, 507),
    ),
)  # fmt: skip
