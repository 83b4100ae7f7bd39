"""xend's API as data: how each call is asked and its answer read. Nothing here does I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from pyxen import agent_api, api, device_api, errors, scheduling_api, snapshot_api
from pyxen.abi.xs_text import escape
from pyxen.config.model import Disk, DomainConfig, PciDevice, UsbDevice, Vif
from pyxen.errors import NotFound, PyxenError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
JSON = "application/json"


class DomainNotFound(NotFound):
    """No domain has this name, id or UUID; ``ref`` is what was asked for."""

    def __init__(self, ref: str, *, hint: str | None = None) -> None:
        super().__init__(f"Domain '{ref}' does not exist", hint=hint)
        self.ref = ref


@dataclass(frozen=True, slots=True)
class Call(Generic[T_co]):
    """One request, and the type of its answer (None: an empty one, ``str``: plain text, ``bytes``: as it is)."""

    method: str
    target: str
    answer: type[T_co]
    body: bytes | None = None
    ref: str | None = None
    """The domain that the call is about."""
    slow: bool = False
    """The answer may take as long as it likes."""

    @property
    def safe(self) -> bool:
        """Asking twice is the same as asking once."""
        return self.method == "GET"

    @property
    def headers(self) -> dict[str, str]:
        headers = {"Accept": f"{JSON}, application/problem+json"}
        if self.body is not None:
            headers["Content-Type"] = JSON
        return headers


def decode(call: Call[T], status: int, body: bytes) -> T:
    """The answer to ``call``; raises the PyxenError that ``status`` and ``body`` describe."""
    if status >= 300:
        raise problem(status, body, ref=call.ref)
    if call.answer is type(None):
        return None
    if call.answer is str:
        return body.decode(errors="replace")  # type: ignore[return-value]
    if call.answer is bytes:
        return body  # type: ignore[return-value]
    return decode_json(body, call.answer)


def decode_json(body: bytes, kind: type[T]) -> T:
    """Raises PyxenError if ``body`` is not a ``kind``: then xend is of another version, or it is not xend."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise PyxenError(
            f"xend's answer can't be read: {error}",
            hint="Are xm and xend of the same version? See: xm version",
        ) from error


def problem(status: int, body: bytes, *, ref: str | None = None) -> PyxenError:
    """The exception for an answer that says no."""
    try:
        said = msgspec.json.decode(body, type=api.Problem)
    except msgspec.DecodeError:
        said = api.Problem(title="", status=status, detail=f"xend answered with HTTP status {status}")
    return from_problem(said, ref=ref)


def from_problem(said: api.Problem, *, ref: str | None = None) -> PyxenError:
    """The exception for a problem body, by its code, else by its status."""
    detail = said.detail or said.title
    if ref is not None and said.code == NotFound.code and detail == f"Domain '{ref}' does not exist":
        return DomainNotFound(ref, hint=said.hint)
    if said.status == 401:
        return PyxenError(detail, hint="Set XM_TOKEN to what is in the file 'token' next to that xend's socket")
    if said.code == errors.ConfigError.code:
        return errors.ConfigError(detail, hint=said.hint, key=said.key)
    kind = _BY_CODE.get(said.code) or _BY_STATUS.get(said.status, PyxenError)
    return kind(detail, hint=said.hint)


_PLAIN: tuple[type[PyxenError], ...] = (
    errors.InvalidRequest,
    errors.Unsupported,
    errors.NotFound,
    errors.Conflict,
    errors.ResourceExhausted,
    errors.Unavailable,
    errors.OutcomeUnknown,
    errors.EngineError,
)
_BY_CODE = {kind.code: kind for kind in _PLAIN}
_BY_STATUS = {kind.status: kind for kind in _PLAIN if kind is not errors.EngineError}


def _domain_path(ref: str, verb: str = "") -> str:
    # A name never holds these, and they would make another path.
    if ref in ("", ".", "..") or "/" in ref:
        raise DomainNotFound(ref, hint="See what there is: xm list")
    return f"/v1/domains/{quote(ref, safe='')}" + (f"/{verb}" if verb else "")


def _post(ref: str, verb: str, body: msgspec.Struct | None = None) -> Call[api.Domain]:
    data = None if body is None else msgspec.json.encode(body)
    return Call("POST", _domain_path(ref, verb), api.Domain, data, ref)


def host() -> Call[api.Host]:
    return Call("GET", "/v1/host", api.Host)


