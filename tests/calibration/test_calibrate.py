"""`calibrate`, from samples to a schedule with evidence: planted truths, determinism, interrupts, several processes."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import opskip_compile as opskip
from opskip_compile.calibration import costs, latency
from opskip_compile.calibration.divergence_meter import DivergenceMeter
from opskip_compile.calibration.operator_sets import OperatorId, Step, kept_shares
from opskip_compile.calibration.replay import Replay
from opskip_compile.calibration.samples import Samples
from opskip_compile.errors import OpSkipError, OptionError
from opskip_compile.models.oracle import decoder_layers
from opskip_compile.schedule.left_out import LeftOut
from tests.helpers.families import FAMILIES
from tests.helpers.planted import PromptWatch, deaf_after, meter, samples, skipped_by
from tests.helpers.support import ZOO

QUICK: dict[str, Any] = {"answer_tokens": 2, "controls": False, "stability": False}


_CAPTURED: dict[Any, Any] = {}


@pytest.fixture(autouse=True)
def captured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Capturing a decoder takes seconds: models of one class, depth and prompt have one report."""
    real = costs.compiled_report

    def report(model: nn.Module, prompts: Samples, keep: float = 0.0) -> Any:
        shape = tuple(prompts.inputs(0)["input_ids"].shape)
        key = (type(model), len(decoder_layers(model)), next(model.parameters()).dtype, shape, prompts.rows, keep)
        if key not in _CAPTURED:
            _CAPTURED[key] = real(model, prompts, keep)
        return copy.copy(_CAPTURED[key])

    monkeypatch.setattr(costs, "compiled_report", report)


@pytest.fixture(scope="module")
def calibrated() -> opskip.CalibrationResult:
    """A calibration with everything in it."""
    return opskip.calibrate(FAMILIES["qwen3_vl"].build(4), samples("qwen3_vl", 6), 0.4, answer_tokens=2)


@pytest.mark.parametrize("method", ["probe", "fisher", "first_order"])
def test_planted_operators_are_found_exactly(method: str) -> None:
    """The most cut that leaves the answers as they are is the set that nobody reads."""
    model, unread = deaf_after(3)
    result = opskip.calibrate(model, samples("llava", 3), "kl<1e-9", method=method, **QUICK)
    assert result.chosen.kept == dict.fromkeys(sorted(unread), 0.0)
    assert result.chosen.heldout is not None
    assert result.chosen.heldout.divergence < 1e-9
    assert result.chosen.heldout.agreement == 1


def test_the_control_is_fooled() -> None:
    """By size alone, what nobody reads would be kept and what the answer needs would go."""
    model, unread = deaf_after(3)
    by_size, by_answer = (
        opskip.calibrate(model, samples("llava", 3), 0.3, method=method, search="scores", **QUICK).chosen
        for method in ("update_norm", "probe")
    )
    assert set(by_answer.kept) <= unread
    assert not set(by_size.kept) <= unread
    assert by_size.calibration is not None
    assert by_size.calibration.divergence > 1e-4


def test_the_evidence(calibrated: opskip.CalibrationResult) -> None:
    chosen = calibrated.chosen
    assert chosen.cut >= 0.4
    assert chosen.cost <= 0.6 * calibrated.dense_cost
    assert kept_shares(skipped_by(calibrated.schedule, 4)) == chosen.kept
    assert set(calibrated.scores.values) == {
        OperatorId(layer, kind) for layer in range(4) for kind in ("attention", "ffn")
    }
    assert set(calibrated.controls) == {"without shares", "whole layers", "random", "late"}
    assert len(calibrated.controls["random"]) == 10
    assert all(choice.cut >= chosen.cut - 1e-9 for choice in calibrated.controls["random"])
    assert calibrated.front[0].cut < 0.4 < calibrated.front[-1].cut
    assert [c.cut for c in calibrated.front] == sorted(c.cut for c in calibrated.front)
    divergences = [c.calibration.divergence for c in calibrated.front if c.calibration is not None]
    assert divergences == sorted(divergences)
    assert all(c.heldout is not None for c in calibrated.front)
    assert calibrated.stability is not None
    assert 0 <= calibrated.stability.overlap <= 1
    assert calibrated.full == ()
    assert calibrated.spent.flops > 0
    assert calibrated.spent.dense_prefills > 8


