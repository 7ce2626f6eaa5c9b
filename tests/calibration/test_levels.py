"""A level for every prompt: the fit against plain algebra, the price of a cut, two kinds of prompts told apart."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import opskip_compile as opskip
from opskip_compile.calibration import levels as leveling
from opskip_compile.calibration.divergence_meter import Measured
from opskip_compile.calibration.operator_sets import NOTHING
from opskip_compile.calibration.plots import figure
from opskip_compile.calibration.row_scores import RowScores
from opskip_compile.calibration.search import Point
from opskip_compile.errors import OptionError
from opskip_compile.passes.levels import levels_of
from opskip_compile.schedule.chooser import BUCKETS
from opskip_compile.schedule.left_out import LeftOut
from tests.calibration.test_search import COSTS, EVERY
from tests.helpers.families import FAMILIES
from tests.helpers.planted import meter, samples

QUICK: dict[str, Any] = {"answer_tokens": 2, "controls": False, "stability": False}


def measured(values: Tensor) -> list[Measured]:
    """By level, of ``(prompts, levels)`` divergences."""
    return [Measured(tuple(c), (0.0,) * len(c), tuple(v < 0.1 for v in c)) for c in values.T.tolist()]


def two_kinds(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features of prompts, and their divergences at three levels: the second half bears the deepest, the first not."""
    drawn = torch.Generator().manual_seed(seed)
    kind = torch.arange(count) % 2
    known = torch.randn(count, 2 * BUCKETS, generator=drawn, dtype=torch.float64)
    known[:, 3:7] += 6.0 * kind[:, None]
    hard, easy = torch.tensor([1e-7, 0.01, 1.0]), torch.tensor([1e-7, 1e-5, 1e-3])
    noise = torch.randn(count, 3, generator=drawn, dtype=torch.float64).mul(0.2).exp()
    return known, torch.where(kind[:, None] == 1, easy, hard) * noise


def test_left_out_guesses_are_those_of_a_fit_without_the_prompt() -> None:
    """Against fitting again without each prompt, the mean of the rest in place of its mean."""
    known, divergences = two_kinds(24)
    scaled = (known - known.mean(0)) / known.std(0, correction=0)
    wanted = divergences.log()
    slopes, guesses = leveling._ridge(scaled, wanted)
    fits = {r: torch.stack([_without(scaled, wanted, i, r) for i in range(24)]) for r in leveling.RIDGES}
    ridge, want = min(fits.items(), key=lambda fit: float((fit[1] - wanted).square().mean()))
    torch.testing.assert_close(guesses, want, rtol=1e-6, atol=1e-8)
    design = scaled.T @ scaled + ridge * 24 * torch.eye(2 * BUCKETS, dtype=torch.float64)
    torch.testing.assert_close(slopes, torch.linalg.solve(design, scaled.T @ (wanted - wanted.mean(0))))


def _without(scaled: Tensor, wanted: Tensor, i: int, ridge: float) -> Tensor:
    """Intercept and slopes fitted together without prompt i, the ridge on the slopes only."""
    rest = torch.arange(len(scaled)) != i
    design = torch.cat([torch.ones(len(scaled), 1, dtype=torch.float64), scaled], 1)
    penalty = ridge * len(scaled) * torch.eye(design.shape[1], dtype=torch.float64)
    penalty[0, 0] = 0.0
    x, y = design[rest], wanted[rest]
    return design[i] @ torch.linalg.solve(x.T @ x + penalty, x.T @ y)


def test_kinds_of_prompts_are_told_apart_and_permuted_features_tell_nothing() -> None:
    """On new prompts: half of the divergence of one level for all at the same mean cut; with features of other prompts
    no better than one level for all."""
    known, divergences = two_kinds(120)
    fresh, truth = two_kinds(120, seed=1)
    cuts = [0.0, 0.4, 0.8]
    chooser = leveling.fitted(known, measured(divergences), cuts, 0.4, 0.0)
    found = leveling.summed_up(chooser, [NOTHING] * 3, cuts, fresh, measured(truth))
    assert found.cut == pytest.approx(0.4, abs=0.06)
    static = float(truth[:, 1].mean())
    assert found.quality.divergence < 0.5 * static
    assert found.hindsight.divergence <= found.quality.divergence
    assert sum(found.counts) == 120
    order = torch.randperm(120, generator=torch.Generator().manual_seed(0))
    blind = leveling.fitted(known[order], measured(divergences), cuts, 0.4, 0.0)
    lost = leveling.summed_up(blind, [NOTHING] * 3, cuts, fresh, measured(truth))
    assert lost.cut >= 0.3
    assert lost.quality.divergence >= 0.9 * static


