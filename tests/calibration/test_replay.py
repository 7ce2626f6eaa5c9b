"""Replays: any set of operators on a recorded batch is what the oracle says, and nothing computed before is computed
again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import opskip_compile as opskip
from opskip_compile.calibration.batches import Batch
from opskip_compile.calibration.divergence_meter import compare
from opskip_compile.calibration.operator_sets import (
    NOTHING,
    OperatorId,
    Step,
    all_operators,
    as_schedule,
    kept_shares,
    skipping,
    spec_text,
)
from opskip_compile.calibration.replay import AnswerOutputs, Replay
from opskip_compile.calibration.row_scores import RowScores
from opskip_compile.models.oracle import decoder_layers, oracle
from tests.helpers.families import FAMILIES
from tests.helpers.planted import PromptWatch, meter, samples, skipped_by
from tests.helpers.support import ZOO

SPECS = ("attend:0", "transform:1 attend:2", "silent:2-3", "silent:3", "silent:0-3")


def recorded(family: str, **more: Any) -> tuple[nn.Module, Batch]:
    model = ZOO[family].build(4).eval()
    return model, meter(model, [ZOO[family].inputs(((3, 5), (2, 4, 3)))], 3, **more).samples.batch(0)


def by_oracle(model: nn.Module, batch: Batch, spec: str) -> Tensor:
    with torch.no_grad(), oracle(model, opskip.Schedule.from_spec(spec), batch.visual):
        logits: Tensor = model(**batch.inputs, use_cache=False).logits
    return logits[batch.answers]


@pytest.mark.parametrize("family", ["qwen3_vl", "llava", "internvl", "gemma3", "qwen3_vl_moe", "qwen3_5", "gemma4"])
def test_any_set_is_the_oracles(family: str) -> None:
    """From the dense record, and from that of another set."""
    model, batch = recorded(family)
    replay = Replay(model, batch)
    replay.reuse = replay.reproduces()
    assert replay.reuse == (family != "gemma4")  # there, layers read keys and values of earlier ones
    for base in ("none", "transform:1", "silent:2-3"):
        replay.move(skipped_by(opskip.Schedule.from_spec(base), 4))
        for spec in SPECS:
            got = replay.outcome(skipped_by(opskip.Schedule.from_spec(spec), 4))
            assert torch.equal(got.logits, by_oracle(model, batch, spec)), (base, spec)


SHARED = (
    "attend@keep=0.25:0-3",
    "silent@keep=0.5:1-2 transform@keep=0.1:3",
    "attend:0 silent@keep=0.3:3",
    "silent:2-3",
)


@pytest.mark.parametrize("family", ["qwen3_vl", "llava", "gemma3", "gemma4"])
def test_any_set_with_shares_is_the_oracles(family: str) -> None:
    """Also from the record of another set, whose scores are taken; text behind the prompt is not asked."""
    model = ZOO[family].build(4).eval()
    prompts = ZOO[family].inputs(((3, 5), (2, 4, 3)))
    measuring = meter(model, [prompts], 3, watch=RowScores)
    batch = measuring.samples.batch(0)
    replay = Replay(model, batch, watch=RowScores)
    replay.reuse = replay.reproduces()
    length = prompts["input_ids"].shape[1]
    for base in ("none", "attend@keep=0.5:0 transform:1", "silent@keep=0.25:2-3"):
        replay.move(skipped_by(opskip.Schedule.from_spec(base), 4))
        for spec in SHARED:
            got = replay.outcome(skipped_by(opskip.Schedule.from_spec(spec), 4))
            want = _prefilled(model, batch, spec, length)
            assert torch.allclose(got.logits, want, atol=1e-4, rtol=1e-4), (base, spec)


def _prefilled(model: nn.Module, batch: Batch, spec: str, length: int) -> Tensor:
    """The answer rows where the prompt is a prefill of its own, whose rows the oracle's plain watch chooses."""
    watch = PromptWatch(length)
    with torch.no_grad(), oracle(model, opskip.Schedule.from_spec(spec), batch.visual, watch=watch):
        logits: Tensor = model(**batch.inputs, use_cache=False).logits
    return logits[batch.answers]


def test_layers_before_the_first_difference_do_not_run() -> None:
    model, batch = recorded("qwen3_vl")
    replay = Replay(model, batch)
    ran: list[int] = []
    for i, layer in enumerate(decoder_layers(model)):
        layer.mlp.register_forward_hook(lambda m, a, o, i=i: ran.append(i))
    model.model.visual.register_forward_hook(lambda m, a, o: ran.append(-1))
    for skipped, expected in (
        ({Step(2, "ffn")}, [2, 3]),
        (set(), []),
        ({Step(0, "attention")}, [0, 1, 2, 3]),
    ):
        ran.clear()
        replay.outcome(frozenset(skipped))
        assert ran == expected
    replay.move(frozenset({Step(0, "ffn")}))
    ran.clear()
    replay.outcome(frozenset({Step(0, "ffn"), Step(3, "ffn")}))
    assert ran == [3]


