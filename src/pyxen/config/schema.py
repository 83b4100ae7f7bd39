"""The JSON schema of a domain's description, with what the keys mean."""

from __future__ import annotations

from typing import Any

import msgspec

from pyxen.config.keys import KEYS, expected
from pyxen.config.model import DomainConfig


def schema() -> dict[str, Any]:
    """JSON schema (2020-12) of DomainConfig; the parts are below ``$defs``."""
    document = msgspec.json.schema(DomainConfig)
    definitions: dict[str, dict[str, Any]] = document["$defs"]
    for name, described in definitions["DomainConfig"]["properties"].items():
        described["description"] = KEYS[name].summary
    for struct, path in (("Disk", "disk"), ("Vif", "vif"), ("Forward", "vif.forward")):
        for name, described in definitions[struct]["properties"].items():
            described["description"] = expected(f"{path}.{name}")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **document}
