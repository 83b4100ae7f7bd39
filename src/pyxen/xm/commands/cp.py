from __future__ import annotations

import os
from pathlib import Path

import click

from pyxen import agent_api
from pyxen.client import Client
from pyxen.errors import Conflict, InvalidRequest
from pyxen.xm.command import pass_session, subcommand
from pyxen.xm.session import Session

_READ = 32 * 1024
_IS_A_FOLDER = "Is a directory"


@subcommand("cp", examples=["xm cp page.html web:/srv/", "xm cp web:/etc/passwd .", "xm cp web:/proc/meminfo -"])
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST")
@pass_session
def command(session: Session, source: str, target: str) -> None:
    """Copy a file into a domain or out of it.

    One of SRC and DST is DOMAIN:PATH, the other a path here, or - for standard input or output. A target that is a
    folder gets a file of the same name in it. The guest's agent reads and writes; for whole folders have it run tar:
    tar c DIR | xm exec -i DOMAIN -- tar x
    """
    there, here = _split(source), _split(target)
    if (there is None) == (here is None):
        raise InvalidRequest("one of SRC and DST must be DOMAIN:PATH", hint="For example: xm cp page.html web:/srv/")
    if here is not None:
        _put(session.client, source, *here)
    elif there is not None:
        _get(session.client, *there, target)


def _split(word: str) -> tuple[str, str] | None:
    """Domain and path; None for a path of this machine."""
    domain, colon, path = word.partition(":")
    if not colon or "/" in domain or not domain:
        return None
    return domain, path or "/root"


def _put(client: Client, source: str, domain: str, path: str) -> None:
    name = "" if source == "-" else Path(source).name
    try:
        fd = os.dup(0) if source == "-" else os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        with os.fdopen(fd, "rb", buffering=0) as file:
            mode = 0o644 if source == "-" else os.fstat(fd).st_mode & 0o777
            if path.endswith("/"):
                path += name
            try:
                opened = client.command(domain, agent_api.WriteFileRequest(path, mode))
            except Conflict as error:
                if not name or _IS_A_FOLDER not in error.message:
                    raise
                opened = client.command(domain, agent_api.WriteFileRequest(f"{path.rstrip('/')}/{name}", mode))
            with opened as written:
                written.finish(iter(lambda: file.read(_READ), b""))
    except OSError as error:
        raise InvalidRequest(f"cannot read {source}: {error.strerror}") from error


def _get(client: Client, domain: str, path: str, target: str) -> None:
    with client.command(domain, agent_api.ReadFileRequest(path)) as read:
        if target == "-":
            for _, data in read:
                os.write(1, data)
            return
        place = Path(target)
        if place.is_dir():
            place /= Path(path).name
        part = place.with_name(f".{place.name}.{os.getpid()}.part")
        mode = (read.started.mode or 0o644) & 0o777
        try:
            fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            try:
                with os.fdopen(fd, "wb") as file:
                    for _, data in read:
                        file.write(data)
                part.replace(place)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise InvalidRequest(f"cannot write {target}: {error.strerror}") from error
