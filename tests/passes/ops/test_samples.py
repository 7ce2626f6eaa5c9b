"""Rules and facts of the table, checked by PyTorch's own samples; and ten mistakes in it, which the check has to see.

``python -m benchmarks.operations`` runs every sample along every dimension. Here are a few of each operation.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from torch import fx

from opskip_compile.passes.normalize import functionalize
from opskip_compile.passes.ops import TABLE, Call, Dims, known_operations, memory, shape
from opskip_compile.passes.ops.families import by_broadcasting
from opskip_compile.passes.ops.memory import Effects
from opskip_compile.passes.refusal import Refusal
from tests.helpers.apart import apart
from tests.helpers.entries import changed_entry
from tests.helpers.in_place_programs import run_programs
from tests.helpers.sample_facts import Facts, check_facts, check_facts_of_others
from tests.helpers.sample_graphs import Tally, check_operation
from tests.helpers.samples import entries, others

SAMPLES = 2
# What PyTorch has no samples of, or none that has rows.
WITHOUT_SAMPLES = frozenset({"alias", "slice"})


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """PyTorch warns of what its samples do."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        yield


def graphs_of_all() -> dict[str, Tally]:
    return {name: check_operation(name, SAMPLES, every_dim=False, aten_too=False) for name in known_operations()}


def facts_of_all() -> dict[str, Facts]:
    return {name: check_facts(name, SAMPLES) for name in TABLE}


def facts_of_others() -> list[Facts]:
    return [check_facts_of_others(info, 1) for info in others()]


def test_every_sample_is_pushed_rightly_or_declined_with_a_reason() -> None:
    tallies = apart(graphs_of_all)
    wrong = [text for name, tally in sorted(tallies.items()) for text in tally.wrong]
    assert not wrong, "\n".join(wrong[:20])
    without = {name for name, tally in tallies.items() if not tally.graphs}
    assert len(tallies) - len(without) >= 200, without
    assert sum(tally.pushed for tally in tallies.values()) > 5000
    assert sum(bool(tally.pushed) for tally in tallies.values()) >= 190


@pytest.mark.parametrize("name", sorted(WITHOUT_SAMPLES))
def test_spellings_of_aten(name: str) -> None:
    tally = apart(check_operation, name, SAMPLES)
    assert not tally.wrong and tally.pushed


@pytest.mark.parametrize("name", ["getitem", "scaled_dot_product_attention"])
def test_all_samples_of_what_has_many_forms(name: str) -> None:
    tally = apart(check_operation, name, every_dim=False, aten_too=False)
    assert not tally.wrong and tally.pushed


def test_memory_is_what_samples_show() -> None:
    facts = apart(facts_of_all)
    assert not (wrong := [text for name in sorted(facts) for text in facts[name].wrong]), "\n".join(wrong)
    assert sum(bool(each.calls) for each in facts.values()) >= 240
    assert sum(each.calls for each in facts.values()) > 6000


def test_schemas_tell_of_memory_what_samples_show() -> None:
    """For operations without an entry."""
    facts = apart(facts_of_others)
    assert not (wrong := [text for each in facts for text in each.wrong]), "\n".join(wrong)
    assert sum(each.calls for each in facts) > 600


def test_every_operation_with_samples_is_matched() -> None:
    assert sum(bool(entries()[name]) for name in known_operations()) >= 210


# Ten mistakes.


def row_by_row(call: Call, dim: int) -> Dims | Refusal:
    """The mistake of most rules: that the operation works row by row, whatever it works along."""
    return {call.operand(): dim}


def right_operand(call: Call, dim: int) -> Dims | Refusal:
    """Rows of a product are taken from its right operand."""
    return {call.operand("other"): len(shape(call.operand("other"))) - 2}


def not_swapped(call: Call, dim: int) -> Dims | Refusal:
    """The rows stay where they are although two dimensions change places."""
    return {call.operand(): dim}


EFFECTS = memory.effects


def without_inplace(node: fx.Node) -> Effects:
    """``inplace`` is not seen at the last place, by position: the mistake that a table of names made."""
    return memory.NONE if len(node.args) > 1 and isinstance(node.args[-1], bool) else EFFECTS(node)


def without_any(node: fx.Node) -> Effects:
    """Nothing is said to write or share."""
    return memory.NONE


@contextmanager
def changed_effects(effects: Callable[[fx.Node], Effects]) -> Iterator[None]:
    """The passes ask ``effects`` what a node does to memory."""
    with mock.patch.object(functionalize, "effects", effects), mock.patch.object(memory, "effects", effects):
        yield


def wrong_graphs(name: str) -> list[str]:
    return apart(check_operation, name, 4, aten_too=False).wrong


RULES: dict[str, dict[str, Any]] = {
    "softmax": {"rows": row_by_row},
    "cumsum": {"rows": row_by_row},
    "sort": {"rows": row_by_row},
    "layer_norm": {"rows": row_by_row},
    "chunk": {"rows": row_by_row},
    "matmul": {"rows": right_operand},
    "transpose": {"rows": not_swapped},
    "expand": {"resize": None},
    "flip": {"rows": by_broadcasting("input")},
    "logsumexp": {"rows": row_by_row},
}
FACTS: dict[str, dict[str, Any]] = {
    "embedding": {"writes": ()},
    "to": {"aliases": ()},
    "view": {"aliases": ()},
    "setitem": {"writes": ()},
    "batch_norm": {"writes": ()},
    "clone": {"writes": ("input",)},
}


@pytest.mark.parametrize("name", RULES)
def test_a_broken_rule_is_seen(name: str) -> None:
    assert not wrong_graphs(name)
    with changed_entry(name, **RULES[name]):
        assert wrong_graphs(name)


@pytest.mark.parametrize("name", FACTS)
def test_a_broken_fact_is_seen(name: str) -> None:
    assert not apart(check_facts, name).wrong
    with changed_entry(name, **FACTS[name]):
        assert apart(check_facts, name).wrong


@pytest.mark.parametrize("name", ["unsqueeze", "view", "transpose", "expand", "unbind"])
def test_a_view_that_is_said_to_be_new_memory_is_seen_in_graphs(name: str) -> None:
    with changed_entry(name, aliases=()):
        assert any("differs" in text for text in wrong_graphs(name))


@pytest.mark.parametrize("name", ["leaky_relu", "hardtanh", "elu"])
def test_inplace_that_is_ignored_by_position_is_seen(name: str) -> None:
    with changed_effects(without_inplace):
        assert any("differs" in text for text in wrong_graphs(name))


def test_a_rule_that_fails_is_seen() -> None:
    def failing(call: Call, dim: int) -> Dims | Refusal:
        raise KeyError("a mistake")

    with changed_entry("relu", rows=failing):
        assert all("a mistake" in text for text in wrong_graphs("relu"))


@pytest.mark.usefixtures("fresh")
def test_random_decoders_that_write_in_place() -> None:
    ran = run_programs(range(25))
    assert not ran.wrong, "\n".join(ran.wrong)
    assert ran.skipped > 0.3 * ran.wanted


@pytest.mark.usefixtures("fresh")
def test_random_decoders_see_a_write_that_is_denied() -> None:
    with changed_effects(without_any):
        assert run_programs(range(12)).wrong