@pytest.mark.parametrize("cut", [0.1, 0.4, 0.55, 0.8])
def test_the_mean_cut_is_reached_and_not_by_more_than_a_prompt(cut: float) -> None:
    _, divergences = two_kinds(60)
    cuts = torch.tensor([0.0, 0.4, 0.8], dtype=torch.float64)
    risks = divergences.sqrt()
    price = leveling._price(risks, cuts, cut)
    found = float(cuts[leveling._at_price(risks, cuts, price)].mean())
    assert cut - 1e-6 <= found < cut + 0.8 / 60 + 1e-6
    assert float(cuts[leveling._at_price(risks, cuts, 0.0)].mean()) <= found


def test_a_chooser_takes_the_levels_of_its_price() -> None:
    """What the file holds, rounded, does what was fitted: with perfect guesses, the levels of the least risk."""
    _, divergences = two_kinds(60)
    cuts, guesses = [0.0, 0.4, 0.8], divergences.log()
    price = leveling._price((guesses / 2).exp(), torch.tensor(cuts, dtype=torch.float64), 0.5)
    gains = torch.tensor([price * each for each in cuts], dtype=torch.float64)
    want = leveling._at_price(divergences.sqrt(), torch.tensor(cuts, dtype=torch.float64), price)
    assert torch.equal(levels_of(guesses, gains, float(guesses.max())), want)
    assert len(want.unique()) > 1


@pytest.mark.parametrize("cut", [0.2, 0.5, 0.7])
def test_hindsight_is_the_best_there_is(cut: float) -> None:
    """Against trying every choice of levels for eight prompts: no better one saves as much as hindsight did."""
    _, divergences = two_kinds(8)
    cuts = [0.0, 0.4, 0.8]
    levels = leveling.in_hindsight(measured(divergences), cuts, cut)
    saved = sum(cuts[level] for level in levels)
    assert cut - 1e-9 <= saved / 8 < cut + 0.8 / 8 + 1e-9
    best = min(
        sum(float(divergences[i, level]) for i, level in enumerate(choice))
        for choice in itertools.product(range(3), repeat=8)
        if sum(cuts[level] for level in choice) >= saved - 1e-9
    )
    assert sum(float(divergences[i, level]) for i, level in enumerate(levels)) == pytest.approx(best)


def test_hindsight_where_all_levels_save_the_same() -> None:
    _, divergences = two_kinds(4)
    assert leveling.in_hindsight(measured(divergences), [0.3] * 3, 0.3) == divergences.argmin(1).tolist()


def test_scores_for_one_level_are_paid_at_all_of_them() -> None:
    """By hand: the first level alone needs none, the second asks layer 0."""
    one = {EVERY[0].op: LeftOut()}
    two = {EVERY[0].op: LeftOut(), EVERY[1].op: LeftOut(keep=0.5)}
    first, second = COSTS.of_levels([one, two])
    assert first == pytest.approx(COSTS.leaving_out(one) + COSTS.scores(True))
    assert second == pytest.approx(COSTS.leaving_out(two))
    assert COSTS.of_levels([one, one]) == [COSTS.leaving_out(one)] * 2


def test_levels_that_the_compiler_can_not_tell_are_refused() -> None:
    """A decoder with eager attention: no calibration gives a schedule of which nothing is skipped."""
    model = FAMILIES["llava"].build(3)
    model.set_attn_implementation("eager")
    with pytest.raises(OptionError, match="levels: the compiler can tell none in Llava"):
        opskip.calibrate(model, samples("llava", 4), 0.3, levels=3, **QUICK)


def test_a_divergence_for_each_prompt() -> None:
    """Without a cut the threshold is the divergence: no prompt is taken where its guess is above."""
    known, divergences = two_kinds(100)
    chooser = leveling.fitted(known, measured(divergences), [0.0, 0.4, 0.8], None, 3e-3)
    assert chooser.threshold == pytest.approx(math.log(3e-3), rel=1e-5)
    levels = leveling.chosen_levels(chooser, known)
    taken = [float(divergences[i, level]) for i, level in enumerate(levels)]
    assert sum(value <= 9e-3 for value in taken) >= 95
    assert levels[1::2].count(2) >= 45
    assert levels[::2].count(2) == 0


def test_candidates_begin_with_nothing_and_end_with_the_deepest() -> None:
    path = [NOTHING]
    for step in EVERY:
        path.append(path[-1] | {step})
    points = [Point(s, Measured((0.1 * len(s),), (0.0,), (True,))) for s in path]
    for count in (2, 3, 5):
        sets = leveling.candidates(points, COSTS, count, 0.5)
        assert sets[0] == NOTHING
        assert sets[-1] == path[-1]
        assert len(sets) <= count
        cuts = [COSTS.cut(s) for s in sets]
        assert cuts == sorted(cuts)
        assert all(cut >= 0.15 for cut in cuts[1:])
    assert len(leveling.candidates(points, COSTS, 16, None)) == len(path)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> opskip.CalibrationResult:
    torch._dynamo.reset()
    return opskip.calibrate(FAMILIES["qwen3_vl"].build(4), samples("qwen3_vl", 8), 0.4, levels=4, **QUICK)


