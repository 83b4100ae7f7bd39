"""What goes over the WebSocket to a guest's agent; :mod:`pyxen.api` says in which order."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct, field

from pyxen.api import AgentKind, Problem

GuestPath = Annotated[str, Meta(min_length=1, max_length=4096, pattern=r"^[^\x00]*$(?!\n)")]
"""A path in a guest."""
GuestWord = Annotated[str, Meta(pattern=r"^[^\x00]*$(?!\n)")]
WaitSeconds = Annotated[float, Meta(ge=0, le=600)]
AGENT_WAIT_S = 10.0


class ExecRequest(Struct, tag_field="do", tag="exec", forbid_unknown_fields=True):
    """Run a command in a guest, as its root."""

    argv: Annotated[list[GuestWord], Meta(min_length=1, max_length=4096)]
    """Its name, looked for on the guest's PATH, and its arguments. There is no shell."""
    env: dict[GuestWord, GuestWord] = field(default_factory=dict)
    """Besides PATH and HOME."""
    cwd: GuestPath = "/"
    tty: bool = False
    """Give it a terminal; its errors then come with its output."""
    rows: Annotated[int, Meta(ge=0, le=65535)] = 24
    columns: Annotated[int, Meta(ge=0, le=65535)] = 80
    wait_s: WaitSeconds = AGENT_WAIT_S
    """How long to wait for the guest's agent, which comes at the guest's start."""


class ReadFileRequest(Struct, tag_field="do", tag="read", forbid_unknown_fields=True):
    """Read a file of a guest."""

    path: GuestPath
    wait_s: WaitSeconds = AGENT_WAIT_S


class WriteFileRequest(Struct, tag_field="do", tag="write", forbid_unknown_fields=True):
    """Make or replace a file in a guest."""

    path: GuestPath
    mode: Annotated[int, Meta(ge=0, le=0o7777)] = 0o644
    """For a new file."""
    wait_s: WaitSeconds = AGENT_WAIT_S


AgentRequest = ExecRequest | ReadFileRequest | WriteFileRequest


class AgentInput(Struct, forbid_unknown_fields=True):
    """What a client says to a command that runs, besides its input."""

    end: bool = False
    """That was all of the input."""
    signal: Annotated[int, Meta(ge=1, le=64)] | None = None
    """For the command and all in its process group."""
    rows: Annotated[int, Meta(ge=0, le=65535)] | None = None
    """The terminal's size has changed; with ``columns``."""
    columns: Annotated[int, Meta(ge=0, le=65535)] | None = None


class AgentStarted(Struct):
    pid: int | None = None
    """The command's, in the guest."""
    mode: int | None = None
    """The file's."""
    size: int | None = None


class AgentEnded(Struct):
    status: int
    """As a shell shows it: 128 and the signal's number for a command that a signal ended."""
    signal: int | None = None


class Running(Struct, omit_defaults=True):
    """The domain in which ``xm run`` runs a command."""

    domid: int
    name: str
    kernel: str
    """Its release."""
    gdb: str | None = None
    """The socket to which gdb can connect."""
    symbols: str | None = None
    """The kernel's vmlinux, where it is known."""


class AgentEvent(Struct, omit_defaults=True):
    """One of these."""

    started: AgentStarted | None = None
    step: str | None = None
    """Of ``xm run``: what is being made ready."""
    running: Running | None = None
    """Of ``xm run``: the domain has been started."""
    taken: int | None = None
    """So many more of the client's binary messages have been taken."""
    ended: AgentEnded | None = None
    error: Problem | None = None


class GuestInterface(Struct):
    """A network interface as the guest has it."""

    name: str
    mac: str | None = None
    addresses: list[str] = field(default_factory=list)
    """Each with the length of its network's prefix: ``10.0.2.15/24``."""


class GuestInterfaces(Struct):
    """What a guest's agent says of its network."""

    domid: int | None
    name: str
    agent: AgentKind | None = None
    """Which one; None: none is known to be there, or it did not say."""
    interfaces: list[GuestInterface] = field(default_factory=list)


class ExecResult(Struct):
    """What a command has done."""

    status: int
    stdout: bytes
    stderr: bytes
