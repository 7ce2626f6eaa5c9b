"""Scores of operators: planted truths are found, gates are derivatives, and the control is fooled."""

from __future__ import annotations

import pytest
import torch

from opskip_compile.calibration.divergence_meter import DivergenceMeter, compare
from opskip_compile.calibration.operator_sets import OperatorId, Skipped, all_operators, skipping
from opskip_compile.calibration.replay import Replay
from opskip_compile.calibration.scores import METHODS, Scores, score
from opskip_compile.calibration.update_gates import derivatives, gate_points, gated
from opskip_compile.errors import OpSkipError, OptionError
from tests.helpers.families import FAMILIES
from tests.helpers.planted import LAYERS, deaf_after, meter, nothing_on_visual_rows, samples, text_looks_away
from tests.helpers.support import ZOO

ANSWERED = ("probe", "first_order", "fisher")  # those that look at the answer


def scores_by(meter_: DivergenceMeter, method: str) -> Scores:
    return score(method, meter_, range(len(meter_.samples.items)), seed=0)


def smallest(scores: Scores, unread: Skipped) -> bool:
    """The unread operators, and only they, have a score of zero but for rounding."""
    largest = max(scores.values.values())
    return {op for op, value in scores.values.items() if value <= 1e-9 * largest} == unread


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
@pytest.mark.parametrize("method", ANSWERED)
def test_updates_that_nobody_reads_are_found(method: str, family: str) -> None:
    model, unread = deaf_after(3, family)
    assert smallest(scores_by(meter(model, samples(family)), method), unread)


@pytest.mark.parametrize("method", ANSWERED)
def test_text_that_never_looks_at_the_image_after_a_layer(method: str) -> None:
    model = FAMILIES["llava"].build(LAYERS)
    with text_looks_away(model, 2) as unread:
        assert smallest(scores_by(meter(model, samples("llava")), method), unread)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("op", [OperatorId(1, "attention"), OperatorId(2, "ffn")])
def test_an_update_that_is_zero_on_visual_rows_scores_zero(op: OperatorId, method: str) -> None:
    model = FAMILIES["llava"].build(LAYERS)
    with nothing_on_visual_rows(model, op):
        scores = scores_by(meter(model, samples("llava", 2)), method)
    assert scores.values[op] <= 1e-12
    last = OperatorId(LAYERS - 1, "ffn")  # nothing reads the last layer's visual rows
    assert all(value > 1e-12 for other, value in scores.values.items() if other.layer < LAYERS - 1 and other != op)
    assert (scores.values[last] > 0.1) == (method == "update_norm")


def test_the_size_of_an_update_misleads() -> None:
    """The control ranks large updates that nobody reads as the most important ones."""
    model, unread = deaf_after(3)
    scores = scores_by(meter(model, samples("llava")), "update_norm")
    top = sorted(scores.values, key=scores.values.__getitem__)[-3:]
    assert {op for op in top if op.kind == "ffn"} <= unread
    assert top[-1] in unread


def exact(replay: Replay, points: object, layer: int, kind: int, by: float) -> torch.Tensor:
    """Derivative of the answer rows' logits by one gate of the first element, from differences in float64."""
    gates = torch.ones(len(replay.batch.names), len(replay.layers), 2, dtype=torch.float64)
    at = []
    for sign in (1, -1):
        moved = gates.clone()
        moved[0, layer, kind] += sign * by
        with torch.no_grad():
            at.append(replay.forward(0, lambda: gated(points, moved, replay.left_out))[0])  # type: ignore[arg-type]  # noqa: B023
    return (at[0] - at[1]) / (2 * by)


