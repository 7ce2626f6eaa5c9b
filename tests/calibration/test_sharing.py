"""How processes share work, without any model: who does what, what all know then, and what ends all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from opskip_compile.calibration import processes
from opskip_compile.calibration.journal import Journal
from opskip_compile.errors import OpSkipError
from tests.helpers.processes import several

ITEMS = range(7)


def shared(rank: int, journal: Journal, fails: Any = None) -> list[int]:
    """Squares of `ITEMS`; the items that this process has worked on."""
    mine: list[int] = []

    def squared(i: int) -> Iterator[tuple[str, int]]:
        if fails is not None:
            fails(rank, i)
        mine.append(i)
        yield "square", i * i

    missing = [i for i in ITEMS if journal.get("square", i) is None]
    journal.share(missing, squared, lambda i: (f"item {i}",), lambda done, size: None)
    assert [journal.get("square", i) for i in ITEMS] == [i * i for i in ITEMS]
    return mine


def in_memory(rank: int) -> list[int]:
    with processes.Together():
        return shared(rank, Journal(None, {}))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_item_is_done_once_and_known_to_all(count: int) -> None:
    done = several(in_memory, count)
    assert sorted(i for mine in done for i in mine) == list(ITEMS)
    assert all(done)


def refuses(rank: int, i: int) -> None:
    if rank == 1 and i == 3:
        raise ValueError("no memory")


def caught(rank: int, where: str) -> tuple[str, list[str], bool]:
    """What a process raises where the second one fails: in shared work, in work of its own, or after all of it."""
    together = processes.Together()
    try:
        with together, processes.Together():
            if where == "own" and rank == 1:
                raise OpSkipError("samples[1]: bad")
            shared(rank, Journal(None, {}), refuses if where == "shared" else None)
            first = processes.by_first(lambda: "of the first" if rank == 0 else pytest.fail("not the first"))
            assert first == "of the first"
            if where == "after" and rank == 1:
                raise OpSkipError("samples[1]: bad")
    except Exception as error:
        return str(error), getattr(error, "__notes__", []), together.told
    return "no error", [], together.told


@pytest.mark.parametrize(
    ("where", "said", "notes"),
    [
        ("shared", "ValueError: no memory; it happened with item 3", ["it happened with item 3"]),
        ("own", "samples[1]: bad", []),
        ("after", "samples[1]: bad", []),
    ],
)
def test_what_fails_in_one_process_is_raised_in_all(where: str, said: str, notes: list[str]) -> None:
    first, second, third = several(caught, 3, where, patience=30)
    assert first == third == (f"process 1: {said}", [], True)
    assert second == (said.partition("; ")[0].removeprefix("ValueError: "), notes, True)


def alike(rank: int, same: bool) -> str:
    try:
        processes.check_alike({"data": "x", "rows": "visual" if same or rank < 2 else "through_visual"})
    except OpSkipError as error:
        return str(error)
    return "alike"


@pytest.mark.parametrize("same", [True, False])
def test_facts_that_differ_are_named_by_all(same: bool) -> None:
    said = "rows: process 0 has 'visual' and process 2 'through_visual'; processes that share the work need the same"
    assert several(alike, 3, same) == ["alike" if same else said] * 3


def dies(rank: int, i: int) -> None:
    if rank == 1 and i == 3:
        os._exit(9)


def on_disk(rank: int, path: Path, fails: Any) -> list[int] | str:
    journal = Journal(path, {"data": "x"}, rank)
    try:
        with processes.Together():
            return shared(rank, journal, fails)
    except OpSkipError as error:
        return str(error)
    finally:
        journal.close()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_goes_on_after_a_killed_one(count: int, tmp_path: Path) -> None:
    """With what both have had, but for a torn line."""
    path = tmp_path / "journal"
    (said,) = several(on_disk, 2, path, dies, dies=1)
    assert str(said).startswith("another process has ended or does not answer: ")
    with open(f"{path}.1", "a") as torn:
        torn.write('{"key": "square", "item": 3, "va')
    done = several(on_disk, count, path, None)
    assert sorted(i for mine in done for i in mine) == [3, 6]  # of 2, 3 and 6


def test_a_journal_with_a_longer_name_is_another_one(tmp_path: Path) -> None:
    other = Journal(tmp_path / "run-10", {"data": "y"})
    other.put("score", 0, 1)
    other.close()
    for number in (0, 1):
        part = Journal(tmp_path / "run-1", {"data": "x"}, number)
        part.put("score", number, number)
        part.close()
    assert [Journal(tmp_path / "run-1", {"data": "x"}).get("score", item) for item in (0, 1)] == [0, 1]
