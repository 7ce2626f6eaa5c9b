"""A gate on every operator's visual update, and how the answer depends on it: all scores from one forward pass.

With gates ``g`` of shape ``(batch, layers, 2)`` an operator does ``h[r] <- h[r] + g * f(h)[r]`` on visual rows: 1 is
the dense model, 0 is the operator skipped. The derivatives at 1 come from `torch.func.vjp`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from opskip_compile.calibration.operator_sets import OperatorId, as_schedule, skipping
from opskip_compile.calibration.replay import Replay, first_of, widened, with_first
from opskip_compile.errors import OpSkipError
from opskip_compile.models.oracle import branch_modules, oracle
from opskip_compile.schedule.rules import OPERATORS

Points = Sequence[Sequence[Sequence[nn.Module]]]  # by layer and operator, the modules whose outputs are gated
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 8e-2}


@contextmanager
def gated(points: Points, gates: Tensor, rows: Tensor) -> Iterator[None]:
    """Put gates on until the block ends.

    Args:
        points: of the layers that are gated, as many as ``gates`` has.
        gates: ``(batch, layers, 2)``, attention first.
        rows: bool ``(batch, sequence)``, the rows whose update is gated.
    """
    handles = []

    def gate(layer: int, kind: int) -> Any:
        def hook(module: nn.Module, args: object, output: Any) -> Any:
            update = first_of(output)
            factor = torch.where(rows, gates[:, layer, kind, None], 1)[..., None]
            if update.dim() == 2:  # batch and sequence in one dimension
                factor = factor.reshape(-1, 1)
            return with_first(output, update * factor.to(update))

        return hook

    try:
        for layer, kinds in enumerate(points):
            for kind, modules in enumerate(kinds):
                handles += [module.register_forward_hook(gate(layer, kind)) for module in modules]
        yield
    finally:
        for handle in handles:
            handle.remove()


def gate_points(replay: Replay) -> Points:
    """Where each operator's update can be scaled: its branch, or the norm behind it.

    Each is tried: a gate of 0 has to be what the oracle calls skipped, and a gate of one half has to
    be halfway.

    Raises:
        OpSkipError: no such place in a layer; names the operator.
    """
    by_layer: list[list[list[nn.Module]]] = []
    failed: list[str] = []

    def look(layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        number = len(by_layer)
        places: list[list[nn.Module]] = []
        for kind, name in enumerate(OPERATORS):
            norms = [[child] for part, child in layer.named_children() if "norm" in part]
            for place in (branch_modules(layer, name), *norms):
                if _scales(layer, args, named, replay, kind, [*places, place]):
                    places.append(place)
                    break
            else:
                failed.append(OperatorId(number, name).name)
                places.append([])
        by_layer.append(places)

    handles = [layer.register_forward_hook(look, with_kwargs=True) for layer in replay.layers]
    try:
        with torch.no_grad():
            replay.forward(0, nullcontext)
    finally:
        for handle in handles:
            handle.remove()
    if failed:
        raise OpSkipError(
            f"method: the updates of {', '.join(failed[:4])} can't be scaled by a gate in this decoder; use 'probe'"
        )
    return by_layer


def _scales(
    layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any], replay: Replay, kind: int, places: Any
) -> bool:
    visual, rows = replay.batch.visual, replay.left_out
    batch = len(visual)

    def run(*gates: float) -> Tensor:
        values = torch.tensor(gates[: len(places)], device=visual.device).expand(batch, 1, len(places))
        with gated([places], values, rows):
            return first_of(layer.forward(*args, **named))[rows].double()

    def skipped(*kinds: str) -> Tensor:
        schedule = as_schedule(skipping((0, name) for name in kinds), replay.rows)
        with oracle(_Holder(layer), schedule, visual):
            return first_of(layer.forward(*args, **named))[rows].double()

    if kind == 0:  # beside a skipped FFN, so that nothing comes behind it; other gates are not known yet
        with oracle(_Holder(layer), as_schedule(skipping([(0, "ffn")]), replay.rows), visual):
            full, half, none = run(1), run(0.5), run(0)
        wanted = skipped(*OPERATORS)
    else:
        full, half, none = run(1, 1), run(1, 0.5), run(1, 0)
        wanted = skipped("ffn")
    size = (full - none).abs().max()
    near = _TOLERANCE.get(next(layer.parameters()).dtype, 1e-4)
    scale = torch.maximum(size, none.abs().max() * near)
    ends = (none - wanted).abs().max() <= near * scale
    return bool(ends and (half - (full + none) / 2).abs().max() <= near * scale)


class _Holder(nn.Module):
    """One layer, where the oracle expects a decoder."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList([layer])


def derivatives(replay: Replay, points: Points, draws: int, seed: int) -> tuple[Tensor, Tensor]:
    """Derivatives of what the answer rows say by the gates, at 1.

    Returns:
        ``(batch, layers, 2)``: of the mean negative log likelihood of the answer's tokens. And
        ``(draws, batch, layers, 2)``: random vectors whose second moment is the Fisher matrix of the answer rows, mean
        over the rows. With ``p`` the probabilities of a row, a cotangent ``sqrt(p) z - p (sqrt(p) . z)`` with normal
        ``z`` has the covariance ``diag(p) - p p^T`` of the logits' Fisher matrix.
    """
    answers = replay.batch.answers
    batch, device = len(answers), answers.device
    counts = answers.sum(1)
    weight = 1 / counts.repeat_interleave(counts).to(replay.dense.logits.dtype)[:, None]

    def logits(gates: Tensor) -> Tensor:
        return widened(replay.forward(0, lambda: gated(points, gates, replay.left_out))[0])

    ones = torch.ones(batch, len(replay.layers), len(OPERATORS), device=device, dtype=replay.dense.logits.dtype)
    with torch.no_grad():
        transformed: Any = torch.func.vjp(logits, ones)
        said, pull_back = transformed
        p = said.softmax(-1)
        right = torch.nn.functional.one_hot(replay.batch.predicted, p.shape[-1]).to(p.dtype)
        (first,) = pull_back((p - right) * weight)
        generator = torch.Generator().manual_seed(seed)
        vectors = []
        for _ in range(draws):
            z = torch.randn(p.shape, generator=generator).to(p)
            root = p.sqrt()
            (vector,) = pull_back((root * z - p * (root * z).sum(-1, keepdim=True)) * weight.sqrt())
            vectors.append(vector)
    replay.layer_runs += (1 + draws) * batch * len(replay.layers)  # a pull back costs about what a forward does
    return first, torch.stack(vectors)
