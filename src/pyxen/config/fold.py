"""The values that a domain's file may compute: constants, and +, -, *, //, % of them.

Nothing is executed. A tree of Python's own grammar is walked against a list of allowed nodes, and every result is
bounded, so that no file can take more than a few MiB of memory or run for long.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from typing import TypeAlias

from pyxen.config.words import cut

Value: TypeAlias = "str | int | float | bool | list[Value] | tuple[Value, ...] | None"

MAX_TEXT = 64 * 1024
"""Characters in one text."""
MAX_ITEMS = 1024
"""Items in one list, those of lists within it counted."""
MAX_NESTING = 16
"""Lists within lists."""
MAX_DEPTH = 150
"""Operators and brackets of one expression within each other."""
MAX_CHARACTERS = 8 * 1024 * 1024
"""Characters and items that all values of a file may make up, those in between counted."""

_CONVERSION = re.compile(r"%(?:[-+ #0]*+(?P<width>[0-9]*+)(?:\.(?P<precision>[0-9]*+))?+[diouxXsrfeEgGc]|%)")
_MAX_WIDTH = 1000


class Refused(Exception):
    """An expression that is not allowed, and its node for the place."""

    def __init__(self, node: ast.expr, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.node = node
        self.message = message
        self.hint = hint


_WORDS: dict[type[ast.expr], str] = {
    ast.Call: "a function call",
    ast.Attribute: "an attribute",
    ast.Subscript: "an index",
    ast.JoinedStr: "an f-string",
    ast.Dict: "a dictionary",
    ast.Set: "a set",
    ast.Lambda: "a function",
    ast.IfExp: "a condition",
    ast.Compare: "a comparison",
    ast.BoolOp: "a condition",
    ast.ListComp: "a loop",
    ast.SetComp: "a loop",
    ast.DictComp: "a loop",
    ast.GeneratorExp: "a loop",
    ast.NamedExpr: "an assignment within a value",
    ast.Starred: "a *",
}
_HINTS: dict[type[ast.expr], str] = {
    ast.JoinedStr: 'put text together with % or +: "vm%d" % number',
}
_NEVER_RUN = "a domain's file is data: values are texts, numbers and lists, put together with + or %"

_BOOLEANS = {"true": "True", "yes": "True", "on": "True", "false": "False", "no": "False", "off": "False"}


class Folder:
    """Computes the values of one file; ``names`` are the variables assigned so far."""

    def __init__(self, names: Mapping[str, Value]) -> None:
        self._names = names
        self._spent = 0
        self.used: set[str] = set()
        """The names that some value referred to."""

    def fold(self, node: ast.expr, depth: int = 0) -> Value:
        """The value of an expression. Raises Refused."""
        if depth > MAX_DEPTH:
            raise Refused(node, "this is nested too deeply")
        if isinstance(node, ast.Constant):
            return self._bounded(node, _constant(node))
        if isinstance(node, ast.Name):
            return self._lookup(node)
        if isinstance(node, ast.List | ast.Tuple):
            items = [self.fold(item, depth + 1) for item in node.elts]
            return self._bounded(node, items if isinstance(node, ast.List) else tuple(items))
        if isinstance(node, ast.UnaryOp):
            return self._unary(node, self.fold(node.operand, depth + 1))
        if isinstance(node, ast.BinOp):
            return self.combine(node, node.op, self.fold(node.left, depth + 1), self.fold(node.right, depth + 1))
        word = _WORDS.get(type(node), "this kind of expression")
        raise Refused(node, f"{word} is not allowed here", _HINTS.get(type(node), _NEVER_RUN))

    def combine(self, node: ast.expr, operator: ast.operator, left: Value, right: Value) -> Value:
        """``left OPERATOR right``, for messages at ``node``. Raises Refused."""
        compute = _OPERATORS.get(type(operator))
        if compute is None:
            raise Refused(node, "this operator is not allowed here", _NEVER_RUN)
        return self._bounded(node, compute(node, left, right))

    def _lookup(self, node: ast.Name) -> Value:
        if node.id in self._names:
            self.used.add(node.id)
            return self._bounded(node, self._names[node.id])
        if boolean := _BOOLEANS.get(node.id):
            raise Refused(node, f"{node.id} is not a value", f"write {boolean}, or 1 or 0")
        raise Refused(node, f"{cut(node.id)} is not defined above", f'for the text, put it in quotes: "{cut(node.id)}"')

    def _unary(self, node: ast.UnaryOp, value: Value) -> Value:
        if isinstance(value, int | float) and not isinstance(value, bool):
            if isinstance(node.op, ast.USub):
                return self._bounded(node, -value)
            if isinstance(node.op, ast.UAdd):
                return value
        raise Refused(node, "this operator is not allowed here", _NEVER_RUN)

    def _bounded(self, node: ast.expr, value: Value) -> Value:
        items, characters, nesting = _extent(value)
        if items > MAX_ITEMS:
            raise Refused(node, f"this list has more than {MAX_ITEMS} items")
        if nesting > MAX_NESTING:
            raise Refused(node, f"lists are nested more than {MAX_NESTING} deep")
        if isinstance(value, str):
            _check_text(node, value)
        elif isinstance(value, int) and not -(2**63) <= value < 2**64:
            raise Refused(node, "this number does not fit in 64 bits")
        self._spent += 1 + items + characters
        if self._spent > MAX_CHARACTERS:
            raise Refused(node, f"the values up to here take more than {MAX_CHARACTERS} characters")
        return value


def _constant(node: ast.Constant) -> Value:
    value = node.value
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, bytes):
        raise Refused(node, "bytes are not allowed here", "leave out the b before the quote")
    raise Refused(node, "this kind of value is not allowed here", _NEVER_RUN)


def _check_text(node: ast.expr, text: str) -> None:
    if len(text) > MAX_TEXT:
        raise Refused(node, f"this text has more than {MAX_TEXT} characters")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Refused(node, "this text holds half a surrogate pair, which is no character") from None


def _extent(value: Value) -> tuple[int, int, int]:
    """Items below a value (those within its lists counted), characters, and how deep its lists are nested."""
    if isinstance(value, str):
        return 0, len(value), 0
    if not isinstance(value, list | tuple):
        return 0, 0, 0
    items = characters = depth = 0
    for item in value:
        below, length, deep = _extent(item)
        items += 1 + below
        characters += length
        depth = max(depth, deep)
    return items, characters, depth + 1


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _mismatch(node: ast.expr, symbol: str, left: Value, right: Value) -> Refused:
    message = f"{_kind(left)} {symbol} {_kind(right)} has no meaning"
    hint = 'make text of a number with %: "vm%d" % number' if isinstance(left, str) and _is_number(right) else None
    return Refused(node, message, hint)


def _kind(value: Value) -> str:
    if value is None or isinstance(value, bool):
        return str(value)
    if isinstance(value, str):
        return "text"
    return "a number" if isinstance(value, int | float) else "a list"


def _add(node: ast.expr, left: Value, right: Value) -> Value:
    if isinstance(left, str) and isinstance(right, str):
        return left + right
    if isinstance(left, list) and isinstance(right, list):
        return left + right
    if isinstance(left, tuple) and isinstance(right, tuple):
        return left + right
    return _arithmetic(node, "+", left, right)


def _multiply(node: ast.expr, left: Value, right: Value) -> Value:
    if isinstance(left, int) and isinstance(right, str | list | tuple):
        left, right = right, left
    if isinstance(left, str | list | tuple) and isinstance(right, int):
        items, characters, _ = _extent(left)
        if right * characters > MAX_TEXT:
            raise Refused(node, f"this would make more than {MAX_TEXT} characters")
        if right * items > MAX_ITEMS:
            raise Refused(node, f"this would make more than {MAX_ITEMS} items")
        return left * right
    return _arithmetic(node, "*", left, right)


def _arithmetic(node: ast.expr, symbol: str, left: Value, right: Value) -> Value:
    if not (isinstance(left, int | float) and isinstance(right, int | float)):
        raise _mismatch(node, symbol, left, right)
    try:
        match symbol:
            case "+":
                return left + right
            case "-":
                return left - right
            case "*":
                return left * right
            case "//":
                return left // right
            case _:
                return left % right
    except (ZeroDivisionError, OverflowError) as error:
        raise Refused(node, f"this can't be computed: {error}") from None


def _modulo(node: ast.expr, left: Value, right: Value) -> Value:
    return _format(node, left, right) if isinstance(left, str) else _arithmetic(node, "%", left, right)


def _format(node: ast.expr, template: str, values: Value) -> str:
    """``template % values`` for the plain conversions: no mapping keys, no ``*``, widths below 1000."""
    rest = _CONVERSION.sub("", template)
    if "%" in rest:
        raise Refused(node, "this % in the text is no conversion", "write %s, %d or %02x, and %% for a % sign")
    for match in _CONVERSION.finditer(template):
        widths = (match[group] or "" for group in ("width", "precision"))
        if any(len(width) > 4 or int(width or 0) > _MAX_WIDTH for width in widths):
            raise Refused(node, f"a width of more than {_MAX_WIDTH} is not allowed here")
    arguments = values if isinstance(values, tuple) else (values,)
    if any(isinstance(argument, list | tuple) for argument in arguments):
        raise Refused(node, "a list can't be put into text")
    conversions = sum(match[0] != "%%" for match in _CONVERSION.finditer(template))
    if conversions * _MAX_WIDTH + len(template) + _extent(arguments)[1] > 16 * MAX_TEXT:
        raise Refused(node, f"this would make more than {MAX_TEXT} characters")
    try:
        return template % arguments
    except (TypeError, ValueError, OverflowError) as error:
        raise Refused(node, f"this can't be put into text: {error}") from None


_OPERATORS: dict[type[ast.operator], Callable[[ast.expr, Value, Value], Value]] = {
    ast.Add: _add,
    ast.Sub: lambda node, left, right: _arithmetic(node, "-", left, right),
    ast.Mult: _multiply,
    ast.FloorDiv: lambda node, left, right: _arithmetic(node, "//", left, right),
    ast.Mod: _modulo,
}
