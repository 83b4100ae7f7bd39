"""Reads the text of a domain's file, as xm and xl have it: ``KEY = VALUE`` lines.

xm executed such files as Python scripts; pyxen reads them as data. What Python itself can't parse, but xl or an old
Python could (``mode = 0644``, ``memory = 256L``, indented lines), is put right first without moving any column.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Mapping
from typing import NamedTuple

from pyxen.config.fold import Folder, Refused, Value
from pyxen.config.words import cut
from pyxen.errors import ConfigError

MAX_FILE = 1024 * 1024
"""Characters in one file."""

_FORM = 'a line is KEY = VALUE, where VALUE is a number, a "text" in quotes or a [list]'
_DATA = "a domain's file is data and is not executed; only KEY = VALUE lines count"


class Setting(NamedTuple):
    """A key's value and its place (``line`` and ``column`` from 1; None on the command line)."""

    value: Value
    source: str
    line: int | None = None
    column: int | None = None

    def error(self, message: str, *, key: str | None = None, hint: str | None = None) -> ConfigError:
        """A ConfigError at this place."""
        return ConfigError(message, hint=hint, key=key, source=self.source, line=self.line, column=self.column)

    @property
    def place(self) -> str:
        """``web.cfg:3``, to start a warning with."""
        return self.source if self.line is None else f"{self.source}:{self.line}"


class Parsed(NamedTuple):
    """What a file says."""

    settings: dict[str, Setting]
    """In the order of the file; the last assignment to a key counts."""
    used: frozenset[str]
    """Names that values referred to, such as ``vmid`` in ``name = "vm%d" % vmid``."""
    warnings: list[str]


def parse(text: str, source: str, given: Mapping[str, Value] | None = None) -> Parsed:
    """Parse a file's text.

    ``given`` are variables that the command line has set: the file may refer to them, and its own assignments to
    them do not count. Raises ConfigError with the place and what was expected there.
    """
    lines = _Lines(text, source)
    reader = _Reader(lines, dict(given or {}))
    try:
        for statement in lines.tree().body:
            reader.statement(statement)
    except Refused as refusal:
        raise lines.at(refusal.node, refusal.message, refusal.hint) from None
    except RecursionError:
        raise ConfigError("this is nested too deeply", source=source) from None
    return Parsed(reader.settings, frozenset(reader.folder.used), reader.warnings)


def parse_value(text: str, source: str) -> Value:
    """One value in the notation of a file: ``['a', 'b']``, ``"x"``. Raises ConfigError."""
    return parse(f"value = ({text}\n)", source).settings["value"].value


