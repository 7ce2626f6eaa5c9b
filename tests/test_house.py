"""The house: arrows between files point one way, also those of imports inside functions and under TYPE_CHECKING.

The order of the layers and who may import `demo` and `bench` are contracts of import-linter (``make imports``). Here:
no circle of files at all, and no two classes of one name.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"opskip_compile": ROOT / "opskip_compile", "opskip_compile.passes": ROOT / "passes"}


def modules() -> dict[str, Path]:
    """Every file of the package by its name in an import."""
    files: dict[str, Path] = {}
    for package, folder in FOLDERS.items():
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            files[".".join([package, *(part for part in parts if part != "__init__")])] = file
    return files


def imported(tree: ast.AST, known: dict[str, Path], package: str = "") -> Iterator[str]:
    """What the code imports of the package, wherever in the file it does."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [node.module])])
            names = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names]
        else:
            continue
        yield from (name for name in names if name in known)


@pytest.fixture(scope="module")
def graph() -> nx.DiGraph:
    files = modules()
    edges = nx.DiGraph()
    edges.add_nodes_from(files)
    for name, file in files.items():
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        edges.add_edges_from((name, other) for other in imported(ast.parse(file.read_text()), files, package))
    return edges


def circles(graph: nx.DiGraph) -> list[list[str]]:
    """Groups of files in which each needs each other, and files that need themselves."""
    groups = [sorted(group) for group in nx.strongly_connected_components(graph) if len(group) > 1]
    return sorted(groups + [[name] for name in nx.nodes_with_selfloops(graph)])


def test_every_kind_of_import_is_seen() -> None:
    known = dict.fromkeys(("p", "p.a", "p.b", "p.c", "p.d", "p.q.e", "p.q"), Path())
    code = """
import p.a
from p import b, nothing
def later():
    from p.c import name
if TYPE_CHECKING:
    from .q import e
    from . import d
"""
    assert sorted(imported(ast.parse(code), known, "p")) == ["p", "p.a", "p.b", "p.c", "p.d", "p.q.e"]
    assert list(imported(ast.parse("from ..d import name"), known, "p.q")) == ["p.d"]


def test_circles_are_found() -> None:
    assert circles(nx.DiGraph([("a", "b"), ("b", "c"), ("c", "a"), ("c", "d"), ("e", "e")])) == [["a", "b", "c"], ["e"]]


def test_no_file_needs_itself(graph: nx.DiGraph) -> None:
    assert circles(graph) == []


def test_one_class_for_a_name() -> None:
    places = defaultdict(list)
    for name, file in modules().items():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                places[node.name.lstrip("_")].append(name)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}
