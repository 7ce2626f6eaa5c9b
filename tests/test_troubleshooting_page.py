"""``docs/troubleshooting.md`` has every warning that is raised, every kind of a reason and every class of errors."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from opskip_compile import errors
from opskip_compile.backend import advice
from opskip_compile.passes.refusal import Why

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
SAYING = {"warn", "warn_once"}
WORDS = 4  # in a row, of each text, that have to stand in the page


def texts() -> Iterator[tuple[str, str]]:
    """Where something is said, and each piece of text of which it is made."""
    for folder in ("opskip_compile", "passes"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            constants = {
                node.targets[0].id: node.value
                for node in ast.walk(tree)
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
            }
            for call in ast.walk(tree):
                name = getattr(getattr(call, "func", None), "attr", getattr(getattr(call, "func", None), "id", ""))
                if isinstance(call, ast.Call) and name in SAYING and call.args:
                    yield f"{path.relative_to(ROOT)}:{call.lineno}", " ".join(pieces(call.args[0], constants))


def pieces(node: ast.AST, constants: dict[str, ast.expr], depth: int = 0) -> list[str]:
    """The literal text of an expression, through names of its file."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else []
    if isinstance(node, ast.Name) and node.id in constants and depth < 4:
        return pieces(constants[node.id], constants, depth + 1)
    return [text for child in ast.iter_child_nodes(node) for text in pieces(child, constants, depth)]


def stands_in_the_page(text: str) -> bool:
    """True if a few words in a row of it do."""
    plain = re.sub(r"\{[^}]*\}|[`'\"]", "", text).replace("opskip: ", "")
    words = plain.split()
    page = " ".join(re.sub(r"[`'\"]", "", PAGE).split())
    return any(" ".join(words[i : i + WORDS]) in page for i in range(max(1, len(words) - WORDS + 1)))


SAID = [(where, text) for where, text in texts() if len(text.split()) >= WORDS]


def test_texts_are_found() -> None:
    assert len(SAID) >= 8
    assert not stands_in_the_page("opskip: a warning that nobody has described yet")


@pytest.mark.parametrize(("where", "text"), SAID, ids=[where for where, _ in SAID])
def test_warnings(where: str, text: str) -> None:
    assert stands_in_the_page(text), f"{where} says {text!r}, which docs/troubleshooting.md does not have"


ADVICE = {name: text for name, text in vars(advice).items() if name.isupper() and isinstance(text, str)}


@pytest.mark.parametrize("name", sorted(ADVICE))
def test_advice(name: str) -> None:
    assert stands_in_the_page(ADVICE[name])


@pytest.mark.parametrize("why", list(Why))
def test_reasons(why: Why) -> None:
    assert f"\n| {why} | " in PAGE


def test_classes() -> None:
    kinds = [name for name, kind in vars(errors).items() if isinstance(kind, type)]
    assert [name for name in kinds if f"`{name}`" not in PAGE] == []
