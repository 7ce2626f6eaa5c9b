"""Four estimates of how much the answer needs each operator's visual update.

``probe`` skips each operator alone and measures. ``first_order`` and ``fisher`` are local: derivatives by a gate on
the update, from one forward pass. ``update_norm`` looks at the size of the update and never at the answer: the control.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from opskip_compile.calibration.divergence_meter import DivergenceMeter, by_element
from opskip_compile.calibration.operator_sets import (
    NOTHING,
    OperatorId,
    Skipped,
    Step,
    all_operators,
    kept_shares,
    spec_text,
)
from opskip_compile.calibration.option_checks import check_choice
from opskip_compile.calibration.replay import Replay, first_of
from opskip_compile.calibration.update_gates import Points, derivatives, gate_points
from opskip_compile.errors import OpSkipError
from opskip_compile.models.oracle import branch_modules
from opskip_compile.schedule.rules import OPERATORS


@dataclass(frozen=True)
class Scores:
    """What leaving each operator out is expected to cost.

    Attributes:
        method: one of `METHODS`.
        unit: what the numbers are.
        values: by operator, the mean over the samples.
        errors: by operator, the standard error of that mean.
        turned: for ``probe``, by operator: 1 - cosine of the residual streams behind the last layer at the answer rows,
            dense against it skipped alone.
        kept: for ``probe``, by step with a share that is kept, what it costs alone.
        interaction: for ``fisher``, by pairs of operators: the divergence of a set is about the sum over all pairs in
            it, the pairs of an operator with itself included.
    """

    method: str
    unit: str
    values: Mapping[OperatorId, float]
    errors: Mapping[OperatorId, float]
    turned: Mapping[OperatorId, float] = field(default_factory=dict)
    kept: Mapping[Step, float] = field(default_factory=dict)
    interaction: Mapping[tuple[OperatorId, OperatorId], float] = field(default_factory=dict, repr=False)

    @property
    def in_nats(self) -> bool:
        """True if the values are divergences themselves."""
        return self.method in ("probe", "fisher")

    def rise(self, unit: Skipped, here: Skipped = NOTHING) -> float:
        """What a set is expected to cost more with ``unit`` joined to it.

        A share that was not scored itself counts as a gate that is open by it: the score falls with the share, an
        interaction with both shares.
        """
        before, after = _gates(unit & here, unit), _gates(unit, unit)
        if not self.interaction:
            return sum(self._alone(unit, op) - self._alone(unit & here, op) for op in after)
        others = {op: gate for op, gate in _gates(here, here).items() if op not in after}
        pairs = self.interaction
        beside = sum((after[a] - before[a]) * gate * pairs[a, b] for a in after for b, gate in others.items())
        inside = sum((after[a] * after[b] - before[a] * before[b]) * pairs[a, b] for a in after for b in after)
        return inside + 2 * beside

    def _alone(self, skipped: Skipped, op: OperatorId) -> float:
        keep = min((step.keep for step in skipped if step.op == op), default=1.0)
        known = self.kept.get(Step(*op, keep))
        return self.values[op] * (1 - keep) if known is None else known

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "method": self.method,
            "unit": self.unit,
            "values": {op.name: value for op, value in self.values.items()},
            "errors": {op.name: value for op, value in self.errors.items()},
            "turned": {op.name: value for op, value in self.turned.items()},
            "kept": {spec_text(frozenset({step})): value for step, value in self.kept.items()},
        }


def _gates(skipped: Skipped, of: Skipped) -> dict[OperatorId, float]:
    """How much of the visual update of each operator of ``of`` a set leaves out."""
    gates = dict.fromkeys(sorted({step.op for step in of}), 0.0)
    return gates | {op: 1 - keep for op, keep in kept_shares(skipped).items()}


def probe(meter: DivergenceMeter, items: Sequence[int], seed: int, steps: Skipped = NOTHING) -> Scores:
    """Mean KL(dense || skipped) over the answer rows, each operator skipped alone, and each share of ``steps``."""
    every, shares = all_operators(meter.num_layers), sorted(step for step in steps if step.keep)
    meter.doing = "skipping each operator alone"
    alone = [frozenset({Step(*op)}) for op in every] + [frozenset({step}) for step in shares]
    measurements = meter.measure(alone, items)
    kept = {step: measured.mean for step, measured in zip(shares, measurements[len(every) :], strict=True)}
    pairs = list(zip(every, measurements, strict=False))
    return Scores(
        "probe",
        "KL(dense || skipped), nats",
        MappingProxyType({op: measured.mean for op, measured in pairs}),
        MappingProxyType({op: measured.error for op, measured in pairs}),
        MappingProxyType({op: statistics.fmean(measured.turned) for op, measured in pairs}),
        MappingProxyType(kept),
    )


def first_order(meter: DivergenceMeter, items: Sequence[int], seed: int, steps: Skipped = NOTHING) -> Scores:
    """Mean absolute derivative of the answer's negative log likelihood by the gate: the criterion of Op-Skip
    (arXiv 2606.31903) in this implementation."""
    firsts, _ = _derivatives(meter, items, seed)
    return _of(meter, "first_order", "|d NLL / d gate|, nats", [value.abs() for value in firsts])


def fisher(meter: DivergenceMeter, items: Sequence[int], seed: int, steps: Skipped = NOTHING) -> Scores:
    """Second order of KL(dense || gated) at its minimum, where the first vanishes: half the Fisher information of the
    gate. The same vectors give the interaction of any two operators."""
    _, vectors = _derivatives(meter, items, seed)
    scores = _of(meter, "fisher", "KL to second order, nats", [(value**2).mean(0) / 2 for value in vectors])
    flat = torch.cat([value.flatten(2).flatten(0, 1) for value in vectors])
    matrix = (flat.T @ flat / len(flat) / 2).tolist()
    every = all_operators(meter.num_layers)
    pairs = {(a, b): matrix[i][k] for i, a in enumerate(every) for k, b in enumerate(every)}
    return replace(scores, interaction=MappingProxyType(pairs))


def update_norm(meter: DivergenceMeter, items: Sequence[int], seed: int, steps: Skipped = NOTHING) -> Scores:
    """Norm of an operator's update by that of the residual stream that it is added to, mean over visual rows."""
    norms = [each[..., : len(OPERATORS)] for each in _update_norms(meter, items)]
    return _of(meter, "update_norm", "|update| / |residual|", norms)


