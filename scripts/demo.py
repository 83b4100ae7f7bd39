"""What ``make run`` does: from nothing to a Debian kernel booted as a domain, through xend and xm as a user would.

Every step that has been done before is kept: a second run finds xend up, the image built and perhaps the domain
running, and takes seconds.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

XM = Path(sys.executable).with_name("xm")
XEND = Path(sys.executable).with_name("xend")
NAME = "demo"
PROMPT = b":~# "
ANSWER = b"GNU/Linux"
BOOT_LIMIT_S = 120


def step(text: str) -> None:
    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
    print(f"{bold}==> {text}{plain}", flush=True)


def run(*words: str | Path) -> None:
    """Run a command in sight; end with its status if it fails."""
    status = subprocess.run([str(word) for word in words], check=False).returncode
    if status:
        sys.exit(status)


def answer(*words: str | Path) -> str | None:
    """A command's output, or None if it failed."""
    done = subprocess.run([str(word) for word in words], check=False, capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else None


def show_boot() -> None:
    """The console from the first line to the prompt, then ``uname -a`` typed into it."""
    from pyxen.client import Client

    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(BOOT_LIMIT_S)
    with Client() as xend, xend.console(NAME) as console:
        seen = b""
        typed = False
        for data in console:
            sys.stdout.buffer.write(data)
            sys.stdout.flush()
            seen += data
            if typed and PROMPT in seen.partition(ANSWER)[2]:
                break
            if not typed and PROMPT in seen:
                # What came before was the boot, or an earlier visit: only what follows answers this question.
                seen, typed = b"", True
                console.write(b"uname -a\n")
    signal.alarm(0)
    print(flush=True)


def _too_long(number: int, frame: object) -> NoReturn:
    sys.exit(f"\nError: no answer on the console within {BOOT_LIMIT_S} s\nSee what xend says: {XM} log")


def main() -> None:
    started = time.monotonic()
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    step("xend, the daemon that manages domains")
    run(XEND, "start")
    step("the image 'tiny': Debian's own kernel and a busybox ramdisk")
    run(XM, "image", "build", "tiny")
    state = answer(XM, "domstate", NAME)
    if state is None:
        step(f"a domain: xm create image=tiny name={NAME}")
        run(XM, "create", "-q", "image=tiny", f"name={NAME}", "memory=256", "vif=", "extra=loglevel=7")
    else:
        step(f"the domain '{NAME}' is there already")
    step("its console")
    show_boot()
    step("xm list")
    run(XM, "list")
    took = time.monotonic() - started
    xm = XM if shutil.which("xm") != str(XM) else Path("xm")
    print(f"""
Ready in {took:.1f} s. Next:

  {xm} console {NAME}        its console; Ctrl-] leaves
  {xm} list                what runs here
  {xm} shutdown -w {NAME}    power it off
  {xm} help                everything else
  source .venv/bin/activate   makes that just: xm …""")


if __name__ == "__main__":
    main()
