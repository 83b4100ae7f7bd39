"""Functions of a small part of Python, made into a static ELF executable for x86-64 Linux.

The part: functions of integers; assignment to local names; if, while, break, continue, return; arithmetic (of ``//``
and ``%`` only with operands that are not negative), comparison, and, or, not; calls of functions without keywords.
Global names are constants: integers, ``static`` memory, and other functions, in any module. What is not in the part
is refused.

The code is plain, not fast: each value passes through RAX, and waits on the stack for its turn.
"""

from __future__ import annotations

import ast
import inspect
import struct
import textwrap
from collections.abc import Callable
from types import FunctionType
from typing import Any, Final

from pyxen.image.native import language

_BASE: Final = 0x400000
_PAGE: Final = 0x1000
_EHDR: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR: Final = struct.Struct("<IIQQQQQQ")
_HEADERS: Final = _EHDR.size + 3 * _PHDR.size
_PT_LOAD, _PT_GNU_STACK = 1, 0x6474E551

# rax = rax OP rcx
_OPERATORS: Final[dict[type[ast.operator], str]] = {
    ast.Add: "4801c8",
    ast.Sub: "4829c8",
    ast.Mult: "480fafc1",
    ast.FloorDiv: "489948f7f9",  # cqo; idiv rcx
    ast.Mod: "489948f7f94889d0",  # … ; mov rax, rdx
    ast.BitAnd: "4821c8",
    ast.BitOr: "4809c8",
    ast.BitXor: "4831c8",
    ast.LShift: "48d3e0",
    ast.RShift: "48d3f8",
}
# cmp rax, rcx; setCC al; movzx eax, al
_COMPARISONS: Final[dict[type[ast.cmpop], str]] = {
    ast.Eq: "94",
    ast.NotEq: "95",
    ast.Lt: "9c",
    ast.GtE: "9d",
    ast.LtE: "9e",
    ast.Gt: "9f",
}
_UNARY: Final[dict[type[ast.unaryop], str]] = {
    ast.USub: "48f7d8",
    ast.Invert: "48f7d0",
    ast.Not: "4885c00f94c00fb6c0",  # test rax, rax; sete al; movzx eax, al
}
# Arguments are on the stack, the last one on top; the result is in rax.
_INTRINSICS: Final[dict[str, str]] = {
    "load8": "580fb600",
    "load16": "580fb700",
    "load32": "588b00",
    "load64": "58488b00",
    "store8": "58598801",
    "store16": "5859668901",
    "store32": "58598901",
    "store64": "5859488901",
    "copy": "595e5ff3a4",  # pop rcx, rsi, rdi; rep movsb
    "syscall": "4159415841 5a5a5e5f58 0f05",  # pop r9, r8, r10, rdx, rsi, rdi, rax; syscall
}
_SYSCALL_ARGUMENTS: Final = 7
# mov rdi, rsp; push rdi; call …; mov edi, eax; mov eax, exit_group; syscall
_START, _END = "4889e757e8", "89c7b8e70000000f05"

Function = Callable[..., object]


class NotInTheLanguage(Exception):
    """Something that can't be compiled, with its place; a mistake of whoever wrote the program."""


def build(entry: Callable[[int], int]) -> bytes:
    """An executable that runs ``entry`` with the address of what Linux leaves on the stack (argc, argv, …)."""
    return _Program(entry).link()


