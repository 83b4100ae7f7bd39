"""Write ``docs/reference/`` from the code; with ``--check``, only say which pages are out of date."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

REFERENCE = Path(__file__).resolve().parents[1] / "docs" / "reference"
GENERATED = "<!-- made by `make docs`; change the code instead -->\n\n"


def pages() -> dict[str, str]:
    from pyxen.config.keys import reference_markdown as config
    from pyxen.xm.reference import reference_markdown as xm

    return {"xm.md": xm(), "config.md": config(), "api.md": api_page(), "sdk.md": sdk_page()}


def api_page() -> str:
    """The API: what api.py says of it, then each operation as OpenAPI describes it."""
    from pyxen import api
    from pyxen.xend.http.app import make_operations
    from pyxen.xend.http.openapi import describe_api

    document = describe_api(make_operations("", Path()), "")
    lines = [
        "# The HTTP API",
        "",
        document["info"]["description"],
        "",
        "```console",
        "$ curl --unix-socket /run/xend/xend.sock http://localhost/v1/domains",
        '$ curl -H "Authorization: Bearer $(cat /run/xend/token)" http://127.0.0.1:8000/v1/domains',
        "```",
        "",
        "The second needs `xend start --listen 127.0.0.1:8000`. The whole description, with every schema, is at",
        "`/v1/openapi.json`.",
        "",
        "```text",
        inspect.cleandoc(api.__doc__ or ""),
        "```",
    ]
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if method != "parameters":
                lines += _operation(method.upper(), path, operation)
    return GENERATED + "\n".join(lines) + "\n"


def _operation(method: str, path: str, operation: dict[str, Any]) -> list[str]:
    lines = ["", f"## {method} {path}", "", f"{operation.get('summary', '').rstrip('.')}."]
    for parameter in operation.get("parameters", ()):
        lines.append(f"- `{parameter['name']}` ({parameter['in']}): {parameter.get('description', '')}")
    for content in operation.get("requestBody", {}).get("content", {}).values():
        if reference := content.get("schema", {}).get("$ref"):
            lines += ["", f"Body: `{reference.rpartition('/')[2]}`."]
    answers = [code for code in operation["responses"] if code.startswith(("1", "2"))]
    errors = [code for code in operation["responses"] if code.startswith(("4", "5"))]
    return [*lines, "", f"Answers {', '.join(answers)}; errors {', '.join(errors)}."]


def sdk_page() -> str:
    """The Python client: each public call with its signature and what it says of itself."""
    from pyxen.client import Client, Console

    lines = [
        "# The Python SDK",
        "",
        "```python",
        "from pyxen.client import Client",
        "",
        "with Client() as xend:",
        "    for domain in xend.domains():",
        "        print(domain.name, domain.power_state)",
        "```",
        "",
        "`AsyncClient` has the same calls, to be awaited. Every call raises a `PyxenError` of `pyxen.errors`.",
    ]
    for each in (Client, Console):
        lines += ["", f"## {each.__name__}", "", inspect.getdoc(each) or ""]
        for name, member in vars(each).items():
            if name.startswith("_") or not inspect.isfunction(member):
                continue
            signature = str(inspect.signature(member)).replace("'", "").replace("(self, ", "(").replace("(self)", "()")
            lines += ["", f"### {name}{signature}", "", inspect.getdoc(member) or ""]
    return GENERATED + "\n".join(lines).rstrip() + "\n"


def main() -> None:
    stale = []
    for name, text in pages().items():
        path = REFERENCE / name
        if not path.exists() or path.read_text() != text:
            stale.append(name)
            if "--check" not in sys.argv:
                REFERENCE.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
    if "--check" in sys.argv and stale:
        sys.exit(f"Error: out of date: {', '.join(stale)}\nRun: make docs")


if __name__ == "__main__":
    main()