def test_choices_are_measured_by_the_oracle(calibrated: opskip.CalibrationResult) -> None:
    """The divergence of the chosen schedule, computed again by hand on all its samples."""
    model = FAMILIES["qwen3_vl"].build(4)
    divergences = []
    for inputs in samples("qwen3_vl", 6):
        with torch.no_grad():
            said = model.generate(**inputs, max_new_tokens=2, do_sample=False, suppress_tokens=[190, 191])
            answer = said[:, inputs["input_ids"].shape[1] :]
            more = {
                **inputs,
                "input_ids": said,
                "attention_mask": torch.cat([inputs["attention_mask"], torch.ones_like(answer)], 1),
                "mm_token_type_ids": torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(answer)], 1),
            }
            dense = model(**more).logits[:, -3:-1].log_softmax(-1)
            watch = PromptWatch(inputs["input_ids"].shape[1])
            with opskip.oracle(model, calibrated.schedule, said == 190, watch=watch):
                skipped = model(**more).logits[:, -3:-1].log_softmax(-1)
        divergences += (dense.exp() * (dense - skipped)).sum(-1).mean(-1).tolist()
    inside, heldout = calibrated.chosen.calibration, calibrated.chosen.heldout
    assert inside is not None
    assert heldout is not None
    total = inside.divergence * inside.samples + heldout.divergence * heldout.samples
    assert total == pytest.approx(sum(divergences), rel=1e-3)


def test_the_schedule_runs_compiled(calibrated: opskip.CalibrationResult, fresh: None) -> None:
    model, inputs = FAMILIES["qwen3_vl"].build(4), samples("qwen3_vl", 1)[0]
    opskip.compile(model, calibrated.schedule, options={"lower": "eager", "strict": True})
    got = model(**inputs).logits
    opskip.remove(model)
    with opskip.oracle(model, calibrated.schedule, inputs["input_ids"] == 190):
        torch.testing.assert_close(got, model(**inputs).logits, atol=1e-4, rtol=1e-4)
    assert len(opskip.last_report().skipped) == len(calibrated.chosen.kept)


def test_provenance(calibrated: opskip.CalibrationResult) -> None:
    about = calibrated.schedule.provenance
    assert about["source"] == "opskip calibrate"
    assert about["budget"] == "40.0% fewer FLOPs"
    assert about["samples"] == 8  # two in each of the four batches that are not held out
    assert about["heldout"]["samples"] == 4
    assert about["visual_rows"] == 24
    assert about["torch"] == torch.__version__
    assert re.fullmatch("[0-9a-f]{16}", about["model"])
    assert re.fullmatch("[0-9a-f]{16}", about["data"])
    assert calibrated.schedule.model["architecture"] == "qwen3_vl"
    assert calibrated.schedule.model["num_layers"] == 4


def test_report_is_json_and_text_says_the_same(calibrated: opskip.CalibrationResult) -> None:
    report = json.loads(json.dumps(calibrated.report))
    assert report["schedule"] == calibrated.schedule.to_dict()
    assert len(report["front"]) == len(calibrated.front)
    assert report["scores"]["values"]["0.ffn"] == calibrated.scores.values[OperatorId(0, "ffn")]
    assert 0 < report["chosen"]["heldout"]["turned"] < 1
    text = str(calibrated)
    assert f"{calibrated.chosen.cut:.1%} fewer FLOPs" in text
    assert calibrated.schedule.to_spec() in text
    assert "whole layers: " in text


def test_two_runs_with_one_seed_write_the_same_bytes(calibrated: opskip.CalibrationResult, tmp_path: Path) -> None:
    again = opskip.calibrate(FAMILIES["qwen3_vl"].build(4), samples("qwen3_vl", 6), 0.4, answer_tokens=2)
    calibrated.schedule.save(tmp_path / "a.json")
    again.schedule.save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert {k: v for k, v in again.report.items() if k != "spent"} == {
        k: v for k, v in calibrated.report.items() if k != "spent"
    }


class Interrupted(Exception):
    pass


