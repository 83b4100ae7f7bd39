"""Turns classic keys into those of the model: ``builder``, ``bios``, ``vfb``, ``restart``, ``ip`` and their like.

Each classic key is taken out of the settings; what it means goes to the model's key, at the classic key's place,
unless the file sets that key itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, TypeVar

from pyxen.config.classic import ALIASES
from pyxen.config.coerce import Context, coerce
from pyxen.config.fold import Value
from pyxen.config.keys import Key, Kind
from pyxen.config.words import Warn, shown, unknown
from pyxen.config.xmfile import Setting
from pyxen.errors import ConfigError

Settings: TypeAlias = dict[str, Setting]
T = TypeVar("T")

_BUILDERS = {"hvm": "hvm", "linux": "pvh", "generic": "pvh"}
_FIRMWARES = {"seabios": "bios", "rombios": "bios", "bios": "bios", "ovmf": "uefi", "uefi": "uefi"}
_RESTART = {
    "always": ("restart", "restart", "restart"),
    "onreboot": ("destroy", "restart", "destroy"),
    "never": ("destroy", "destroy", "destroy"),
}
_NO_NFS = "127.0.255.255"
"""What xm wrote in ``ip=`` where there was no NFS server."""
_NETWORK = ("ip", "nfs_server", "gateway", "netmask", "hostname", "interface", "dhcp")


def translate(settings: Settings, warn: Warn) -> Settings:
    """The settings without classic keys. Raises ConfigError, with the place."""
    result = {key: it for key, it in settings.items() if key not in ALIASES or it.value not in (None, "")}
    for key, step in _STEPS.items():
        if (setting := result.get(key)) is not None:
            try:
                step(key, setting, result, warn)
            except ConfigError as error:
                raise setting.error(error.message, key=key, hint=error.hint) from None
    _network(result, warn)
    return result


def _text(key: str, setting: Setting) -> str:
    if isinstance(setting.value, str):
        return setting.value.strip()
    raise setting.error(f"{key} must be a text in quotes", key=key)


def _flag(key: str, setting: Setting) -> bool:
    described = Key(key, "", Kind.FLAG, "0 or 1", "", f"{key} = 1")
    return bool(coerce(described, setting.value, Context(None, lambda warning: None)))


def _choice(key: str, setting: Setting, choices: dict[str, T]) -> T:
    word = _text(key, setting).lower()
    if word not in choices:
        raise setting.error(f"{key} must be one of {', '.join(choices)}, not {shown(word)}", key=key)
    return choices[word]


def _type(key: str, setting: Setting, settings: Settings, warn: Warn) -> None:
    if isinstance(setting.value, str) and setting.value.strip().lower() == "pv":
        raise setting.error(
            'type = "pv" needs a guest kernel in ring 1 under Xen\'s classic ABI, which pyxen does not have',
            key=key,
            hint='write type = "pvh": the same Linux kernel (4.11 or later) boots with it',
        )


def _builder(key: str, setting: Setting, settings: Settings, warn: Warn) -> None:
    meant = _choice(key, setting, _BUILDERS)
    del settings[key]
    chosen = settings.setdefault("type", setting._replace(value=meant))
    if chosen.value != meant:
        warn(f"{setting.place}: builder is overruled by type")


def _on_shutdown(key: str, setting: Setting, settings: Settings, warn: Warn) -> None:
    del settings[key]
    settings.setdefault("on_poweroff", setting)


def _cap(key: str, setting: Setting, settings: Settings, warn: Warn) -> None:
    del settings[key]
    settings.setdefault("cpu_cap", setting)


def _restart(key: str, setting: Setting, settings: Settings, warn: Warn) -> None:
    word = _text(key, setting)
    if word not in _RESTART:
        raise setting.error(f"restart must be one of {', '.join(_RESTART)}, not {shown(word)}", key=key)
    del settings[key]
    for event, action in zip(("on_poweroff", "on_reboot", "on_crash"), _RESTART[word], strict=True):
        settings.setdefault(event, setting._replace(value=action))


def _firmware(key: str, setting: Setting, settings: Settings, warn: Warn) -> None:
    meant = setting._replace(value=_choice(key, setting, _FIRMWARES))
    if key == "firmware":
        settings[key] = meant
    else:
        del settings[key]
        settings.setdefault("firmware", meant)


def _screen(key: str, setting: Setting, settings: Settings, warn: Warn) -> None:
    del settings[key]
    if _flag(key, setting):
        settings.setdefault("vga", setting._replace(value="none" if key == "nographic" else "stdvga"))


def _vnclisten(key: str, setting: Setting, settings: Settings, warn: Warn) -> None:
    address, colon, display = str(setting.value).partition(":")
    if colon and display:
        settings[key] = setting._replace(value=address)
        settings.setdefault("vncdisplay", setting._replace(value=display))


def _vfb(key: str, setting: Setting, settings: Settings, warn: Warn) -> None:
    del settings[key]
    entries = [setting.value] if isinstance(setting.value, str) else setting.value
    if not isinstance(entries, list | tuple):
        raise setting.error("vfb must be a list such as ['vnc=1,vnclisten=127.0.0.1']", key=key)
    for entry in entries:
        if not isinstance(entry, str):
            raise setting.error("vfb must be a list of texts such as ['vnc=1,vnclisten=127.0.0.1']", key=key)
        for name, value in _pairs(entry, setting):
            if name == "type":
                name, value = value, "1"
            if name in ("vnc", "vnclisten", "vncdisplay"):
                settings.setdefault(name, setting._replace(value=value))
            elif name not in _VFB_REST:
                warn(f"{setting.place}: vfb: {unknown('option', name, ['vnc', 'vnclisten', 'vncdisplay'])}")
    if listen := settings.get("vnclisten"):
        _vnclisten("vnclisten", listen, settings, warn)


_VFB_REST = (
    "sdl",
    "vncunused",
    "vncpasswd",
    "display",
    "xauthority",
    "opengl",
    "keymap",
    "serial",
    "monitor",
    "videoram",
)


def _pairs(entry: str, setting: Setting) -> list[tuple[str, str]]:
    pairs = []
    for word in filter(None, (part.strip() for part in entry.split(","))):
        name, equals, value = word.partition("=")
        if not equals:
            raise setting.error(f"vfb: {shown(word)} should be a pair, separated by an equals sign", key="vfb")
        pairs.append((name.strip(), value.strip()))
    return pairs


def _kernel(key: str, setting: Setting, settings: Settings, warn: Warn) -> None:
    """hvmloader, which xm wanted as an HVM domain's kernel, is a part of Xen's firmware."""
    if isinstance(setting.value, str) and setting.value.rpartition("/")[2] == "hvmloader":
        del settings[key]
        warn(f"{setting.place}: hvmloader is not needed; an HVM domain starts from its firmware")


def _network(settings: Settings, warn: Warn) -> None:
    """The kernel's ``ip=`` and ``nfsroot=`` from xm's keys, before ``extra``, unless they are there."""
    taken = {key: settings.pop(key) for key in (*_NETWORK, "nfs_root") if key in settings}
    if not taken:
        return
    values = {key: _plain(key, setting) for key, setting in taken.items()}
    dhcp = values.get("dhcp", "off")
    dhcp = "off" if dhcp in ("", "0", "off", "no", "False") else "dhcp"
    given = " ".join(str(settings[key].value) for key in ("cmdline", "extra") if key in settings)
    words: list[str] = []
    first = next(iter(taken.values()))
    if (values.get("ip") or dhcp != "off") and "ip=" not in given:
        defaults = {"nfs_server": _NO_NFS, "interface": "eth0"}
        parts = {key: values.get(key) or defaults.get(key, "") for key in _NETWORK} | {"dhcp": dhcp}
        words.append("ip=" + ":".join(parts[key] for key in _NETWORK))
    elif not values.get("ip") and dhcp == "off" and any(values.get(key) for key in ("gateway", "netmask", "hostname")):
        warn(f"{first.place}: gateway, netmask and hostname have no effect without ip or dhcp")
    if values.get("nfs_root"):
        if not values.get("nfs_server"):
            raise taken["nfs_root"].error("nfs_root needs nfs_server too", key="nfs_root")
        words.append(f"nfsroot={values['nfs_server']}:{values['nfs_root']}")
    extra = settings.get("extra")
    if words:
        rest = [extra.value] if extra and isinstance(extra.value, str) and extra.value else []
        settings["extra"] = (extra or first)._replace(value=" ".join([*words, *rest]))


def _plain(key: str, setting: Setting) -> str:
    value: Value = setting.value
    if value is None or value is False:
        return ""
    if isinstance(value, str | int):
        text = str(value).strip()
        if not any(character.isspace() for character in text):
            return text
    raise setting.error(f"{key} must be one word", key=key)


def _profile(key: str, setting: Setting, settings: Settings, warn: Warn) -> None:
    """What a kind of system wants, where the file doesn't say otherwise."""
    for name, value in _choice(key, setting, _PROFILES).items():
        settings.setdefault(name, setting._replace(value=value))
    del settings[key]
    disks = settings.get("disk", setting._replace(value=[]))
    listed = [disks.value] if isinstance(disks.value, str) else disks.value
    if isinstance(listed, list | tuple) and not any(_DRIVERS in str(disk) for disk in listed):
        settings["disk"] = disks._replace(value=[*listed, f",{_DRIVERS}:cdrom,r"])