def test_derivatives_are_those_of_the_gates() -> None:
    """Against differences: the first derivative of the answer's likelihood, and the Fisher information of a gate."""
    model = FAMILIES["qwen3_vl"].build(3, torch.float64)
    with torch.no_grad():
        model.lm_head.weight.mul_(60)  # sure of its answers, so that both terms of the information count
    (item,) = [meter(model, samples("qwen3_vl", 1)).samples.batch(0)]
    replay = Replay(model, item)
    points = gate_points(replay)
    first, vectors = derivatives(replay, points, draws=1500, seed=0)
    rows = int(item.answers[0].sum())
    p = replay.dense.logits.double().softmax(-1)[:rows]
    right = torch.nn.functional.one_hot(item.predicted[:rows], p.shape[-1])
    for layer, kind in ((0, 0), (0, 1), (1, 0), (1, 1)):
        slope = exact(replay, points, layer, kind, 1e-2)[:rows]  # norms compute in float32, so no smaller step
        likelihood = ((p - right) * slope).sum() / rows
        assert first[0, layer, kind].item() == pytest.approx(likelihood.item(), rel=2e-3)
        information = ((p * slope**2).sum() - (p * slope).sum(-1).square().sum()) / rows
        assert (vectors[:, 0, layer, kind] ** 2).mean().item() == pytest.approx(information.item(), rel=0.15)


def test_fisher_is_the_divergence_of_a_small_change() -> None:
    """KL(dense || gate at 1 - e) is e^2 times the score."""
    model = FAMILIES["llava"].build(3, torch.float64)
    (item,) = [meter(model, samples("llava", 1)).samples.batch(0)]
    replay = Replay(model, item)
    points = gate_points(replay)
    _, vectors = derivatives(replay, points, draws=1500, seed=1)
    by = 1e-2
    gates = torch.ones(len(item.names), 3, 2, dtype=torch.float64)
    gates[:, 0, 1] -= by
    moved = compare(replay.dense, replay.run(0, lambda: gated(points, gates, replay.left_out)), item.answers)
    scores = (vectors[:, :, 0, 1] ** 2).mean(0) / 2
    torch.testing.assert_close(moved[:, 0] / by**2, scores.double(), rtol=0.2, atol=0)


def test_fisher_of_pairs() -> None:
    """The interaction with itself is the score, and two operators together are more than their sum or less."""
    model = FAMILIES["llava"].build(3)
    scores = scores_by(meter(model, samples("llava", 2)), "fisher")
    for op in all_operators(3):
        assert scores.interaction[op, op] == pytest.approx(scores.values[op], rel=1e-6)
    a, b = OperatorId(0, "attention"), OperatorId(1, "ffn")
    assert scores.interaction[a, b] == scores.interaction[b, a] != 0


@pytest.mark.parametrize("family", ["gemma3", "glm4v", "exaone4_5"])
def test_gates_stand_behind_norms(family: str) -> None:
    """Where an operator ends with a norm, scaling what goes into it would change nothing."""
    model = ZOO[family].build(2).eval()
    replay = Replay(model, meter(model, [ZOO[family].inputs()], 2).samples.batch(0))
    modules = [module for kinds in gate_points(replay) for places in kinds for module in places]
    assert all("norm" in type(module).__name__.lower() for module in modules)
    first, _ = derivatives(replay, gate_points(replay), 1, 0)
    assert bool((first[:, 0].abs() > 1e-9).all())


def test_a_decoder_without_a_place_for_gates_says_so() -> None:
    """Gemma 4 scales the whole residual stream at the end of a layer: half an update is not half of that."""
    model = ZOO["gemma4"].build(4).eval()
    replay = Replay(model, meter(model, [ZOO["gemma4"].inputs()], 2).samples.batch(0))
    with pytest.raises(OpSkipError, match=r"method: the updates of 0\.attention.*use 'probe'"):
        gate_points(replay)


def test_unknown_method() -> None:
    with pytest.raises(OptionError, match="method: expected one of probe, first_order, fisher, update_norm, got 'x'"):
        score("x", None, (), 0)  # type: ignore[arg-type]


def test_errors_are_standard_errors() -> None:
    model = FAMILIES["llava"].build(2)
    scores = scores_by(meter(model, samples("llava", 3)), "probe")
    one = OperatorId(0, "attention")
    measured = meter(model, samples("llava", 3)).measure([skipping([one])], range(3))[0]
    values = torch.tensor(measured.divergence, dtype=torch.float64)
    assert len(values) == 6
    assert scores.values[one] == pytest.approx(values.mean().item())
    assert scores.errors[one] == pytest.approx((values.std() / 6**0.5).item())
    assert scores.turned[one] == pytest.approx(sum(measured.turned) / 6)
    assert scores.turned[one] > 1e-9 > abs(scores.turned[OperatorId(1, "ffn")])  # nothing reads the last layer