def update_sizes(meter: DivergenceMeter, items: Sequence[int]) -> list[dict[str, float]]:
    """By layer: the sizes of the updates of its ``attention``, its ``ffn`` and the whole ``layer``."""
    means = torch.cat(_update_norms(meter, items)).mean(0).tolist()
    return [dict(zip((*OPERATORS, "layer"), sizes, strict=True)) for sizes in means]


def _update_norms(meter: DivergenceMeter, items: Sequence[int]) -> list[Tensor]:
    """By item, float64 ``(batch, layers, 3)``."""
    points: list[Points] = []

    def job(replay: Replay, item: int) -> Any:
        if not points:
            points.append(_branches_or_gates(replay))
        return _norms(replay, points[0])

    meter.doing = "measuring the updates"
    return [torch.tensor(each, dtype=torch.float64) for each in meter.each("update norm", job, items)]


METHODS: Mapping[str, Callable[[DivergenceMeter, Sequence[int], int, Skipped], Scores]] = MappingProxyType(
    {"probe": probe, "first_order": first_order, "fisher": fisher, "update_norm": update_norm}
)
DRAWS = 8


def score(method: str, meter: DivergenceMeter, items: Sequence[int], seed: int, steps: Skipped = NOTHING) -> Scores:
    """The scores of all operators by one of `METHODS`, on some items.

    Args:
        seed: of random directions.
        steps: with shares that are kept, which ``probe`` scores as well.

    Raises:
        OptionError: there is no such method.
        OpSkipError: see `gate_points`.
    """
    check_choice("method", method, METHODS)
    return METHODS[method](meter, items, seed, steps)


def _derivatives(meter: DivergenceMeter, items: Sequence[int], seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """By item, ``(batch, layers, 2)`` and ``(draws, batch, layers, 2)``, float64."""
    points: list[Points] = []

    def job(replay: Replay, item: int) -> Any:
        if not points:
            points.append(gate_points(replay))
        first, vectors = derivatives(replay, points[0], DRAWS, seed + item)
        return [first.tolist(), vectors.tolist()]

    meter.doing = "differentiating by gates"
    pairs = meter.each(f"derivatives {seed}", job, items)
    firsts = [torch.tensor(first, dtype=torch.float64) for first, _ in pairs]
    return firsts, [torch.tensor(vectors, dtype=torch.float64) for _, vectors in pairs]


def _of(meter: DivergenceMeter, method: str, unit: str, values: Sequence[Tensor]) -> Scores:
    """Scores of ``(batch, layers, 2)`` tensors by item."""
    each = torch.cat(list(values))
    spread = each.std(0) / math.sqrt(len(each)) if len(each) > 1 else torch.zeros_like(each[0])
    means, errors = each.mean(0).flatten().tolist(), spread.flatten().tolist()
    every = all_operators(meter.num_layers)
    return Scores(
        method,
        unit,
        MappingProxyType(dict(zip(every, means, strict=True))),
        MappingProxyType(dict(zip(every, errors, strict=True))),
    )


def _branches_or_gates(replay: Replay) -> Points:
    """Where the update stands as it is added, behind a norm if there is one; the branch where that can't be told."""
    try:
        return gate_points(replay)
    except OpSkipError:
        return [[branch_modules(layer, kind) for kind in OPERATORS] for layer in replay.layers]


def _norms(replay: Replay, points: Points) -> Any:
    """``(batch, layers, 3)``: sizes of the updates of attention, FFN and layer in one dense forward."""
    rows = replay.left_out
    updates: dict[tuple[int, int], Tensor] = {}
    by_layer: list[Tensor] = []

    def keep(layer: int, kind: int) -> Any:
        def hook(module: Any, args: object, output: Any) -> None:
            update = first_of(output)
            update = update[rows.reshape(-1) if update.dim() == 2 else rows].float()
            updates[layer, kind] = updates[layer, kind] + update if (layer, kind) in updates else update

        return hook

    def behind(module: Any, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        before = first_of(args if args else named["hidden_states"])[rows].float()
        attention, ffn = (updates.pop((len(by_layer), kind)) for kind in range(len(OPERATORS)))
        sizes = (
            attention.norm(dim=-1) / before.norm(dim=-1),
            ffn.norm(dim=-1) / (before + attention).norm(dim=-1),
            (attention + ffn).norm(dim=-1) / before.norm(dim=-1),
        )
        means = [torch.stack([part.mean() for part in by_element(size, rows)]) for size in sizes]
        by_layer.append(torch.stack(means, -1))

    with ExitStack() as stack:
        for number, (layer, kinds) in enumerate(zip(replay.layers, points, strict=True)):
            for kind, modules in enumerate(kinds):
                for module in modules:
                    stack.callback(module.register_forward_hook(keep(number, kind)).remove)
            stack.callback(layer.register_forward_hook(behind, with_kwargs=True).remove)
        with torch.no_grad():
            replay.forward(0, nullcontext)
    return torch.stack(by_layer, 1).tolist()