def topology() -> Call[api.HostTopology]:
    return Call("GET", "/v1/host/topology", api.HostTopology)


def version() -> Call[api.Version]:
    return Call("GET", "/v1/version", api.Version)


def domains() -> Call[api.DomainList]:
    return Call("GET", "/v1/domains", api.DomainList)


def domain(ref: str) -> Call[api.Domain]:
    return Call("GET", _domain_path(ref), api.Domain, ref=ref)


def vcpus(ref: str) -> Call[api.VcpuList]:
    return Call("GET", _domain_path(ref, "vcpus"), api.VcpuList, ref=ref)


def create(config: DomainConfig, *, paused: bool, managed: bool) -> Call[api.Domain]:
    body = msgspec.json.encode(api.CreateRequest(config=config, paused=paused, managed=managed))
    return Call("POST", "/v1/domains", api.Domain, body)


def start(ref: str, *, paused: bool) -> Call[api.Domain]:
    return _post(ref, "start", api.StartRequest(paused=paused))


def shutdown(ref: str, reason: str) -> Call[api.Domain]:
    return _post(ref, "shutdown", api.ShutdownRequest(reason=reason))


def rename(ref: str, name: str) -> Call[api.Domain]:
    return _post(ref, "rename", api.RenameRequest(name=name))


def destroy(ref: str) -> Call[api.Domain]:
    return _post(ref, "destroy")


def set_vcpus(ref: str, count: int) -> Call[api.Domain]:
    return _slow(ref, "set-vcpus", api.SetVcpusRequest(count=count))


def set_memory(ref: str, memory_mib: int) -> Call[api.Domain]:
    return _post(ref, "set-memory", api.SetMemoryRequest(memory_mib=memory_mib))


def set_maxmem(ref: str, maxmem_mib: int) -> Call[api.Domain]:
    return _post(ref, "set-maxmem", api.SetMaxmemRequest(maxmem_mib=maxmem_mib))


def devices(ref: str) -> Call[device_api.DeviceList]:
    return Call("GET", _domain_path(ref, "devices"), device_api.DeviceList, ref=ref)


def guest_interfaces(ref: str) -> Call[agent_api.GuestInterfaces]:
    return Call("GET", _domain_path(ref, "guest-interfaces"), agent_api.GuestInterfaces, ref=ref)


def _slow(ref: str, verb: str, body: msgspec.Struct) -> Call[api.Domain]:
    return Call("POST", _domain_path(ref, verb), api.Domain, msgspec.json.encode(body), ref, slow=True)


def attach_disk(ref: str, disk: Disk) -> Call[api.Domain]:
    return _post(ref, "attach-disk", device_api.AttachDiskRequest(disk))


def detach_disk(ref: str, vdev: str, force: bool) -> Call[api.Domain]:
    return _slow(ref, "detach-disk", device_api.DetachDiskRequest(vdev, force))


def change_disc(ref: str, vdev: str, target: str | None) -> Call[api.Domain]:
    return _post(ref, "change-disc", device_api.ChangeDiscRequest(vdev, target))


def resize_disk(ref: str, vdev: str, size_bytes: int) -> Call[api.Domain]:
    return _post(ref, "resize-disk", device_api.ResizeDiskRequest(vdev, size_bytes))


def limit_disk(ref: str, vdev: str, rate: int | None, iops: int | None) -> Call[api.Domain]:
    return _post(ref, "limit-disk", device_api.LimitDiskRequest(vdev, rate, iops))


def limit_vif(ref: str, vif: str, rate: int) -> Call[api.Domain]:
    return _post(ref, "limit-vif", device_api.LimitVifRequest(vif, rate))


def attach_vif(ref: str, vif: Vif) -> Call[api.Domain]:
    return _post(ref, "attach-vif", device_api.AttachVifRequest(vif))


def detach_vif(ref: str, vif: str, force: bool) -> Call[api.Domain]:
    return _slow(ref, "detach-vif", device_api.DetachVifRequest(vif, force))


def host_pci() -> Call[device_api.HostPciDevices]:
    return Call("GET", "/v1/pci-devices", device_api.HostPciDevices)


def host_usb() -> Call[device_api.HostUsbDevices]:
    return Call("GET", "/v1/usb-devices", device_api.HostUsbDevices)