class _Program:
    """Functions as they are reached, the data they use, and what is to be filled in when all have their places."""

    def __init__(self, entry: Function) -> None:
        self.code = bytearray(bytes.fromhex(_START))
        self._places: dict[Function, int] = {}
        self._waiting: list[Function] = []
        self._calls: list[tuple[int, Function]] = []
        self._texts: dict[bytes, int] = {}
        self._text_uses: list[tuple[int, bytes]] = []
        self._memory: dict[language.Static, int] = {}
        self._memory_size = 0
        self._memory_uses: list[tuple[int, language.Static]] = []
        self.call(entry, "")
        self.emit(_END)
        while self._waiting:
            function = self._waiting.pop()
            self.code += bytes(-len(self.code) % 16)
            self._places[function] = len(self.code)
            _Body(self, function)

    def emit(self, code: str) -> None:
        self.code += bytes.fromhex(code)

    def call(self, function: Function, opcode: str = "e8") -> None:
        if function not in self._places:
            self._places[function] = -1
            self._waiting.append(function)
        self.emit(opcode)
        self._calls.append((len(self.code), function))
        self.code += bytes(4)

    def text(self, data: bytes) -> None:
        """mov rax, its address"""
        self.emit("48c7c0")
        self._text_uses.append((len(self.code), data))
        self.code += bytes(4)

    def memory(self, static: language.Static) -> None:
        """mov rax, its address"""
        if static not in self._memory:
            self._memory[static] = self._memory_size
            self._memory_size += (int(static) + 63) // 64 * 64
        self.emit("48c7c0")
        self._memory_uses.append((len(self.code), static))
        self.code += bytes(4)

    def link(self) -> bytes:
        """The whole file: headers, code and texts in one segment, and memory in another that is not in the file."""
        code = self.code
        start = _BASE + _HEADERS
        texts = bytearray()
        for position, data in self._text_uses:
            if data not in self._texts:
                self._texts[data] = len(texts)
                texts += data + b"\0"
            struct.pack_into("<i", code, position, start + len(code) + self._texts[data])
        size = _HEADERS + len(code) + len(texts)
        memory = _BASE + (size + 2 * _PAGE - 1) // _PAGE * _PAGE
        for position, static in self._memory_uses:
            struct.pack_into("<i", code, position, memory + self._memory[static])
        for position, function in self._calls:
            struct.pack_into("<i", code, position, self._places[function] - position - 4)
        ident = b"\x7fELF\2\1\1".ljust(16, b"\0")
        header = _EHDR.pack(ident, 2, 62, 1, start, _EHDR.size, 0, 0, _EHDR.size, _PHDR.size, 3, 0, 0, 0)
        segments = (
            _PHDR.pack(_PT_LOAD, 5, 0, _BASE, _BASE, size, size, _PAGE),  # readable, executable
            _PHDR.pack(_PT_LOAD, 6, 0, memory, memory, 0, self._memory_size, _PAGE),  # readable, writable
            _PHDR.pack(_PT_GNU_STACK, 6, 0, 0, 0, 0, 0, 16),
        )
        return b"".join([header, *segments, code, texts])


