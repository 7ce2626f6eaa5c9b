"""What the table says of memory, laid beside what running PyTorch's samples shows.

The table may claim more than is seen, for a result that is sometimes a view; it may never claim less. A spelling that
it says to write has to be seen writing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from opskip_compile.passes.ops import effects
from tests.helpers.samples import Called, Observed, calls, entries, node_of, observe, others, samples_of, types_of
from tests.helpers.samples import variants as variants_of
from tests.helpers.samples import with_out as written_to_memory

# `detach_` writes to no data, and `empty` writes what was there.
_NOTHING_CHANGES = ("detach_", "torch.empty")


@dataclass
class Facts:
    """What was compared.

    Attributes:
        calls: calls that PyTorch took.
        wrong: where the table claims less than was seen, or a write that never happened.
    """

    calls: int = 0
    wrong: list[str] = field(default_factory=list)


def check_facts(name: str, most: int | None = None, every_type: bool = False) -> Facts:
    """Every spelling of the entry ``name``; with all samples also whether each claimed write is seen in some."""
    facts = Facts()
    claimed: dict[str, bool] = {}
    for info in entries()[name]:
        for dtype in types_of(info, every_type):
            for args, kwargs in samples_of(info, dtype, most, name):
                for called in calls(name, args, kwargs):
                    _compare(called, facts, claimed)
    if most is None:
        facts.wrong += [f"{label}: claims a write that no sample shows" for label, seen in claimed.items() if not seen]
    return facts


def check_facts_of_others(info: Any, most: int | None = None) -> Facts:
    """What schemas say of an operation that the table does not have."""
    facts = Facts()
    for dtype in types_of(info):
        for args, kwargs in samples_of(info, dtype, most):
            for label, kind, target in variants_of(info):
                _compare(Called(f"{info.name} {label}", kind, target, args, kwargs), facts, {})
    return facts


def _compare(called: Called, facts: Facts, claimed: dict[str, bool]) -> None:
    for each, seen in _with_out(called):
        facts.calls += 1
        node, inputs = node_of(each)
        effect = effects(node)
        for what, shown, said in (
            ("writes to", seen.changed, effect.written),
            ("shares memory with", seen.shared, effect.shared),
        ):
            missing = [i for i in sorted(shown) if inputs[i] not in said]
            if missing:
                facts.wrong.append(
                    f"{each.label} {what} tensor {missing[0]}, which the table denies: {described(each)}"
                )
        if effect.written and not any(word in each.label for word in _NOTHING_CHANGES):
            claimed[each.label] = claimed.get(each.label, False) or bool(seen.changed)


def _with_out(called: Called) -> Iterator[tuple[Called, Observed]]:
    seen = observe(called)
    if seen is None:
        return
    yield called, seen
    for with_memory in written_to_memory(called, seen):
        writing = observe(with_memory)
        if writing is not None:
            yield with_memory, writing


def described(called: Called) -> str:
    """The arguments, short."""
    args, kwargs = called.mapped({id(x): f"{x.dtype}{list(x.shape)}" for x in called.tensors()})
    return f"{args} {kwargs}"[:300].replace("torch.", "")


def unknown_operations() -> list[Any]:
    """Operations of PyTorch's that the table does not have."""
    return others()
