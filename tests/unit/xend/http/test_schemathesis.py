"""The application conforms to its own description, whatever is thrown at it.

``PYXEN_EXAMPLES`` raises the number of requests tried for each operation.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from pyxen.xend.http.app import make_app
from tests.unit.xend.http.conftest import over_unix
from tests.unit.xend.http.fake_core import FakeCore

EXAMPLES = int(os.environ.get("PYXEN_EXAMPLES", "10"))
_folder = tempfile.TemporaryDirectory(prefix="pyxen-schemathesis-")
_core = FakeCore(Path(_folder.name))
_core.events.close()  # so that streams of events end
_core.recipes = ["tiny"]  # one that ends
_core.add("web")
app = over_unix(make_app(_core, version="1", token=None, log_path=Path(_folder.name) / "xend.log"))
schema = schemathesis.openapi.from_asgi("/v1/openapi.json", app)


@schema.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_the_api_conforms(case: Any) -> None:
    case.call_and_validate(
        checks=[
            not_a_server_error,
            status_code_conformance,
            content_type_conformance,
            response_schema_conformance,
            negative_data_rejection,
            unsupported_method,
        ]
    )