class _Lines:
    """A file's text, and the places in it."""

    def __init__(self, text: str, source: str) -> None:
        self.source = source
        if len(text) > MAX_FILE:
            raise ConfigError(f"this file has more than {MAX_FILE} characters", source=source)
        self._text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").replace("\f", " ")
        self._lines = self._text.split("\n")
        self._indents: dict[int, int] = {}
        if (nul := self._text.find("\0")) >= 0:
            line = self._text.count("\n", 0, nul) + 1
            raise ConfigError("there is a null byte here; this is not a text file", source=source, line=line)

    def tree(self) -> ast.Module:
        """The syntax tree. Raises ConfigError."""
        try:
            return _tree(self._text)
        except SyntaxError as error:
            first = error
        except ValueError:
            raise ConfigError("this is not text: it holds half a surrogate pair", source=self.source) from None
        except (RecursionError, MemoryError):
            raise ConfigError("this is nested too deeply", source=self.source) from None
        text, self._indents = _modernise(self._text)
        try:
            return _tree(text)
        except SyntaxError as error:
            raise self._syntax(error if text != self._text else first) from None
        except (RecursionError, MemoryError):
            raise ConfigError("this is nested too deeply", source=self.source) from None

    def place(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        """Line and column, from 1, in characters."""
        line = min(node.lineno, len(self._lines))
        indent = self._indents.get(line, 0)
        before = self._lines[line - 1][indent:].encode()[: node.col_offset]
        return line, len(before.decode(errors="replace")) + indent + 1

    def at(self, node: ast.expr | ast.stmt, message: str, hint: str | None) -> ConfigError:
        line, column = self.place(node)
        return ConfigError(message, hint=hint, source=self.source, line=line, column=column)

    def word_at(self, node: ast.stmt) -> str:
        """The word that a statement begins with."""
        line, column = self.place(node)
        return _first_word(self._lines[line - 1][column - 1 :])

    def _syntax(self, error: SyntaxError) -> ConfigError:
        line = min(max(error.lineno or 1, 1), len(self._lines))
        column = min(max(error.offset or 1, 1) + self._indents.get(line, 0), len(self._lines[line - 1]) + 1)
        word = _first_word(self._lines[line - 1])
        if word in _STATEMENTS:
            return ConfigError(
                f"{cut(word)} is not allowed here", hint=_DATA, source=self.source, line=line, column=column
            )
        message = (error.msg or "invalid syntax").split(". Perhaps", 1)[0]
        if "Exceeds the limit" in message:
            message = "this number does not fit in 64 bits"
        return ConfigError(message, hint=_FORM, source=self.source, line=line, column=column)


_STATEMENTS = (
    *("import", "from", "if", "elif", "else", "for", "while", "def", "class", "try", "except", "finally", "with"),
    *("print", "del", "exec", "return", "raise", "assert", "global", "async", "match"),
)


def _first_word(line: str) -> str:
    match = re.match(r"\s*([A-Za-z_]+)(?!\s*=)\b", line)
    return match[1] if match else ""


_TOKEN = re.compile(
    r"""
    (?P<skip> \#[^\n]*+ | \\\n | [^\W\d]\w*+
      | (?P<triple>\"{3}|'{3}) (?:(?!(?P=triple))(?:[^\\]|\\.))*+ (?:(?P=triple)|\Z)
      | "(?:[^"\\\n]++|\\.)*+ (?:"|(?=\n)|\Z) | '(?:[^'\\\n]++|\\.)*+ (?:'|(?=\n)|\Z) )
    | (?P<octal> (?<![\w.]) 0[0-7]{1,30}+ [lL]? (?![\w.]) )
    | (?P<long> (?<![\w.]) (?:0[xX][0-9a-fA-F]++|[0-9]++) [lL] (?![\w.]) )
    | (?P<open> [\[({] ) | (?P<close> [\])}] )
    | (?P<start> (?:\A|\n) [ \t]*+ )
    """,
    re.VERBOSE | re.DOTALL,
)


def _modernise(text: str) -> tuple[str, dict[int, int]]:
    """The text with old octal and long numbers as Python 3 has them and without indents; the indent of each line.

    Numbers keep their width, so that columns stay.
    """
    pieces: list[str] = []
    indents: dict[int, int] = {}
    position = depth = 0
    line = 1
    for token in _TOKEN.finditer(text):
        pieces.append(text[position : token.start()])
        position = token.end()
        word = token[0]
        match token.lastgroup:
            case "octal":
                word = str(int(word.rstrip("lL"), 8)).ljust(len(word))
            case "long":
                word = word[:-1] + " "
            case "open":
                depth += 1
            case "close":
                depth = max(depth - 1, 0)
            case "start" if depth == 0:
                bare = word.rstrip(" \t")
                indents[line + len(bare)] = len(word) - len(bare)
                pieces.append(bare)
                line += len(bare)
                continue
        pieces.append(word)
        line += word.count("\n")
    pieces.append(text[position:])
    return "".join(pieces), indents


def _tree(text: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(text)


class _Reader:
    """Goes through the statements of one file."""

    def __init__(self, lines: _Lines, given: dict[str, Value]) -> None:
        self._lines = lines
        self._given = frozenset(given)
        self._names = given
        self.folder = Folder(self._names)
        self.settings: dict[str, Setting] = {}
        self.warnings: list[str] = []

    def statement(self, node: ast.stmt) -> None:
        """Take one statement. Raises Refused or ConfigError."""
        match node:
            case ast.Assign(targets=targets, value=expression):
                names = [self._target(node, target) for target in targets]
                value = self.folder.fold(expression)
                for name in names:
                    self._set(name, value, node)
            case ast.AugAssign(target=ast.Name(id=name), op=ast.Add(), value=expression):
                if name not in self._names:
                    raise self._lines.at(node, f"{cut(name)} is not defined above", f"write {cut(name)} = … here")
                added = self.folder.fold(expression)
                self.folder.used.add(name)
                self._set(name, self.folder.combine(expression, node.op, self._names[name], added), node)
            case ast.Expr(value=ast.Constant(value=str())) | ast.Pass():
                pass  # a docstring, as some of xm's examples start with
            case ast.Expr(value=expression):
                raise self._lines.at(node, self._stray(expression), _FORM)
            case _:
                word = self._lines.word_at(node)
                word = word if word in _STATEMENTS else "this"
                raise self._lines.at(node, f"{cut(word)} is not allowed here", _DATA)

    def _target(self, node: ast.stmt, target: ast.expr) -> str:
        if isinstance(target, ast.Name):
            return target.id
        raise self._lines.at(node, "only a single name may stand before =", _FORM)

    def _stray(self, expression: ast.expr) -> str:
        if isinstance(expression, ast.Name):
            return f"{cut(expression.id)} has no = and value"
        return "this is no KEY = VALUE line"

    def _set(self, name: str, value: Value, node: ast.stmt) -> None:
        if name in self._given:
            return
        line, column = self._lines.place(node)
        if (earlier := self.settings.get(name)) and name not in self.folder.used:
            self.warnings.append(
                f"{self._lines.source}:{line}: {cut(name)} was set in line {earlier.line} already; the last one counts"
            )
        self._names[name] = value
        self.settings[name] = Setting(value, self._lines.source, line, column)