def test_the_schedule_has_levels(calibrated: opskip.CalibrationResult, tmp_path: Path) -> None:
    """With the evidence beside it; what one schedule for all would do is there, too."""
    schedule, levels = calibrated.schedule, calibrated.levels
    assert levels is not None
    assert 2 <= len(schedule.levels) <= 4
    assert schedule.levels[0].is_empty
    assert levels.heldout is not None
    assert levels.judged is levels.heldout
    assert sum(levels.calibration.counts) == 12
    assert sum(levels.heldout.counts) == 4
    assert schedule.provenance["heldout"]["counts"] == list(levels.heldout.counts)
    assert schedule.provenance["flops_cut"] == pytest.approx(levels.heldout.cut, rel=1e-5)
    assert schedule.provenance["samples"] == 12
    assert not calibrated.chosen.schedule.levels
    assert "with a level for each prompt, held out" in str(calibrated)
    assert f"  level {len(schedule.levels) - 1}, " in str(calibrated)
    schedule.save(tmp_path / "levels.json")
    assert opskip.Schedule.load(tmp_path / "levels.json") == schedule
    assert calibrated.report["levels"]["specs"] == [level.to_spec() for level in schedule.levels]
    (point,) = [line for axes in figure(calibrated).axes for line in axes.lines if line.get_gid() == "levels"]
    assert point.get_xdata()[0] == pytest.approx(100 * levels.heldout.cut)
    calibrated.to_html(tmp_path / "page.html")
    assert "level for each prompt" in (tmp_path / "page.html").read_text()


def test_compiled_prompts_take_the_levels_that_calibration_saw(calibrated: opskip.CalibrationResult) -> None:
    """A prefill has no answer rows; the levels of all batches are those that were counted."""
    model = FAMILIES["qwen3_vl"].build(4)
    torch._dynamo.reset()
    opskip.compile(model, calibrated.schedule, options={"lower": "eager"})
    levels: list[int] = []
    with torch.no_grad():
        for inputs in samples("qwen3_vl", 8):
            model(**inputs)
            levels += opskip.last_report().levels
    opskip.remove(model)
    assert calibrated.levels is not None
    assert calibrated.levels.heldout is not None
    counted = zip(calibrated.levels.calibration.counts, calibrated.levels.heldout.counts, strict=True)
    assert [levels.count(i) for i in range(len(calibrated.schedule.levels))] == [a + b for a, b in counted]


def test_what_is_known_of_a_prompt_is_what_enters_its_decoder() -> None:
    model = FAMILIES["llava"].build(2)
    prompts = samples("llava", 2)
    measuring = meter(model, prompts, 3, watch=RowScores)
    known = leveling.prompt_features(measuring, [0, 1])
    assert known.shape == (4, 2 * BUCKETS)
    assert known.dtype == torch.float64
    assert len(known.unique(dim=0)) == 4
    alone = leveling.prompt_features(meter(model, prompts, 5), [0, 1])
    torch.testing.assert_close(known, alone)  # answers of another length change nothing


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"levels": 0}, "levels: expected an integer of at least 1"),
        ({"levels": 17}, "levels: at most 16, got 17"),
        ({"levels": 4, "budget": "20ms"}, "levels: need a budget in FLOPs or a divergence"),
        ({"levels": 4, "search": "scores"}, "levels: need search='joint'"),
        ({"search_samples": 0}, "search_samples: expected an integer of at least 1"),
    ],
)
def test_bad_options(more: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        opskip.CalibrationConfig(**more)


def test_the_search_looks_at_some_samples_only() -> None:
    """Levels are fitted to all; the provenance says how many the search saw."""
    model = FAMILIES["llava"].build(3)
    result = opskip.calibrate(model, samples("llava", 8), 0.3, levels=3, search_samples=4, **QUICK)
    assert result.chosen.schedule.provenance["samples"] == 4
    assert result.schedule.provenance["samples"] == 12
    assert result.levels is not None
    assert sum(result.levels.calibration.counts) == 12
    assert result.chosen.calibration is not None
    assert result.chosen.calibration.samples == 4


def test_of_levels_that_are_worth_the_same_the_deepest_is_taken() -> None:
    """In the graph and where the price is found alike, so that the cut that was promised is the cut."""
    gains = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
    assert levels_of(torch.tensor([[-2000.0, 0.0, 0.0]], dtype=torch.float64), gains, 10.0).tolist() == [2]
    assert leveling._at_price(torch.tensor([[0.0, 1.0, 1.0]], dtype=torch.float64), gains, 1.0).tolist() == [2]