def test_an_interrupt_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped again and again: the measurements of all runs together are those of one, each made once."""
    journal, model, prompts = tmp_path / "journal", FAMILIES["llava"].build(3), samples("llava", 5)
    wanted = opskip.calibrate(model, prompts, 0.4, answer_tokens=2)
    whole, ran = Replay.outcome, 0

    def counted(self: Replay, skipped: Any) -> Any:
        nonlocal ran
        ran += 1
        if ran % 61 == 0:
            raise Interrupted
        return whole(self, skipped)

    monkeypatch.setattr(Replay, "outcome", counted)
    for _ in range(40):
        try:
            result = opskip.calibrate(model, prompts, 0.4, answer_tokens=2, resume=journal)
            break
        except Interrupted:
            continue
    assert ran > 2 * 61
    assert result.schedule.to_dict() == wanted.schedule.to_dict()
    assert result.report["front"] == wanted.report["front"]
    lines = [json.loads(line) for line in journal.read_text().splitlines()[1:]]
    keys = [(line["key"], line["item"]) for line in lines]
    assert len(keys) == len(set(keys))
    ran = 1
    opskip.calibrate(model, prompts, 0.4, answer_tokens=2, resume=journal)
    assert ran == 1  # everything was known


def test_another_model_or_other_samples_need_another_journal(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    model = FAMILIES["llava"].build(2)
    opskip.calibrate(model, samples("llava", 2), 0.2, resume=journal, **QUICK)
    with pytest.raises(OpSkipError, match=r"resume: .* was written with data"):
        opskip.calibrate(model, samples("llava", 3), 0.2, resume=journal, **QUICK)
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    with pytest.raises(OpSkipError, match=r"resume: .* was written with model"):
        opskip.calibrate(model, samples("llava", 2), 0.2, resume=journal, **QUICK)


def test_the_model_stays_as_it_was(fresh: None) -> None:
    """Compiled and in training mode, before and after; it is calibrated dense all the same."""
    model, prompts = FAMILIES["llava"].build(3), samples("llava", 2)
    plain = opskip.calibrate(model, prompts, 0.3, **QUICK)
    opskip.compile(model, "silent:0-2", options={"lower": "eager"})
    model.train()
    model.model.vision_tower.eval()
    forward = model.get_decoder().forward
    result = opskip.calibrate(model, prompts, 0.3, **QUICK)
    assert result.schedule == plain.schedule
    assert result.report["front"] == plain.report["front"]
    assert model.get_decoder().forward == forward
    assert model.training
    assert not model.model.vision_tower.training


@pytest.mark.parametrize("level", ["operator", "layer"])
@pytest.mark.parametrize("method", ["update_norm", "first_order", "fisher", "probe"])
def test_every_way_to_choose_meets_the_budget(method: str, level: str) -> None:
    result = opskip.calibrate(
        FAMILIES["llava"].build(4), samples("llava", 2), "45%", method=method, level=level, whole_front=False, **QUICK
    )
    assert result.chosen.cut >= 0.45
    if level == "layer":
        assert {layer.state for layer in result.schedule.resolve(4)} == {"full", "silent"}


def test_flops_and_floor_budgets() -> None:
    model, prompts = FAMILIES["llava"].build(4), samples("llava", 2)
    dense = opskip.calibrate(model, prompts, 0.2, whole_front=False, **QUICK).dense_cost
    asked = opskip.calibrate(model, prompts, f"{0.7 * dense} FLOPs", whole_front=False, **QUICK)
    assert asked.chosen.cost <= 0.7 * dense
    floors = [opskip.calibrate(model, prompts, f"kl<{most}", **QUICK) for most in (1e-5, 1e-2)]
    for result, most in zip(floors, (1e-5, 1e-2), strict=True):
        assert result.chosen.calibration is not None
        assert result.chosen.calibration.divergence < most
    assert floors[0].chosen.cut < floors[1].chosen.cut


def test_flops_are_those_of_the_prompts() -> None:
    """The mean over prompts of different length, without their answers: as `count_flops` has it."""
    model, prompts = FAMILIES["llava"].build(3), samples("llava", 2)
    result = opskip.calibrate(model, prompts, 0.3, **{**QUICK, "answer_tokens": 7})
    counted = [
        opskip.count_flops(model, visual_tokens=visual, text_tokens=text, schedule=result.schedule)
        for visual, text in ((16, 8), (32, 9)) * 2
    ]
    assert result.dense_cost == pytest.approx(sum(c.dense for c in counted) / 4)
    assert result.chosen.cost == pytest.approx(sum(c.skipped for c in counted) / 4)


def test_milliseconds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By a table of the layer states, timed once and kept in the journal."""
    model, prompts = FAMILIES["llava"].build(3), samples("llava", 2)
    timed: list[int] = []
    shares = {"": 0.0, "@keep=0.1": 0.1, "@keep=0.25": 0.25, "@keep=0.5": 0.5}

    def table(model: Any, batch: Any, candidates: Any, rows: Any, **more: Any) -> dict[str, float]:
        timed.append(1)
        return {
            "full": 30.0,
            **{f"attend{share}": 12.0 + 18 * kept for share, kept in shares.items()},
            **{f"transform{share}": 24.0 + 6 * kept for share, kept in shares.items()},
            **{f"silent{share}": 3.0 + 27 * kept for share, kept in shares.items()},
        }

    monkeypatch.setattr(latency, "latency_table", table)
    for _ in range(2):
        result = opskip.calibrate(model, prompts, "20 ms", resume=tmp_path / "journal", **QUICK)
    assert timed == [1]
    assert result.unit == "ms"
    assert result.dense_cost == 30
    assert result.chosen.cost <= 20
    assert "30 ms -> " in str(result)
    with pytest.raises(OptionError, match="budget: 2 ms can't be met: with every operator skipped that can be, 3 ms"):
        opskip.calibrate(model, prompts, "2ms", resume=tmp_path / "journal", **QUICK)


