"""The reference page of a domain's file, made from the tables of keys."""

from __future__ import annotations

from collections.abc import Iterable

from pyxen.config.classic import ALIASES, REASONS, WITHOUT_EFFECT
from pyxen.config.keys import KEYS, Key
from pyxen.config.model import DomainConfig
from pyxen.config.render import literal

_INTRODUCTION = """\
# A domain's file

`xm create FILE` reads lines `KEY = VALUE`, as xm and xl do:

```python
# comments start with #
vmid = 3
name = "vm%d" % vmid            # text: put together with + and %
memory = 2 * 256                # numbers: + - * // %
disk = ["file:/srv/vm%d.img,xvda,w" % vmid]
vif = [""]                      # lists may go over several lines
```

The file is data: nothing in it is executed, so `import`, `if`, loops and function calls are refused. A name may be
used below the line that assigns it. Words `KEY=VALUE` after the file's name beat the file:
`xm create web.cfg memory=512 disk=file:/srv/other.img,xvda,w`. Relative paths are below the folder in which `xm` runs.
"""

_FORMS = """\
## Disks

Each entry of `disk` is one text:

| form | example |
| --- | --- |
| xm: `KIND:TARGET,VDEV,ACCESS` | `file:/srv/web.img,xvda,w`, `phy:vg0/web,xvda,w`, `tap:qcow2:/srv/web.qcow2,xvda,w` |
| xl: `TARGET,FORMAT,VDEV,ACCESS` | `/srv/web.qcow2,qcow2,xvda,rw` |
| xl, by name; `target=` is last and may hold commas | `format=qcow2,vdev=xvda,access=rw,target=/srv/web.qcow2` |
| a CD-ROM drive, and an empty one | `file:/srv/cd.iso,hdc:cdrom,r`, `,hdc:cdrom,r` |

FORMAT is `raw`, `qcow2`, or nothing for what the file turns out to be; `file:` and `phy:` are raw. ACCESS is `r`, `w`,
or `w!` for a disk that other domains write to as well. VDEV is `xvda`, `vda`, `sda` or `hda`, and so on. Words such as
`rate=10MB/s` and `iops=200` are the most that the disk reads and writes, and the most requests, in a second.

## CPUs

`cpus` and `cpus_soft` are one list for all VCPUs, or a list of such lists, one for each VCPU: `"0-3,^1"`, `"all"`,
`"nodes:0"` (the CPUs of a NUMA node), `["0", "1"]`. Terms are joined with commas, `^` takes CPUs out again. CPUs that
the host lacks are passed over as long as one is there.

## Network interfaces

Each entry of `vif` is one text of `KEY=VALUE` words joined with commas; `""` is an interface with defaults:

| key | meaning |
| --- | --- |
| `mac` | the address; not set: one below 00:16:3e that stays with the domain |
| `bridge` | the host's bridge to be on; not set: a user-mode network of the domain's own |
| `vifname` | the interface's name on the host |
| `rate` | the most it sends: `10MB/s`, `80Mb/s` |
| `type` | `ioemu` for an emulated card (hvm), `vif` for a paravirtual one |
| `model` | the emulated card: `e1000`, `rtl8139`, … |
| `devid` | its number among the domain's interfaces; not set: the lowest that is free |
| `forward` | ports of the host that lead to the guest: `2222:22`, `udp:5353:53`, `0.0.0.0:80:80`, joined with `+` |
"""


_SHARES = """\
## Folders

Each entry of `p9` is one text of `KEY=VALUE` words joined with commas. In the guest:
`mount -t 9p -o trans=virtio,version=9p2000.L TAG /mnt`. QEMU has them; the Xen engine has no 9pfs yet.

| key | meaning |
| --- | --- |
| `tag` | what the guest mounts it by |
| `path` | the folder |
| `readonly` | `1`: the guest can't change anything in it |
| `security_model` | xl's; there is `none` only |

The guest gets no more than the domain's process may have. Where xend runs as root, that is a user of the domain's own:
it reads what everybody may read, and to a folder that isn't `readonly` it is that folder's owner (by an idmapped mount,
which the file system has to support). Elsewhere it is xend's user.
"""


_HOST_DEVICES = """\
## Devices of the host

Each entry of `pci` is one text: `0000:03:00.0`, `03:00.0@05` (in the guest's slot 5), `03:00.0,seize=1` (taken from its
driver, where `xm pci-assignable-add` hasn't done so). Of Xen's options `permissive`, `msitranslate`, `power_mgmt` and
`rdm_policy` may be there as long as they ask for nothing: VFIO has no such choice.

Each entry of `usbdev` is one text:

| form | what the guest gets |
| --- | --- |
| `hostbus=1,hostaddr=3`, `host:1.3` | the host's device at this place; its address changes when it is plugged in anew |
| `host:046d:c077` | the first of the host's devices of this vendor and product that no domain has |
| `redir=HOST:PORT`, `redir=unix:PATH` | a device elsewhere, by usbredir |
| `disk:/srv/stick.img` | an image as a USB stick; `readonly=1` and `format=qcow2` come before it |

`devid=N` is its number for `xm usb-detach`. Only hvm domains, which QEMU runs, have either; see [HVM](../hvm.md).
"""


def reference_markdown() -> str:
    """The page, in Markdown."""
    parts = [_INTRODUCTION]
    for group in dict.fromkeys(key.group for key in KEYS.values()):
        rows = (_row(key) for key in KEYS.values() if key.group == group)
        parts.append(f"## {group}\n\n" + _table(("key", "meaning", "default", "example"), rows))
    parts += [_FORMS, _SHARES, _HOST_DEVICES]
    aliases = ((f"`{key}`", meaning) for key, meaning in ALIASES.items())
    parts.append("## Other names\n\nUnderstood, and turned into:\n\n" + _table(("key", "instead"), aliases))
    parts.append("## Keys without effect\n\nFiles with these keys load; a warning says so.\n\n" + _idle())
    return "\n".join(parts)


def _row(key: Key) -> tuple[str, ...]:
    fields = dict(zip(DomainConfig.__struct_fields__, _defaults(), strict=True))
    return f"`{key.name}`", key.summary, fields[key.name], f"`{key.example}`"


def _defaults() -> list[str]:
    usual = DomainConfig(name="x")
    values = (None if name == "name" else getattr(usual, name) for name in DomainConfig.__struct_fields__)
    return ["" if value in (None, (), "") else f"`{literal(value)}`" for value in values]


def _idle() -> str:
    groups: dict[str, list[str]] = {}
    for key, about in WITHOUT_EFFECT.items():
        reason = f" ({REASONS[key]})" if key in REASONS else ""
        groups.setdefault(about, []).append(f"`{key}`{reason}")
    return _table(("about", "keys"), ((about, ", ".join(keys)) for about, keys in groups.items()))


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
