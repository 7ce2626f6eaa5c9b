"""What a module that Inductor wrote does when it is called: read off its syntax tree, never run."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

# Operators of ours in which the host waits for the device, and others that read a number that the host has already:
# neither can be recorded.
_ASKING = frozenset({"opskip.on_host", "opskip.choose_level"})
_READING = frozenset({"opskip.packed_rows", "opskip.attend", "opskip.kept_by_level"})
_ROOMY = {"opskip.kept_rows": 2, "opskip.critical_rows": 5}  # the same of a size, but where they are given room
_SIZE = re.compile(r"u\d+$")


@dataclass
class Code:
    """What the modules of one contender do in one call, regions counted as often as they are called.

    Attributes:
        kernels: Triton kernels, by name.
        launches: how often one of them is launched.
        extern: calls of libraries and of operators, by name.
        sizes: sizes that are found out on the way.
        waits: what the host waits for the device in, with its number.
        parts: functions that CUDA graphs record.
        unrecordable: what such functions call or are given that can't be recorded.
    """

    kernels: set[str] = field(default_factory=set)
    launches: int = 0
    extern: Counter[str] = field(default_factory=Counter)
    sizes: int = 0
    waits: Counter[str] = field(default_factory=Counter)
    parts: int = 0
    unrecordable: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, sources: list[str]) -> Code:
        """Of the sources of all modules of a contender."""
        code = cls()
        for source in sources:
            code._read(ast.parse(source))
        return code

    def _read(self, module: ast.Module) -> None:
        for node in ast.walk(module):
            if isinstance(node, ast.Assign) and _name(node.value).startswith("async_compile."):
                self.kernels.update(target.id for target in node.targets if isinstance(target, ast.Name))
        functions = {each.name: each for each in ast.walk(module) if isinstance(each, ast.FunctionDef)}
        self._run(functions["call"], functions, recorded=False)

    def _run(self, function: ast.FunctionDef, functions: dict[str, ast.FunctionDef], recorded: bool) -> None:
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
                made = _name(node.value).rpartition(".")[2] in ("size", "item")
                self.sizes += made and any(isinstance(each, ast.Name) and _SIZE.match(each.id) for each in node.targets)
            if not isinstance(node, ast.Call):
                continue
            name = _name(node)
            if name.startswith("self.partitions"):
                self.parts += 1
                part = functions[f"partition_{_index(node)}"]
                self.unrecordable.update(["an argument that is no tensor"] * len(_lists_given(part)))
                self._run(part, functions, recorded=True)
            elif name in functions:
                self._run(functions[name], functions, recorded)
            else:
                self._see(node, name, recorded)

    def _see(self, call: ast.Call, name: str, recorded: bool) -> None:
        if name.endswith(".run"):
            self.launches += 1
        elif name.startswith("extern_kernels."):
            self.extern[name.removeprefix("extern_kernels.")] += 1
        elif name.startswith("torch.ops."):
            operator = ".".join(name.split(".")[2:4])
            self.extern[operator] += 1
            sized = operator in _ROOMY and not _has_room(call)
            if operator in _ASKING or (sized and operator == "opskip.kept_rows"):
                self.waits[operator] += 1
            if recorded and (operator in _ASKING | _READING or sized):
                self.unrecordable[operator] += 1
        elif name.endswith(".item"):
            self._wait("item", recorded)
        elif name.endswith(".copy_"):
            self._wait("copy between host and device", recorded)

    def _wait(self, what: str, recorded: bool) -> None:
        self.waits[what] += 1
        if recorded:
            self.unrecordable[what] += 1

    def to_dict(self) -> dict[str, Any]:
        """Figures for JSON."""
        return {
            "kernels": len(self.kernels),
            "launches": self.launches,
            "extern": dict(sorted(self.extern.items())),
            "sizes_found": self.sizes,
            "host_waits": dict(sorted(self.waits.items())),
            "recorded_parts": self.parts,
            "unrecordable": dict(sorted(self.unrecordable.items())),
        }


def _name(node: ast.AST) -> str:
    """The dotted name of what is called; subscripts leave no trace but their own dot."""
    return ".".join(reversed(list(_parts(node))))


def _parts(node: ast.AST) -> Iterator[str]:
    while True:
        if isinstance(node, ast.Call):
            node = node.func
        elif isinstance(node, ast.Subscript):
            node = node.value
        elif isinstance(node, ast.Attribute):
            yield node.attr
            node = node.value
        else:
            if isinstance(node, ast.Name):
                yield node.id
            return


def _index(call: ast.Call) -> int:
    """Of ``self.partitions[2](...)``."""
    assert isinstance(call.func, ast.Subscript) and isinstance(call.func.slice, ast.Constant)
    return int(call.func.slice.value)  # type: ignore[arg-type]


def _has_room(call: ast.Call) -> bool:
    place = _ROOMY[".".join(_name(call).split(".")[2:4])]
    room = next((each.value for each in call.keywords if each.arg == "room"), None)
    if room is None and len(call.args) > place:
        room = call.args[place]
    return room is not None and not (isinstance(room, ast.Constant) and room.value is None)


def _lists_given(part: ast.FunctionDef) -> set[str]:
    """Arguments of a function that it takes elements of: the results of an operator with several."""
    first = part.body[0]
    assert isinstance(first, ast.Assign)
    given = {each.id for each in ast.walk(first.targets[0]) if isinstance(each, ast.Name)}
    taken = (node.value for node in ast.walk(part) if isinstance(node, ast.Subscript))
    return given & {each.id for each in taken if isinstance(each, ast.Name)}