def test_the_table_is_of_the_compiled_decoder(fresh: None) -> None:
    """All states are compiled and run; what is skipped is what the state says."""
    model = FAMILIES["qwen3_vl"].build(2)
    every = frozenset(
        Step(layer, kind, keep) for layer in range(2) for kind in ("attention", "ffn") for keep in (0.5, 0.0)
    )
    without = {Step(0, "ffn"), Step(0, "ffn", 0.5)}
    with torch.no_grad():
        batch = meter(model, samples("qwen3_vl", 1)).samples.batch(0)
        milliseconds = latency.latency_table(model, batch, every - without, lower="eager", rounds=1)
    half = {"attend@keep=0.5", "transform@keep=0.5", "silent@keep=0.5"}
    assert set(milliseconds) == {"full", "attend", "transform", "silent"} | half
    assert all(value > 0 for value in milliseconds.values())
    assert {len(report.skipped) for report in opskip.reports() if report.operators} == {0, 1, 2, 3}


@pytest.mark.parametrize(("family", "full"), [("qwen3_vl_moe", 0), ("lfm2_vl", 0), ("gemma4", 0)])
def test_experts_recurrences_and_shared_keys(family: str, full: int) -> None:
    """Where the formula does not describe the decoder, FLOPs are counted in the compiler's graphs."""
    result = opskip.calibrate(ZOO[family].build(), [ZOO[family].inputs(seed=i) for i in range(2)], 0.15, **QUICK)
    assert result.chosen.cut >= 0.15
    assert len(result.full) == full


def test_operators_that_the_compiler_leaves_full_are_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    real = costs.compiled_report

    def partly(model: Any, prompts: Any, keep: float = 0.0) -> Any:
        report = real(model, prompts, keep)
        operators = tuple(op if op.name != "3.ffn" else replace(op, rows=None) for op in report.operators)
        return replace(report, operators=operators)

    monkeypatch.setattr(costs, "compiled_report", partly)
    result = opskip.calibrate(FAMILIES["llava"].build(4), samples("llava", 2), 0.4, **QUICK)
    assert result.full == ("3.ffn",)
    assert all(OperatorId(3, "ffn") not in choice.kept for choice in result.front)
    assert "left full by the compiler: 3.ffn" in str(result)


