"""Private names of torch and transformers stand in ``_compat`` alone: imports and attribute chains are read."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PRODUCT = ("opskip_compile", "passes")
COMPAT = "opskip_compile/_compat/"
FOREIGN = ("torch", "transformers")
INTERNAL = ("torch.fx.experimental",)
"""Parts of torch that may change with any release, though no ``_`` says so."""

ATTRIBUTES = frozenset(
    "_attn_implementation _cdata _codegen _compiled_call_impl _deepstack_process _dynamo_dynamic_indices "
    "_dynamo_source _has_dynamo_dim_marking _hf_hook _metrics _op _opname _overloadname _overloadpacket "
    "_qualified_op_name _schema _schemas _shape_env _tags _version fake_mode shape_env".split()
)
"""Attributes of torch's and transformers' objects that are nobody else's, whatever the object is called."""


def is_private(name: str) -> bool:
    """True for a dotted name of torch or transformers with a part that begins with one underscore, or is internal."""
    parts = name.split(".")
    if parts[0] not in FOREIGN:
        return False
    hidden = any(part.startswith("_") and not part.startswith("__") for part in parts)
    return hidden or any(name == inside or name.startswith(inside + ".") for inside in INTERNAL)


class Reader(ast.NodeVisitor):
    """Collects the private names of one module; ``aliases`` are the names it gives to foreign modules and values."""

    def __init__(self) -> None:
        self.aliases: dict[str, str] = {}
        self.private: list[tuple[int, str]] = []

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            if alias.asname is None:
                root = alias.name.partition(".")[0]
                self.aliases[root] = root
            else:
                self.aliases[alias.asname] = alias.name
            self._see(node, alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.level or node.module is None:
            return
        for alias in node.names:
            self.aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"
            self._see(node, f"{node.module}.{alias.name}")

    def visit_Attribute(self, node: ast.Attribute) -> None:
        name = self._name(node)
        if name is not None and is_private(name):
            self._see(node, name)
            return  # and not once more for each of its parts
        owner = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
        if node.attr in ATTRIBUTES and not owner:
            self.private.append((node.lineno, ast.unparse(node)))
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """``getattr(x, "_name")`` and its like."""
        function = node.func.id if isinstance(node.func, ast.Name) else ""
        if function in ("getattr", "setattr", "hasattr", "delattr") and len(node.args) > 1:
            name = node.args[1]
            if isinstance(name, ast.Constant) and name.value in ATTRIBUTES:
                self.private.append((node.lineno, ast.unparse(node)))
        self.generic_visit(node)

    def _name(self, node: ast.expr) -> str | None:
        if isinstance(node, ast.Attribute):
            owner = self._name(node.value)
            return None if owner is None else f"{owner}.{node.attr}"
        return self.aliases.get(node.id) if isinstance(node, ast.Name) else None

    def _see(self, node: ast.AST, name: str) -> None:
        if is_private(name):
            self.private.append((getattr(node, "lineno", 0), name))


def private_names(source: str) -> list[tuple[int, str]]:
    """Line and name of everything private in a module."""
    reader = Reader()
    reader.visit(ast.parse(source))
    return reader.private


def files() -> list[str]:
    paths = (path.relative_to(ROOT).as_posix() for folder in PRODUCT for path in (ROOT / folder).rglob("*.py"))
    return sorted(path for path in paths if not path.startswith(COMPAT))


def test_the_product_is_read() -> None:
    assert {"opskip_compile/api.py", "opskip_compile/backend/entry.py", "opskip_compile/timing/prefill.py"} <= {
        *files()
    }
    assert not [path for path in files() if "_compat" in path]


@pytest.mark.parametrize("path", files())
def test_no_private_names(path: str) -> None:
    assert not private_names((ROOT / path).read_text())


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import torch\ntorch._dynamo.reset()", ["torch._dynamo.reset"]),
        ("import torch._inductor.config", ["torch._inductor.config"]),
        (
            "import torch._inductor.config as c\nc.debug = True",
            ["torch._inductor.config", "torch._inductor.config.debug"],
        ),
        ("from torch._dynamo import reset", ["torch._dynamo.reset"]),
        ("from torch import _dynamo\n_dynamo.reset()", ["torch._dynamo", "torch._dynamo.reset"]),
        ("from torch import nn as n\nn.functional._pad", ["torch.nn.functional._pad"]),
        ("import torch.nn.functional as F\nF._threshold(x)", ["torch.nn.functional._threshold"]),
        ("import torch as t\nisinstance(x, t._ops.OpOverload)", ["torch._ops.OpOverload"]),
        ("def f():\n    from torch.fx.experimental import symbolic_shapes", ["torch.fx.experimental.symbolic_shapes"]),
        ("from torch import fx\nfx.experimental.proxy_tensor", ["torch.fx.experimental.proxy_tensor"]),
        ("from transformers import cache_utils as c\nc._quantize", ["transformers.cache_utils._quantize"]),
        ("node.target._schema.name", ["node.target._schema"]),
        ("x.untyped_storage()._cdata", ["x.untyped_storage()._cdata"]),
        ("getattr(node, '_dynamo_source', None)", ["getattr(node, '_dynamo_source', None)"]),
        ("with hidden.fake_mode: pass", ["hidden.fake_mode"]),
        ("import torch\ntorch.__version__", []),
        ("import torch\ntorch.compiler.reset()\ntorch.ops.aten.add", []),
        ("self._schema = 1", []),
        ("from opskip_compile import _compat\n_compat.inductor", []),
        ("import os\nos._exit(1)", []),
    ],
)
def test_what_counts_as_private(source: str, names: list[str]) -> None:
    assert [name for _, name in private_names(source)] == names
