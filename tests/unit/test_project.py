"""The project's own promises: pages that are fresh, links that lead somewhere, locks that agree, no host names."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_the_reference_is_what_the_code_says() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/docs.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("lock", ["runtime.txt", "dev.txt"])
def test_every_dependency_is_locked_with_a_hash(lock: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = set(project["project"]["dependencies"])
    if lock == "dev.txt":
        wanted |= set(project["dependency-groups"]["dev"])
    text = (ROOT / "requirements" / lock).read_text()
    locked = dict(re.findall(r"^([\w.-]+)==([\w.]+)", text, re.M))
    for requirement in wanted:
        name, _, least = requirement.partition(">=")
        name = name.replace(".", "-")
        assert name in locked, f"{name} is not in {lock}; run make lock"
        assert tuple(map(int, locked[name].split("."))) >= tuple(map(int, least.split(".")))
    assert len(re.findall(r"--hash=sha256:", text)) >= len(locked)


def test_no_file_names_a_package_registry() -> None:
    # Put together here, so that this file doesn't name one either.
    hosts = [
        ".".join(parts)
        for parts in (("pypi", "org"), ("deb", "debian"), ("registry", "npmjs"), ("pythonhosted", "org"))
    ]
    for path in tracked():
        text = path.read_bytes().decode(errors="replace")
        for host in hosts:
            assert host not in text, f"{path.relative_to(ROOT)} names {host}"


def test_both_readmes_have_the_same_commands() -> None:
    def commands(name: str) -> list[str]:
        return [line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines() if line.startswith("$ ")]

    assert commands("README.md") == commands("README.zh.md")


def test_every_dependency_has_its_line() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    page = (ROOT / "docs" / "dependencies.md").read_text()
    for requirement in project["project"]["dependencies"] + project["dependency-groups"]["dev"]:
        name = requirement.partition(">=")[0]
        assert re.search(rf"\b{re.escape(name.removeprefix('pytest-'))}\b", page), name


def test_modules_stay_readable() -> None:
    for path in (ROOT / "src").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 600, f"{path.relative_to(ROOT)} has a second job"


def test_setup_without_root_prints_the_install_command_and_stops(tmp_path: Path) -> None:
    for name, answer in (("dpkg-query", "exit 1"), ("id", "echo 1000")):
        fake = tmp_path / name
        fake.write_text(f"#!/bin/sh\n{answer}\n")
        fake.chmod(0o755)
    done = subprocess.run(
        [ROOT / "scripts" / "setup"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Error: these system packages are missing: qemu-system-x86 ")
    assert "sudo apt-get install -y --no-install-recommends qemu-system-x86 " in done.stderr