class _Body:
    """One function. Its arguments lie above the frame, as the caller pushed them, its other names below."""

    def __init__(self, program: _Program, function: Function) -> None:
        assert isinstance(function, FunctionType)
        self._program = program
        self._globals = function.__globals__
        self._where = f"{function.__module__}.{function.__name__}"
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
        assert isinstance(tree, ast.FunctionDef)
        names = [argument.arg for argument in tree.args.args]
        self._slots = {name: 16 + 8 * (len(names) - 1 - number) for number, name in enumerate(names)}
        self._loops: list[tuple[int, list[int]]] = []
        self._program.emit("554889e54881ec")  # push rbp; mov rbp, rsp; sub rsp, …
        size = len(program.code)
        program.code += bytes(4)
        for statement in tree.body:
            self._statement(statement)
        program.emit("31c0c9c3")  # xor eax, eax; leave; ret
        struct.pack_into("<i", program.code, size, 8 * sum(place < 0 for place in self._slots.values()))

    def _statement(self, node: ast.stmt) -> None:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                self._expression(value)
                self._store(name)
            case ast.AugAssign(target=ast.Name(id=name) as target, op=op, value=value):
                self._binary(ast.Name(id=target.id, ctx=ast.Load()), op, value)
                self._store(name)
            case ast.Expr(value=ast.Constant(value=str())) | ast.Pass():  # a docstring
                pass
            case ast.Expr(value=value):
                self._expression(value)
            case ast.Return(value=value):
                self._expression(value or ast.Constant(value=0))
                self._program.emit("c9c3")
            case ast.If(test=test, body=body, orelse=orelse):
                self._expression(test)
                skip = self._jump("4885c00f84")
                self._statements(body)
                end = self._jump("e9") if orelse else None
                self._land(skip)
                self._statements(orelse)
                if end is not None:
                    self._land(end)
            case ast.While(test=test, body=body, orelse=[]):
                self._while(test, body)
            case ast.Break():
                self._loops[-1][1].append(self._jump("e9"))
            case ast.Continue():
                self._jump("e9", self._loops[-1][0])
            case _:
                raise self._refused(node)

    def _statements(self, nodes: list[ast.stmt]) -> None:
        for node in nodes:
            self._statement(node)

    def _while(self, test: ast.expr, body: list[ast.stmt]) -> None:
        start = len(self._program.code)
        self._loops.append((start, []))
        self._expression(test)
        leave = self._jump("4885c00f84")  # test rax, rax; jz
        self._statements(body)
        self._jump("e9", start)
        self._land(leave)
        for position in self._loops.pop()[1]:
            self._land(position)

    def _expression(self, node: ast.expr) -> None:
        """Code that leaves the value in rax."""
        match node:
            case ast.Constant(value=int(value)):
                self._constant(value)
            case ast.Name(id=name) if name in self._slots:
                self._local("488b85", name)
            case ast.Name() | ast.Attribute():
                self._global(node)
            case ast.BinOp(left=left, op=op, right=right):
                self._binary(left, op, right)
            case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
                self._expression(operand)
                self._program.emit(_UNARY[type(op)])
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARISONS:
                self._operands(left, right)
                self._program.emit(f"4839c80f{_COMPARISONS[type(op)]}c00fb6c0")
            case ast.BoolOp(op=op, values=values):
                self._either(values, "0f84" if isinstance(op, ast.And) else "0f85")
            case ast.IfExp(test=test, body=body, orelse=orelse):
                self._expression(test)
                skip = self._jump("4885c00f84")
                self._expression(body)
                end = self._jump("e9")
                self._land(skip)
                self._expression(orelse)
                self._land(end)
            case ast.Call(func=func, args=args, keywords=[]):
                self._call(node, self._resolve(func), args)
            case _:
                raise self._refused(node)

    def _either(self, values: list[ast.expr], jump: str) -> None:
        ends = []
        for value in values[:-1]:
            self._expression(value)
            ends.append(self._jump(f"4885c0{jump}"))
        self._expression(values[-1])
        for end in ends:
            self._land(end)

    def _binary(self, left: ast.expr, op: ast.operator, right: ast.expr) -> None:
        if type(op) not in _OPERATORS:
            raise self._refused(left)
        self._operands(left, right)
        self._program.emit(_OPERATORS[type(op)])

    def _operands(self, left: ast.expr, right: ast.expr) -> None:
        """Left in rax, right in rcx."""
        self._expression(left)
        self._program.emit("50")
        self._expression(right)
        self._program.emit("4889c158")  # mov rcx, rax; pop rax

    def _call(self, node: ast.expr, function: Any, args: list[ast.expr]) -> None:
        if function is language.text:
            (argument,) = args
            data = argument.value if isinstance(argument, ast.Constant) else self._resolve(argument)
            if not isinstance(data, bytes):
                raise self._refused(node)
            self._program.text(data)
            return
        for argument in args:
            self._expression(argument)
            self._program.emit("50")
        name = getattr(function, "__name__", "")
        if function is language.syscall:
            self._program.emit("6a00" * (_SYSCALL_ARGUMENTS - len(args)))  # push 0
        if name in _INTRINSICS and function is getattr(language, name):
            self._program.emit(_INTRINSICS[name])
        elif isinstance(function, FunctionType) and function.__code__.co_argcount == len(args):
            self._program.call(function)
            self._program.emit("4881c4")  # add rsp, …
            self._program.code += struct.pack("<i", 8 * len(args))
        else:
            raise self._refused(node)

    def _global(self, node: ast.expr) -> None:
        value = self._resolve(node)
        if isinstance(value, language.Static):
            self._program.memory(value)
        elif isinstance(value, int):
            self._constant(int(value))
        else:
            raise self._refused(node)

    def _resolve(self, node: ast.expr) -> Any:
        """What a global name, or an attribute of one, is to Python."""
        match node:
            case ast.Name(id=name) if name in self._globals:
                return self._globals[name]
            case ast.Attribute(value=value, attr=attr):
                return getattr(self._resolve(value), attr)
            case _:
                raise self._refused(node)

    def _constant(self, value: int) -> None:
        if -(1 << 31) <= value < 1 << 31:
            self._program.emit("48c7c0")
            self._program.code += struct.pack("<i", value)
        else:
            self._program.emit("48b8")
            self._program.code += (value & (1 << 64) - 1).to_bytes(8, "little")

    def _store(self, name: str) -> None:
        if name not in self._slots:
            self._slots[name] = -8 * (1 + sum(place < 0 for place in self._slots.values()))
        self._local("488985", name)

    def _local(self, opcode: str, name: str) -> None:
        self._program.emit(opcode)
        self._program.code += struct.pack("<i", self._slots[name])

    def _jump(self, opcode: str, to: int | None = None) -> int:
        """A jump whose place is known (``to``), or is to be filled in by ``_land``."""
        self._program.emit(opcode)
        position = len(self._program.code)
        self._program.code += struct.pack("<i", 0 if to is None else to - position - 4)
        return position

    def _land(self, position: int) -> None:
        struct.pack_into("<i", self._program.code, position, len(self._program.code) - position - 4)

    def _refused(self, node: ast.AST) -> NotInTheLanguage:
        return NotInTheLanguage(f"{self._where}, line {getattr(node, 'lineno', 0)}: {ast.unparse(node)}")
