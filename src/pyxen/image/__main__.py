"""Build an image in a process of its own: ``python -m pyxen.image build NAME --images DIR --kernels DIR``, or get a
kernel ready for ``xm run``: ``python -m pyxen.image kernel NAME --kernels DIR``.

Each line on standard output is an api.Progress; the last has ``done``, with the image or with an error.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

import msgspec

from pyxen import api
from pyxen.errors import InvalidRequest, PyxenError
from pyxen.image import sandbox
from pyxen.image.store import ImageStore

_STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 when the image is there, 1 after an error, 143 when told to stop."""
    options = _parser().parse_args(arguments)
    # A group of our own, so that the tools that are running can be reached all at once.
    os.setpgrp()
    for number in _STOPPING:
        signal.signal(number, _stop)
    try:
        return _carry_out(options)
    finally:
        if signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:
            os.killpg(0, signal.SIGTERM)  # again, for a tool that was just being started when we were told to stop


def _carry_out(options: argparse.Namespace) -> int:
    try:
        image = options.act(options)
    except PyxenError as error:
        problem = api.Problem(type(error).__name__, error.status, str(error), code=error.code, hint=error.hint)
        _print(api.Progress("Failed", done=True, error=problem))
        return 1
    _print(api.Progress("Done", 1.0, done=True, image=image))
    return 0


def _build(options: argparse.Namespace) -> api.Image:
    store = ImageStore(options.images.absolute(), options.kernels.absolute())
    return store.build(options.name, dict(map(_option, options.option)), options.force, _print)


def _prepare_kernel(options: argparse.Namespace) -> None:
    sandbox.prepare(options.name, options.kernels.absolute(), lambda step: _print(api.Progress(step)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pyxen.image")
    commands = parser.add_subparsers(required=True, metavar="build|kernel")
    build = commands.add_parser("build", help="build an image")
    build.set_defaults(act=_build)
    build.add_argument("--images", type=Path, required=True, metavar="DIR")
    kernel = commands.add_parser("kernel", help="get a kernel ready for xm run")
    kernel.set_defaults(act=_prepare_kernel)
    for command in (build, kernel):
        command.add_argument("name")
        command.add_argument("--kernels", type=Path, required=True, metavar="DIR")
    build.add_argument("--force", action="store_true", help="build again though it is there")
    build.add_argument("--option", action="append", default=[], metavar="KEY=VALUE")
    return parser


def _option(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise InvalidRequest(f"option '{text}' has no value", hint="Write it as KEY=VALUE.")
    return key, value


def _print(progress: api.Progress) -> None:
    line = msgspec.json.encode(progress) + b"\n"
    try:
        os.write(1, line)
    except BrokenPipeError:
        _stop(signal.SIGPIPE, None)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    """Stop the tools and leave through the cleaning up of all that is under way; a second signal can't cut it short."""
    for each in _STOPPING:
        signal.signal(each, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