def _usbdevice(key: str, setting: Setting, settings: Settings, warn: Warn) -> None:
    """xm's ``usbdevice`` also named devices of the host: ``host:1.3``, ``host:046d:c077``."""
    words = [setting.value] if isinstance(setting.value, str) else setting.value
    if not isinstance(words, list | tuple):
        return
    moved = [word for word in words if isinstance(word, str) and word.strip().lower().startswith(("host:", "disk:"))]
    if not moved:
        return
    settings[key] = setting._replace(value=[word for word in words if word not in moved])
    there = settings.get("usbdev", setting._replace(value=[]))
    listed = [there.value] if isinstance(there.value, str) and there.value else there.value or []
    if isinstance(listed, list | tuple):
        settings["usbdev"] = there._replace(value=[*listed, *moved])


def _secure_boot(key: str, setting: Setting, settings: Settings, warn: Warn) -> None:
    if _flag(key, setting):
        settings.setdefault("firmware", setting._replace(value="uefi"))
        settings.setdefault("hdtype", setting._replace(value="ahci"))


_DRIVERS = "hdd"
_PROFILES: dict[str, dict[str, Value]] = {
    "windows": {
        "type": "hvm",
        "hdtype": "ahci",
        "firmware": "uefi",
        "tpm": 1,
        "viridian": 1,
        "localtime": 1,
        "vnc": 1,
        "usbdevice": ["tablet"],
    },
}


_STEPS: dict[str, Callable[[str, Setting, Settings, Warn], None]] = {
    "profile": _profile,
    "secure_boot": _secure_boot,
    "type": _type,
    "builder": _builder,
    "on_shutdown": _on_shutdown,
    "restart": _restart,
    "cap": _cap,
    "firmware": _firmware,
    "bios": _firmware,
    "nographic": _screen,
    "stdvga": _screen,
    "vnclisten": _vnclisten,
    "vfb": _vfb,
    "kernel": _kernel,
    "usbdevice": _usbdevice,
}
