"""xend's process: puts the parts together, serves, and lets go of everything without ending a domain."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import os
import secrets
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from pyxen import __version__
from pyxen.engine.contract import Engine
from pyxen.engine.inotify import Inotify
from pyxen.engine.qemu import QemuEngine
from pyxen.engine.xen import XenEngine
from pyxen.errors import Conflict, PyxenError
from pyxen.image.store import ImageStore
from pyxen.paths import Roots
from pyxen.xend import settings as settings_file
from pyxen.xend.ballooning import Ballooning
from pyxen.xend.domains import Domains
from pyxen.xend.events import Events
from pyxen.xend.http.app import make_app
from pyxen.xend.life import Life
from pyxen.xend.log import open_log
from pyxen.xend.migration import Migration
from pyxen.xend.recover import recover
from pyxen.xend.store import Store


class _Server(uvicorn.Server):
    """uvicorn's server without its own signal handlers: xend has one for the whole process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def make_folders(roots: Roots) -> None:
    """State and run, closed to others; the domains' folders must be passable for the users they run as."""
    try:
        for folder, mode in (
            (roots.state, 0o711),
            (roots.run, 0o711),
            (roots.domains, 0o711),
            (roots.images, 0o755),
            (roots.kernels, 0o755),
        ):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(mode)
    except OSError as error:
        raise PyxenError(
            f"cannot use {error.filename}: {error.strerror}", hint="Set PYXEN_ROOT to a folder that you may write to."
        ) from error


@contextlib.contextmanager
def only_one(roots: Roots) -> Iterator[None]:
    """Hold the lock that says "xend runs here"; raises Conflict if another one does. Writes the pid file."""
    descriptor = os.open(roots.pidfile, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(descriptor, 32).decode(errors="replace").strip()
            raise Conflict(f"xend is already running (pid {pid})", hint="See: xend status") from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def listeners(roots: Roots, listen: str | None) -> list[socket.socket]:
    """The unix socket, readable by this user only, and a TCP one on loopback where one is asked for."""
    roots.socket.unlink(missing_ok=True)
    unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old_mask = os.umask(0o177)
    try:
        unix.bind(str(roots.socket))
    except OSError as error:
        raise PyxenError(
            f"cannot listen on {roots.socket}: {error.strerror or error}",
            hint="A socket's path may have at most 107 characters." if len(str(roots.socket)) > 107 else None,
        ) from error
    finally:
        os.umask(old_mask)
    unix.listen(256)
    unix.setblocking(False)
    return [unix] if listen is None else [unix, _tcp_listener(listen)]


def relocation(migration: Migration, address: str | None) -> asyncio.Task[None] | None:
    """Take in domains from other hosts at ``address``, until cancelled; None: nowhere."""
    if address is None:
        return None
    return asyncio.create_task(migration.incoming.serve(_tcp_listener(address)))


def _tcp_listener(place: str) -> socket.socket:
    address, _, port = place.rpartition(":")
    address = address.strip("[]")
    tcp = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        tcp.bind((address, int(port)))
    except OSError as error:
        tcp.close()
        raise PyxenError(f"cannot listen on {place}: {error.strerror}") from error
    tcp.listen(256)
    tcp.setblocking(False)
    return tcp


def make_token(path: Path) -> str:
    """The secret that TCP callers present; kept over restarts so that they needn't read it again."""
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        token = secrets.token_urlsafe(32)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(token + "\n")
        return token


async def serve(roots: Roots, *, listen: str | None = None, ready: int | None = None, foreground: bool = False) -> None:
    """Run xend until it is told to stop (SIGTERM, SIGINT). Writes a byte to ``ready`` when it answers."""
    make_folders(roots)
    with only_one(roots):
        settings = settings_file.load(roots.settings)
        log, ring = open_log(roots.log, level=settings.log_level, foreground=foreground)
        store = Store(roots.database)
        await store.open()
        first = int(await store.meta("events") or 0) + 1
        events = Events(first=first)
        inotify = Inotify()
        engines: list[Engine] = [QemuEngine(roots.state, inotify), XenEngine(roots.state, inotify)]
        life = Life(
            roots=roots,
            settings=settings,
            store=store,
            events=events,
            engines=engines,
            inotify=inotify,
            images=ImageStore(roots.images, roots.kernels),
            log=log,
        )
        migration = Migration(life)
        await recover(life, migration)
        if settings.balloon:
            life.spawn(Ballooning(life).run())
        listen = listen or settings.listen
        sockets = listeners(roots, listen)
        relocating = relocation(migration, settings.relocation)
        domains = Domains(life, ring, migration)
        app = make_app(
            domains,
            version=__version__,
            token=make_token(roots.token) if listen else None,
            log_path=roots.log,
        )
        server = _Server(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=2,
                ws="websockets-sansio",
                ws_per_message_deflate=False,
            )
        )
        loop = asyncio.get_running_loop()

        def stop() -> None:
            events.publish("xend-stopping")
            events.close()  # ends the streams that would otherwise keep the server waiting
            server.should_exit = True

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        gc.collect()
        gc.freeze()  # what is there now stays for good: looking through it would hold an order up now and then
        log.info("xend started", version=__version__, pid=os.getpid(), socket=str(roots.socket), listen=listen)
        events.publish("xend-started")
        if ready is not None:
            os.write(ready, b"1")
            os.close(ready)
        try:
            await server.serve(sockets=sockets)
        finally:
            log.info("xend stopping")
            if relocating is not None:
                relocating.cancel()
            await domains.snapshots.waiting.close()
            for live in life.registry.live.values():
                live.cancel()
                live.process.close()
                live.console.close("xend stopped")
            # A gap keeps sequence numbers rising even if the last ones were never written down.
            await store.set_meta("events", str(events.last + 1000))
            await store.close()
            inotify.close()
            roots.socket.unlink(missing_ok=True)