def test_work_is_counted() -> None:
    model, batch = recorded("llava")
    replay = Replay(model, batch)
    before = replay.layer_runs
    assert before == 2 * 4  # two prompts through four layers
    replay.outcome(frozenset({Step(3, "ffn")}))
    assert replay.layer_runs - before == 2


class Counting(nn.Module):
    """An FFN whose result depends on how often it was called."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, hidden: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = self.inner(hidden) * self.calls
        return out


def test_a_model_that_is_more_than_its_layers_is_run_whole() -> None:
    model, batch = recorded("llava")
    layer = decoder_layers(model)[3]
    layer.mlp = Counting(layer.mlp)
    assert not Replay(model, batch).reproduces()
    dense_meter = meter(model, [ZOO["llava"].inputs()])
    dense_meter.measure([frozenset({Step(3, "attention")})], [0])
    assert dense_meter.reuse is False


def test_recording_leaves_the_model_as_it_was() -> None:
    model, batch = recorded("qwen3_vl")
    before = [dict(vars(module)) for module in model.modules()]
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
    replay = Replay(model, batch)
    replay.reproduces()
    replay.move(frozenset({Step(1, "ffn")}))
    replay.outcome(frozenset({Step(2, "ffn")}))
    assert [set(vars(module)) for module in model.modules()] == [set(values) for values in before]
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == hooks


def test_compared_row_by_row() -> None:
    """KL, cosine and agreement by hand: one element with one answer row, one with two."""
    answers = torch.tensor([[False, True, False], [True, True, False]])
    dense = AnswerOutputs(torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 3.0]]), torch.eye(3))
    other = AnswerOutputs(
        torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 2.0]])
    )
    got = compare(dense, other, answers)
    p = torch.tensor([2.0, 0.0]).softmax(0), torch.tensor([0.0, 3.0]).softmax(0)
    q = torch.tensor([0.0, 1.0]).softmax(0)
    kl = [float((one * (one / q).log()).sum()) for one in p]
    assert got[0].tolist() == pytest.approx([0, 0, 1], abs=1e-12)
    assert got[1].tolist() == pytest.approx([sum(kl) / 2, (1 - 0.5**0.5) / 2, 0], abs=1e-6)


def test_of_logits_that_overflow_in_half() -> None:
    """16-bit logits are compared in float64: no NaN from large values."""
    dense = AnswerOutputs(torch.tensor([[60000.0, -60000.0]]).half().float(), torch.ones(1, 2))
    other = AnswerOutputs(torch.tensor([[-60000.0, 60000.0]]).half().float(), torch.ones(1, 2))
    (difference,) = compare(dense, other, torch.tensor([[True]]))
    assert difference[0] == pytest.approx(120000, rel=1e-3)
    assert difference[2] == 0


def test_sets_are_spelled_one_way() -> None:
    some = frozenset({Step(2, "ffn"), Step(1, "attention"), Step(1, "ffn")})
    assert spec_text(some) == "silent:1 attend:2"
    assert skipped_by(as_schedule(some), 4) == some
    half = frozenset({Step(2, "ffn", 0.5), Step(2, "ffn", 0.25)})
    assert spec_text(half) == "attend@keep=0.25:2"
    assert kept_shares(half | some)[OperatorId(2, "ffn")] == 0
    assert skipping([(2, "ffn")], (0.1, 0.25, 0.5), 0.25) == half
    assert spec_text(NOTHING) == "none"
    assert all_operators(1) == (OperatorId(0, "attention"), OperatorId(0, "ffn"))
    assert OperatorId(17, "ffn").name == "17.ffn"


def test_through_visual_is_the_oracles() -> None:
    model, batch = recorded("llava")
    replay = Replay(model, batch, rows="through_visual")
    some = frozenset({Step(1, "ffn"), Step(2, "attention")})
    with torch.no_grad(), oracle(model, as_schedule(some, "through_visual"), batch.visual):
        want = model(**batch.inputs, use_cache=False).logits[batch.answers]
    assert torch.equal(replay.outcome(some).logits, want)
    assert not torch.equal(Replay(model, batch).outcome(some).logits, want)


def test_batches_that_do_not_fit_are_run_again() -> None:
    """The same figures with and without memory for recorded batches; with it, the dense forward runs once."""
    model = FAMILIES["llava"].build(3)
    prompts = samples("llava", 2)
    sets = [skipping([op]) for op in all_operators(3)]
    kept, dropped = meter(model, prompts), meter(model, prompts, kept_bytes=0)
    for each in (kept, dropped):
        each.measure(sets[:3], [0, 1])
    assert kept.measure(sets, [0, 1]) == dropped.measure(sets, [0, 1])
    assert len(kept._replays) == 2
    assert not dropped._replays
    assert dropped.layer_runs > kept.layer_runs