def change_host_pci(address: str, verb: str) -> Call[None]:
    if not address or "/" in address:
        raise NotFound(f"this host has no PCI device '{address}'")
    return Call("POST", f"/v1/pci-devices/{quote(address, safe='')}/{verb}", type(None))


def attach_pci(ref: str, pci: PciDevice) -> Call[api.Domain]:
    return _post(ref, "attach-pci", device_api.AttachPciRequest(pci))


def detach_pci(ref: str, address: str) -> Call[api.Domain]:
    return _slow(ref, "detach-pci", device_api.DetachPciRequest(address))


def attach_usb(ref: str, usb: UsbDevice) -> Call[api.Domain]:
    return _post(ref, "attach-usb", device_api.AttachUsbRequest(usb))


def detach_usb(ref: str, which: str) -> Call[api.Domain]:
    return _slow(ref, "detach-usb", device_api.DetachUsbRequest(which))


def pin_vcpus(ref: str, vcpu: int | None, cpus: str | None, soft: str | None) -> Call[api.Domain]:
    return _post(ref, "pin-vcpus", scheduling_api.PinVcpusRequest(vcpu=vcpu, cpus=cpus, cpus_soft=soft))


def set_credit(ref: str, weight: int | None, cap: int | None) -> Call[api.Domain]:
    return _post(ref, "set-credit", scheduling_api.SetCreditRequest(weight=weight, cap=cap))


def set_io_weight(ref: str, weight: int) -> Call[api.Domain]:
    return _post(ref, "set-io-weight", scheduling_api.SetIoWeightRequest(weight))


def set_pool(ref: str, pool: str) -> Call[api.Domain]:
    return _post(ref, "set-pool", scheduling_api.SetPoolRequest(pool))


def cpupools() -> Call[scheduling_api.CpuPoolList]:
    return Call("GET", "/v1/cpupools", scheduling_api.CpuPoolList)


def create_cpupool(name: str, cpus: str | None) -> Call[scheduling_api.CpuPool]:
    body = msgspec.json.encode(scheduling_api.CreateCpuPoolRequest(name, cpus))
    return Call("POST", "/v1/cpupools", scheduling_api.CpuPool, body)


def destroy_cpupool(name: str) -> Call[None]:
    return Call("DELETE", _pool_path(name), type(None))


def change_cpupool(name: str, verb: str, cpus: str) -> Call[scheduling_api.CpuPool]:
    return Call(
        "POST",
        f"{_pool_path(name)}/{verb}",
        scheduling_api.CpuPool,
        msgspec.json.encode(scheduling_api.CpuPoolCpusRequest(cpus)),
    )


def split_cpupools() -> Call[scheduling_api.CpuPoolList]:
    return Call("POST", "/v1/split-cpupools", scheduling_api.CpuPoolList)


def _pool_path(name: str) -> str:
    if name in ("", ".", "..") or "/" in name:
        raise NotFound(f"Pool '{name}' does not exist", hint="See what there is: xm cpupool-list")
    return f"/v1/cpupools/{quote(name, safe='')}"


def sysrq(ref: str, key: str) -> Call[api.Domain]:
    return _post(ref, "sysrq", api.SysrqRequest(key=key))


def trigger(ref: str, trigger: api.Trigger, vcpu: int | None) -> Call[api.Domain]:
    return _post(ref, "trigger", api.TriggerRequest(trigger=trigger, vcpu=vcpu))


def dump_core(ref: str, path: str | None, *, live: bool, crash: bool, reset: bool) -> Call[api.CoreDump]:
    body = msgspec.json.encode(api.DumpRequest(path=path, live=live, crash=crash, reset=reset))
    return Call("POST", _domain_path(ref, "dump-core"), api.CoreDump, body, ref, slow=True)


def save(ref: str, path: str, *, checkpoint: bool) -> Call[api.SavedState]:
    body = msgspec.json.encode(api.SaveRequest(path=path, checkpoint=checkpoint))
    return Call("POST", _domain_path(ref, "save"), api.SavedState, body, ref, slow=True)


def restore(path: str, *, paused: bool) -> Call[api.Domain]:
    body = msgspec.json.encode(api.RestoreRequest(path=path, paused=paused))
    return Call("POST", "/v1/restore", api.Domain, body, slow=True)


def migrate_request(host: str, options: Mapping[str, object]) -> api.MigrateRequest:
    """Raises InvalidRequest for an option that there isn't, or that can't be so."""
    try:
        return msgspec.convert({"host": host, **options}, api.MigrateRequest)
    except msgspec.ValidationError as error:
        raise errors.InvalidRequest(str(error)) from error


