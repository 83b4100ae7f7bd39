"""The image ``debian``: a small Debian on an ext4 root disk, with Debian's cloud kernel and a ramdisk that finds it.

No loop device, no mount and, for an ordinary user, no root: mmdebstrap and mkfs.ext4 work in user name spaces.
"""

from __future__ import annotations

import getpass
import io
import os
import re
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from pyxen.errors import InvalidRequest, Unavailable, Unsupported
from pyxen.image import ramdisk
from pyxen.image.command import need, run
from pyxen.image.debs import KernelFiles
from pyxen.image.files import write_file
from pyxen.image.recipe import FAST_START, Contents, Report

VERSION = 8
OPTIONS: Mapping[str, str] = {"password": "debian", "ssh_key": "", "size": "4G", "packages": ""}
CMDLINE: Final = f"root=LABEL=root ro quiet hostname=debian {FAST_START}"
"""xend puts the domain's own name after it; the last one counts."""

_PACKAGES: Final = (
    "systemd-sysv",
    "systemd-resolved",
    "udev",
    "dbus",
    "kmod",
    "iproute2",
    "iputils-ping",
    "procps",
    "less",
    "openssh-server",
)
_KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_HANDED_ON: Final = re.compile(r'(Acquire::(?:https?|Check-|Retries|ForceIPv)[^ ]*) "(.+)";')
_SIZE: Final = re.compile(r"[1-9][0-9]{0,4}[MG]")

_FILES: Final = {
    "etc/fstab": "LABEL=root / ext4 errors=remount-ro,noatime 0 1\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
    "etc/default/locale": "LANG=C.UTF-8\n",
    # Debian leaves a VCPU that is plugged in offline.
    "etc/udev/rules.d/70-vcpus.rules": 'SUBSYSTEM=="cpu", ACTION=="add", ATTR{online}=="0", ATTR{online}="1"\n',
    "etc/systemd/network/80-dhcp.network": "[Match]\nType=ether\n\n[Network]\nDHCP=yes\n",
    # Slow guests would wait for minutes until a network that is not there is given up.
    "etc/systemd/system/systemd-networkd-wait-online.service.d/any.conf": (
        "[Service]\nExecStart=\nExecStart=/lib/systemd/systemd-networkd-wait-online --any --timeout=20\n"
    ),
    "etc/systemd/system/ssh-host-key.service": (
        "[Unit]\nDescription=Make this machine's SSH host key\nBefore=ssh.service\n"
        "ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key\n\n"
        "[Service]\nType=oneshot\n"
        'ExecStart=/usr/bin/ssh-keygen -q -t ed25519 -N "" -C "" -f /etc/ssh/ssh_host_ed25519_key\n\n'
        "[Install]\nRequiredBy=ssh.service\n"
    ),
}


def check(options: Mapping[str, str]) -> None:
    """Refuse options that can't be, and hosts that lack a tool or, for an ordinary user, ids to build with."""
    if not options["password"] or not options["password"].isprintable():
        raise InvalidRequest("the option password is empty or has control characters in it")
    if not _SIZE.fullmatch(options["size"]):
        raise InvalidRequest(f"'{options['size']}' is no size for a root disk", hint="For example: size=4G")
    if not re.fullmatch(r"[a-z0-9.+, -]*", options["packages"]):
        raise InvalidRequest(f"'{options['packages']}' is no list of packages", hint="For example: packages=nginx,vim")
    if options["ssh_key"] and not re.fullmatch(r"(ssh|ecdsa|sk)-[^\x00-\x1f]+", options["ssh_key"]):
        raise InvalidRequest("the option ssh_key is not a public key", hint="It is one line, as in ~/.ssh/id_….pub.")
    for tool in ("mmdebstrap", "mkfs.ext4", "qemu-img"):
        need(tool)
    ramdisk.busybox()
    if os.geteuid() != 0:
        _check_ids()


def _check_ids() -> None:
    need("newuidmap")
    need("unshare")
    owners = {getpass.getuser(), str(os.geteuid())}
    for name in ("subuid", "subgid"):
        path = Path("/etc") / name
        lines = path.read_text().splitlines() if path.exists() else []
        if not any(line.split(":")[0] in owners for line in lines):
            user = getpass.getuser()
            raise Unsupported(
                f"{path} gives user {user} no ids to build with",
                hint=f"sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}",
            )


def build(folder: Path, scratch: Path, kernel: KernelFiles, options: Mapping[str, str], report: Report) -> Contents:
    """Make ``vmlinuz``, ``ramdisk`` and ``root.qcow2``."""
    release = kernel.modules.root.name
    shutil.copyfile(kernel.vmlinuz, folder / "vmlinuz")
    archive = ramdisk.start("disk-init", kernel.modules, ramdisk.DISK_MODULES)
    write_file(folder / "ramdisk", [archive.pack()])
    report("Collecting what is put on top of Debian", 0.1)
    extra = scratch / "extra.tar"
    _write_extra(extra, kernel.modules.root, options["ssh_key"])
    report("Installing Debian", 0.15)
    system = scratch / "root.tar"
    _bootstrap(system, extra, release, options)
    report("Making the root disk", 0.75)
    _make_disk(system, scratch, folder / "root.qcow2", options["size"])
    return Contents(kernel="vmlinuz", ramdisk="ramdisk", root_disk="root.qcow2", cmdline=CMDLINE)


