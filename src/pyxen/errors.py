"""The exceptions that may reach a user.

    PyxenError
     ├── InvalidRequest      the caller said something that can't be right        HTTP 400
     │    └── ConfigError    … in a domain's description, with its place
     ├── Unsupported         right in itself, but not on this machine or engine   HTTP 422
     ├── NotFound            no such domain, image, …                             HTTP 404
     ├── Conflict            right, but not in the present state                  HTTP 409
     ├── ResourceExhausted   memory, disk, ports, …                               HTTP 507
     ├── Unavailable         the other side is not there; trying again may help   HTTP 503
     ├── OutcomeUnknown      the answer was lost after the request was sent       HTTP 502
     └── EngineError         a virtual machine monitor failed                     HTTP 500

Each message names the thing and the reason; ``hint`` is the next step, on a line of its own.
A message never ends in a full stop and never starts with "Error".
"""

from __future__ import annotations


class PyxenError(Exception):
    """The root: a sentence for the user, and optionally what to do next."""

    code = "error"
    status = 500

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class InvalidRequest(PyxenError):
    """The caller said something that can't be right."""

    code = "invalid-request"
    status = 400


class ConfigError(InvalidRequest):
    """A domain's description is wrong.

    ``source``, ``line`` and ``column`` (both from 1) say where, if the description came from a file or the
    command line; ``key`` is the option's name where one is to blame.
    """

    code = "invalid-config"

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        key: str | None = None,
        source: str | None = None,
        line: int | None = None,
        column: int | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.key = key
        self.source = source
        self.line = line
        self.column = column

    def __str__(self) -> str:
        place = [str(part) for part in (self.source, self.line, self.column) if part is not None]
        return f"{':'.join(place)}: {self.message}" if place else self.message


class Unsupported(PyxenError):
    """Right in itself, but this machine, engine or version can't do it."""

    code = "unsupported"
    status = 422


class NotFound(PyxenError):
    """No such domain, image or device."""

    code = "not-found"
    status = 404


class Conflict(PyxenError):
    """The request makes sense, but not in the present state."""

    code = "conflict"
    status = 409


class ResourceExhausted(PyxenError):
    """Not enough memory, disk space, ports or the like."""

    code = "resource-exhausted"
    status = 507


class Unavailable(PyxenError):
    """The other side is not there (now); trying again may help."""

    code = "unavailable"
    status = 503


class OutcomeUnknown(PyxenError):
    """The connection broke after the request had been sent: it may or may not have been carried out."""

    code = "outcome-unknown"
    status = 502


class EngineError(PyxenError):
    """A virtual machine monitor failed or answered nonsense; the message holds its last words."""

    code = "engine-failed"
    status = 500