def migrate(ref: str, request: api.MigrateRequest) -> Call[api.Progress]:
    return Call("POST", _domain_path(ref, "migrate"), api.Progress, msgspec.json.encode(request), ref)


def cancel_migration(ref: str) -> Call[api.Domain]:
    return Call("POST", _domain_path(ref, "migrate/cancel"), api.Domain, None, ref, slow=True)


def keep(ref: str) -> Call[api.Domain]:
    return Call("POST", _domain_path(ref, "migrate/here"), api.Domain, None, ref, slow=True)


def peers() -> Call[api.PeerList]:
    return Call("GET", "/v1/peers", api.PeerList)


def add_peer(name: str, certificate: str) -> Call[api.Peer]:
    body = msgspec.json.encode(api.PeerRequest(certificate))
    return Call("PUT", f"/v1/peers/{quote(name, safe='')}", api.Peer, body)


def remove_peer(name: str) -> Call[None]:
    return Call("DELETE", f"/v1/peers/{quote(name, safe='')}", type(None))


def snapshots(ref: str | None) -> Call[snapshot_api.SnapshotList]:
    return Call("GET", _domain_path(ref, "snapshots") if ref else "/v1/snapshots", snapshot_api.SnapshotList, ref=ref)


def create_snapshot(ref: str, name: str, *, quiesce: bool) -> Call[snapshot_api.Snapshot]:
    body = msgspec.json.encode(snapshot_api.SnapshotRequest(name, quiesce))
    return Call("POST", _domain_path(ref, "snapshots"), snapshot_api.Snapshot, body, ref, slow=True)


def revert(ref: str, snapshot: str, *, paused: bool) -> Call[api.Domain]:
    body = msgspec.json.encode(snapshot_api.RevertRequest(paused=paused))
    return Call("POST", _snapshot_path(ref, snapshot) + "/revert", api.Domain, body, ref, slow=True)


def remove_snapshot(ref: str, snapshot: str) -> Call[None]:
    return Call("DELETE", _snapshot_path(ref, snapshot), type(None), ref=ref)


def _snapshot_path(ref: str, snapshot: str) -> str:
    if snapshot in ("", ".", "..") or "/" in snapshot:
        raise NotFound(f"Domain '{ref}' has no snapshot '{snapshot}'", hint="See what there is: xm snapshot list")
    return _domain_path(ref, "snapshots/") + quote(snapshot, safe="")


def clone(ref: str, name: str, snapshot: str | None, *, paused: bool, managed: bool) -> Call[api.Domain]:
    body = msgspec.json.encode(snapshot_api.CloneRequest(name, snapshot, paused=paused, managed=managed))
    return Call("POST", _domain_path(ref, "clone"), api.Domain, body, ref, slow=True)


def pause(ref: str) -> Call[api.Domain]:
    return _post(ref, "pause")


def unpause(ref: str) -> Call[api.Domain]:
    return _post(ref, "unpause")


def suspend(ref: str) -> Call[api.Domain]:
    return Call("POST", _domain_path(ref, "suspend"), api.Domain, None, ref, slow=True)


def resume(ref: str) -> Call[api.Domain]:
    return _post(ref, "resume")


def delete(ref: str) -> Call[None]:
    return Call("DELETE", _domain_path(ref), type(None), ref=ref)


def screen(ref: str) -> Call[bytes]:
    return Call("GET", _domain_path(ref, "screen"), bytes, ref=ref)


def log(tail: int | None) -> Call[str]:
    return Call("GET", "/v1/log" + ("" if tail is None else f"?tail={tail}"), str)


def dmesg() -> Call[str]:
    return Call("GET", "/v1/dmesg", str)


def debug_keys(keys: str) -> Call[None]:
    return Call("POST", "/v1/debug-keys", type(None), msgspec.json.encode(api.DebugKeysRequest(keys)))


def images() -> Call[api.ImageList]:
    return Call("GET", "/v1/images", api.ImageList)


def build_image(name: str, *, force: bool, options: dict[str, str]) -> Call[api.Progress]:
    body = msgspec.json.encode(api.BuildRequest(force=force, options=options))
    return Call("POST", f"/v1/images/{quote(name, safe='')}/build", api.Progress, body)


def remove_image(name: str) -> Call[None]:
    return Call("DELETE", f"/v1/images/{quote(name, safe='')}", type(None))


