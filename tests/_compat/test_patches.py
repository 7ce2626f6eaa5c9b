"""A patch goes on, comes off, and leaves the very object that was there."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from opskip_compile._compat import Patch, torch_is_older_than


class Thing:
    def method(self) -> str:
        return "plain"


def louder(old: Callable[[Any], str]) -> Callable[[Any], str]:
    return lambda self: old(self).upper()


@pytest.fixture
def thing() -> type:
    return type("Thing", (Thing,), {"method": lambda self: "plain"})


@pytest.fixture
def patch(thing: type) -> Patch:
    return Patch(lambda: (thing, "method"), louder)


def test_on_and_off_twice(thing: type, patch: Patch) -> None:
    original = vars(thing)["method"]
    for _ in range(2):
        patch.apply()
        patch.apply()
        assert patch.is_on and thing().method() == "PLAIN"
        patch.revert()
        patch.revert()
        assert not patch.is_on and vars(thing)["method"] is original


def test_the_new_value_is_made_once(thing: type, patch: Patch) -> None:
    values = []
    for _ in range(2):
        with patch:
            values.append(vars(thing)["method"])
    assert values[0] is values[1]


def test_blocks_nest_and_outlast_revert(thing: type, patch: Patch) -> None:
    patch.apply()
    with patch:
        with patch:
            patch.revert()
            assert patch.is_on
        assert patch.is_on and patch.is_used_here
    assert not patch.is_on and not patch.is_used_here


def test_an_error_in_a_block_takes_it_off(patch: Patch) -> None:
    with pytest.raises(ZeroDivisionError), patch:
        _ = 1 / 0
    assert not patch.is_on


def test_what_somebody_else_replaced_since_stays(thing: type, patch: Patch) -> None:
    patch.apply()
    other = lambda self: "other"  # noqa: E731
    thing.method = other  # type: ignore[attr-defined]
    patch.revert()
    assert vars(thing)["method"] is other


def test_an_item_of_a_table() -> None:
    table: dict[object, int] = {"a": 1}
    patch = Patch(lambda: (table, "a"), lambda old: old + 1)
    with patch:
        assert table == {"a": 2}
    assert table == {"a": 1}


def test_nothing_to_replace_and_not_needed(thing: type) -> None:
    original = vars(thing)["method"]
    with Patch(lambda: None, louder) as absent:
        assert not absent.is_on
    with Patch(lambda: (thing, "method"), louder, needed=False) as unneeded:
        assert not unneeded.is_on and vars(thing)["method"] is original


def test_threads(thing: type, patch: Patch) -> None:
    """While any thread is in a block it is on; another thread's block is not this one's."""
    original, wrong = vars(thing)["method"], list[str]()

    def work() -> None:
        for _ in range(500):
            with patch:
                if thing().method() != "PLAIN" or not patch.is_used_here:
                    wrong.append("off within a block")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    used_here = patch.is_used_here
    for thread in threads:
        thread.join()
    assert not wrong and not used_here
    assert vars(thing)["method"] is original


@pytest.mark.parametrize(
    ("version", "older"), [("2.13.0+cpu", True), ("2.9.1", True), ("2.14.0.dev20260901", False), ("3.0.0a0", False)]
)
def test_versions(version: str, older: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    assert torch_is_older_than(2, 14) is older