def test_what_the_compiler_leaves_full_saves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither skipped nor but for a share; and the report says of which operators no share can be kept."""
    real = costs.compiled_report

    def partly(model: Any, prompts: Any, keep: float = 0.0) -> Any:
        report = real(model, prompts, keep)
        full = ("0.ffn", "1.ffn") if keep else ("1.ffn",)
        operators = tuple(op if op.name not in full else replace(op, rows=None) for op in report.operators)
        return replace(report, operators=operators)

    monkeypatch.setattr(costs, "compiled_report", partly)
    model = FAMILIES["llava"].build(2)
    prices = costs.flops_costs(model, meter(model, samples("llava", 1)).samples, shares=True)
    whole = {Step(0, "attention"), Step(0, "ffn"), Step(1, "attention")}
    assert prices.candidates() == whole
    assert prices.candidates((0.5,)) == whole | {Step(0, "attention", 0.5), Step(1, "attention", 0.5)}
    for step in (Step(1, "ffn"), Step(1, "ffn", 0.5), Step(0, "ffn", 0.5)):
        assert prices.of(frozenset({step})) == prices.dense
    assert prices.of(frozenset({Step(0, "ffn")})) < prices.dense
    result = opskip.calibrate(model, samples("llava", 2), 0.2, shares=(0.5,), **QUICK)
    assert result.without_shares == ("0.ffn",)
    assert "the compiler can keep no share of: 0.ffn" in str(result)
    assert opskip.calibrate(model, samples("llava", 2), 0.2, shares=(), **QUICK).without_shares == ()


def test_shares_are_used_where_they_serve(calibrated: opskip.CalibrationResult) -> None:
    """More is saved at the same divergence than without them, and the graph saves what the costs say."""
    shares = set(calibrated.chosen.kept.values())
    assert shares & {0.1, 0.25, 0.5}
    without = [c.calibration for c in calibrated.controls["without shares"] if c.cut >= calibrated.chosen.cut]
    assert calibrated.chosen.calibration is not None
    assert all(q is None or calibrated.chosen.calibration.divergence <= q.divergence for q in without)
    assert not any(set(c.kept.values()) - {0.0} for c in calibrated.controls["without shares"])
    model = FAMILIES["qwen3_vl"].build(4)
    report = opskip.explain(model, samples("qwen3_vl", 1)[0], schedule=calibrated.schedule)
    kept = {OperatorId(op.layer, op.kind): LeftOut.parse(str(op.rows)).keep for op in report.operators if op.skipped}
    assert kept == calibrated.chosen.kept


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ((0.5, 1.0), "shares: expected numbers over 0 and below 1"),
        ((0.0,), "shares: expected numbers over 0 and below 1"),
        ((2,), "shares: keep: expected a number from 0 to 1, got 2"),
        ("0.5", "shares: expected numbers"),
        (0.5, "shares: expected numbers"),
    ],
)
def test_bad_shares(shares: Any, said: str) -> None:
    with pytest.raises(OptionError, match=re.escape(said)):
        opskip.CalibrationConfig(shares=shares)
    assert opskip.CalibrationConfig(shares=(0.5, 0.25, 0.5)).shares == (0.25, 0.5)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"budget": 0.95}, "budget: 95.0% fewer FLOPs can't be met"),
        ({"budget": "soon"}, "budget: expected a share"),
        ({"method": "magic"}, "method: expected one of probe"),
        ({"level": "head"}, "level: expected one of operator, layer, got 'head'"),
        ({"search": "x"}, "search: expected one of joint, scores"),
        ({"rows": "all"}, "rows: expected one of visual, through_visual"),
        ({"holdout": 1}, "holdout: expected a share"),
        ({"seed": -1}, "seed: expected an integer of at least 0"),
        ({"refresh": 0}, "refresh: expected an integer of at least 1"),
        ({"answer_tokens": 0}, "answer_tokens: expected an integer of at least 1"),
        ({"samples": "data.jsonl"}, "processor: needed to read samples from a file"),
    ],
)
def test_bad_options_are_refused_before_the_model_answers(
    more: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DivergenceMeter, "measure", lambda *_: pytest.fail("measured"))
    model = FAMILIES["llava"].build(2)
    monkeypatch.setattr(model, "generate", lambda **_: pytest.fail("generated"))
    arguments = {"samples": samples("llava", 2), "budget": 0.3, **more}
    with pytest.raises(OptionError, match=re.escape(said)):
        opskip.calibrate(model, **arguments)


@pytest.mark.parametrize(("family", "why"), [("mllama", "cross-attention")])
def test_a_decoder_in_which_nothing_can_be_skipped(family: str, why: str) -> None:
    with pytest.raises(OpSkipError, match=f"model: the compiler can skip nothing in .*{why}"):
        opskip.calibrate(ZOO[family].build(), [ZOO[family].inputs(seed=i) for i in range(2)], 0.2, **QUICK)


def test_half_precision() -> None:
    model = FAMILIES["llava"].build(3, torch.bfloat16)
    result = opskip.calibrate(
        model, samples("llava", 2), 0.3, **QUICK
    )  # pictures in float32, as processors return them
    assert result.chosen.cut >= 0.3
    assert (
        result.schedule.provenance["model"]
        != opskip.calibrate(FAMILIES["llava"].build(3), samples("llava", 2), 0.3, **QUICK).schedule.provenance["model"]
    )