def schema() -> Call[dict[str, Any]]:
    return Call("GET", "/v1/schema/domain", dict)


def follow_log(tail: int | None) -> Call[str]:
    return Call("GET", "/v1/log/follow" + ("" if tail is None else f"?tail={tail}"), str)


def events(after: int | None) -> Call[api.Event]:
    return Call("GET", "/v1/events" + ("" if after is None else "?" + urlencode({"after": after})), api.Event)


def console_target(ref: str, *, after: int | None, wait: bool) -> str:
    """Path and query of a console's WebSocket."""
    query = {"after": after, "wait": 1 if wait else None}
    present = {key: value for key, value in query.items() if value is not None}
    return _domain_path(ref, "console") + ("?" + urlencode(present) if present else "")


def agent_target(ref: str | None) -> str:
    """Path of the WebSocket to a guest's agent; None: of a domain that is started for it."""
    return "/v1/run" if ref is None else _domain_path(ref, "agent")


def exec_request(
    argv: Sequence[str], env: Mapping[str, str] | None, cwd: str, wait_s: float, **terminal: Any
) -> agent_api.ExecRequest:
    """Raises InvalidRequest for a word with a zero character."""
    if any("\0" in word for word in (*argv, cwd, *(env or {}), *(env or {}).values())) or not argv:
        raise errors.InvalidRequest("a command is one word at least, and has no zero characters")
    return agent_api.ExecRequest(argv=list(argv), env=dict(env or {}), cwd=cwd, wait_s=wait_s, **terminal)


def agent_event(text: str, ref: str | None) -> agent_api.AgentEvent:
    """What xend says of a command or file. Raises the error that it reports."""
    event = decode_json(text.encode(), agent_api.AgentEvent)
    if event.error is not None:
        raise from_problem(event.error, ref=ref)
    return event


def progress(line: bytes) -> api.Progress | None:
    """One line of a long job; None for an empty one. Raises the error that the line reports."""
    if not line.strip():
        return None
    step = decode_json(line, api.Progress)
    if step.error is not None:
        raise from_problem(step.error)
    return step


class EventLines:
    """Reads a ``text/event-stream`` line by line."""

    def __init__(self) -> None:
        self._data: list[bytes] = []

    def feed(self, line: bytes) -> api.Event | None:
        """Take one line (with or without its end); returns the event that it completes."""
        line = line.rstrip(b"\r\n")
        if line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))
            return None
        if line or not self._data:
            return None
        data, self._data = b"\n".join(self._data), []
        return decode_json(data, api.Event)


def trace(ref: str, only: Sequence[str]) -> Call[api.TraceRecord]:
    query = urlencode([("only", kind) for kind in only])
    return Call("GET", _domain_path(ref, "trace") + (f"?{query}" if query else ""), api.TraceRecord, ref=ref)


def trace_record(line: bytes) -> api.TraceRecord:
    """One line of a trace."""
    return decode_json(line, api.TraceRecord)


def _store(verb: str, paths: Sequence[str], answer: type[T]) -> Call[T]:
    return Call("GET", f"/v1/xenstore{verb}?" + urlencode([("path", path) for path in paths]), answer)


def store_tree(path: str) -> Call[api.StoreTree]:
    return _store("", [path], api.StoreTree)


def store_node(path: str) -> Call[api.StoreNode]:
    return _store("/node", [path], api.StoreNode)


def store_write(values: Mapping[str, bytes]) -> Call[None]:
    body = api.StoreWrite({path: escape(value) for path, value in values.items()})
    return Call("POST", "/v1/xenstore/write", type(None), msgspec.json.encode(body))


def store_remove(path: str, *, tidy: bool) -> Call[None]:
    return Call("POST", "/v1/xenstore/remove", type(None), msgspec.json.encode(api.StoreRemove(path, tidy)))


def store_permissions(path: str, permissions: Sequence[str], *, recurse: bool, upwards: bool) -> Call[None]:
    body = api.StorePermissions(path, list(permissions), recurse, upwards)
    return Call("POST", "/v1/xenstore/permissions", type(None), msgspec.json.encode(body))


def store_watch(paths: Sequence[str]) -> Call[api.StoreEvent]:
    return _store("/watch", paths, api.StoreEvent)


def store_event(line: bytes) -> api.StoreEvent:
    return decode_json(line, api.StoreEvent)