_AGENT_UNIT: Final = f"""\
[Unit]
Description=The agent that xend speaks to
DefaultDependencies=no
After=systemd-udevd.service
Conflicts=shutdown.target
Before=shutdown.target

[Service]
ExecStart=/bin/sh {ramdisk.AGENT_FOLDER}/start-agent

[Install]
WantedBy=multi-user.target
"""


def _write_extra(path: Path, modules: Path, ssh_key: str) -> None:
    """A tar of what no package brings. It names no folders, so that those of the packages stay as they are."""
    texts = {name: (text.encode(), 0o644) for name, text in _FILES.items()}
    texts["etc/systemd/system/pyxen-agent.service"] = (_AGENT_UNIT.encode(), 0o644)
    texts |= {f"usr{ramdisk.AGENT_FOLDER}/{name}": file for name, file in ramdisk.agent_files().items()}
    if ssh_key:
        texts["root/.ssh/authorized_keys"] = (f"{ssh_key}\n".encode(), 0o600)
    with tarfile.open(path, "w") as tar:
        for name, (data, mode) in sorted(texts.items()):
            member = tarfile.TarInfo(name)
            member.mode = mode
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for file in sorted(modules.rglob("*")):
            if file.is_file() and not file.is_symlink():
                member = tar.gettarinfo(file, f"usr/lib/modules/{modules.name}/{file.relative_to(modules)}")
                member.uid = member.gid = 0
                member.uname = member.gname = "root"
                with file.open("rb") as content:
                    tar.addfile(member, content)


def _bootstrap(system: Path, extra: Path, release: str, options: Mapping[str, str]) -> None:
    """Let mmdebstrap make a root file system, as a tar."""
    root = os.geteuid() == 0
    suite, sources = _sources()
    packages = [*_PACKAGES, *re.split(r"[ ,]+", options["packages"].strip())]
    command: list[str | Path] = [
        "mmdebstrap",
        f"--mode={'root' if root else 'unshare'}",
        "--variant=minbase",
        "--format=tar",
        f"--include={','.join(filter(None, packages))}",
        *(f"--aptopt={option}" for option in _apt_options()),
        f"--customize-hook=tar-in {extra} /",
        f"--customize-hook={ramdisk.script('debian-customize').decode()}",
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        suite,
        system,
        *sources,
    ]
    # An ordinary user's name space can't see into that user's private folders, but into /tmp.
    temporary = {"TMPDIR": str(extra.parent)} if root else {}
    run(
        command,
        what="install Debian",
        env={"PYXEN_PASSWORD": options["password"], "PYXEN_RELEASE": release, **temporary},
    )


def _sources() -> tuple[str, list[str]]:
    """Debian's code name on this host, and a line for each place this host's apt has it from; no one else's."""
    suite = _os_release().get("VERSION_CODENAME", "")
    wanted = {suite, f"{suite}-updates", f"{suite}-security"}
    lines = []
    for uri, origin, release, component in _targets():
        if origin == "Debian" and release in wanted and component == "main":
            signed = f"[signed-by={_KEYRING}] " if _KEYRING.exists() else ""
            lines.append(f"deb {signed}{uri} {release} main")
    if not suite or not lines:
        raise Unavailable(
            f"apt on this host has no lists of Debian's packages (for '{suite or 'a release without name'}')",
            hint="Renew them: sudo apt-get update; on another distribution this image can't be built.",
        )
    return suite, list(dict.fromkeys(lines))


def _targets() -> Iterator[tuple[str, str, str, str]]:
    form = "$(REPO_URI)|$(ORIGIN)|$(RELEASE)|$(COMPONENT)"
    command = ["apt-get", "indextargets", "--format", form, "Created-By: Packages"]
    for line in run(command, what="find Debian's packages").splitlines():
        fields = line.split("|")
        if len(fields) == 4:
            yield fields[0], fields[1], fields[2], fields[3]


def _os_release() -> dict[str, str]:
    try:
        lines = Path("/etc/os-release").read_text().splitlines()
    except OSError:
        return {}
    return {key: value.strip('"') for key, equals, value in (line.partition("=") for line in lines) if equals}


def _apt_options() -> list[str]:
    """How this host's apt reaches its sources: proxies, certificates, checks of dates."""
    found = map(_HANDED_ON.fullmatch, run(["apt-config", "dump"], what="read apt's settings").splitlines())
    return [f'{match[1]} "{match[2]}"' for match in found if match]


def _make_disk(system: Path, scratch: Path, disk: Path, size: str) -> None:
    raw = scratch / "root.raw"
    script = ramdisk.script("make-root-disk").decode()
    command: list[str | Path] = ["sh", "-c", script, "sh", system, scratch / "tree", raw, size]
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    if os.geteuid() != 0:
        command = ["unshare", "--user", "--map-root-user", "--map-auto", "--", *command]
    run(command, what="make the root disk", env={"PATH": path})
    run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, disk], what="make the root disk")
