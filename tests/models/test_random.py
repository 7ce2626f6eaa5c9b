"""Random decoders, schedules, layouts, batches and caches give the oracle's result: 200 cases in every run.

``benchmarks/random_cases.py`` runs any number of them. A failing case is printed as it was drawn; hypothesis shrinks
the schedule, the layout and the batch, not the decoder.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from random import Random
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from torch import Tensor

from opskip_compile.passes.rewrite import insert
from opskip_compile.schedule.schedule import Schedule
from tests.helpers.random_decoders import Checked, Decoder, Subject, check, make_case, make_subject, room

# Numbers of decoders: toys and text decoders with every cache, mask and number of chunks between them.
DECODERS = (0, 1, 7, 10, 12, 17, 18, 21, 23, 25, 28)
CASES = 17  # of each decoder

settings.register_profile("opskip", derandomize=True, deadline=None, print_blob=True, database=None)
CI = settings(
    settings.get_profile("opskip"),
    max_examples=CASES,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def test_random_cases_equal_the_oracle() -> None:
    logging.getLogger("transformers").setLevel(logging.ERROR)
    done: list[tuple[Subject, Checked]] = []
    with room():
        for number in DECODERS:
            subject = make_subject(number)  # captured once, at its first case
            holds(subject, done)
            assert sum(one is subject for one, _ in done) >= CASES / 2, subject.name
    named = [checked for _, checked in done if checked.wanted]
    whole = [checked for checked in named if len(checked.skipped) == checked.wanted]
    assert len(named) > 0.7 * len(done), "most schedules skip something"
    assert len(whole) > 0.7 * len(named), "most schedules are followed wholly"
    assert any(checked.reasons for _, checked in done), "some operator stays full"
    caches = Counter(subject.traits["cache"] for subject, checked in done if checked.skipped)
    assert len(caches) == 4, f"skipped with {caches}"


def holds(subject: Subject, done: list[tuple[Subject, Checked]]) -> None:
    """Every case that is drawn for the decoder gives the oracle's result; each is added to `done`."""

    @CI
    @given(rng=st.randoms(use_true_random=False))
    def case_holds(rng: Random) -> None:
        case = subject.draw(rng)
        note(f"{subject.name} {subject.traits}, {case}")
        done.append((subject, check(subject, case, shows=len(done) % 8 == 0)))

    case_holds()


@pytest.mark.parametrize("number", [59, 299])
def test_whole_models_on_the_real_path(number: int) -> None:
    """By `opskip_compile.compile` and by ``model.compile``."""
    with room():
        subject = make_subject(number)
        for j in range(3):
            check(subject, make_case(subject, number, 3 * j), shows=j == 0)


def update_of_every_row(live: Tensor, update: Tensor, before: Tensor) -> Tensor:
    """What ``torch.where(live, update, before)`` must not be."""
    return update


def test_the_check_finds_a_wrong_rewrite(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the flag of rows that are only filled in left out, some case of a batch fails soon."""
    monkeypatch.setattr(insert, "torch", SimpleNamespace(where=update_of_every_row))
    with room(), pytest.raises(AssertionError, match="off by"):
        for number in (18, 21):
            subject = make_subject(number)
            for i in range(20):
                check(subject, make_case(subject, number, i))


def test_the_check_finds_a_wrong_oracle() -> None:
    """A schedule that skips one operator less is another result."""
    with room(), torch.no_grad():
        subject = make_subject(18)
        case = next(c for i in range(20) if (c := make_case(subject, 18, i)).visual.any() and not c.schedule.is_empty)
        got = subject.run(case)
        skipped = [(op.layer, op.kind, op.rows or "") for op in got.reports[0].operators if op.skipped]
        assert skipped
        want = subject.want(case, [frozenset(skipped[1:])])
        assert not all(torch.allclose(a, b, 1e-4, 1e-4) for a, b in zip(got.values, want, strict=True))


def test_dynamic_shapes_beside_a_static_cache_are_pushed_through() -> None:
    """Queries are views that read the same sizes as the cache that is written in place."""
    rng = Random(0)
    subject = next(d for d in iter(lambda: Decoder(rng, "llama"), None) if is_static(d))
    with room(), torch.no_grad():
        case = replace(subject.draw(rng), schedule=Schedule.from_spec("late:1"))
        check(subject, case)
        report = subject.run(case).reports[0]
    assert len(report.skipped) == 2 * subject.layers
    assert not report.remaining()


def is_static(decoder: Decoder) -> bool:
    return decoder.traits["cache"] == "static" and decoder.traits["chunks"] == "one" and decoder.layers > 1


@pytest.mark.parametrize(("family", "left"), [("gpt_oss", None), ("apertus", {})])
def test_attention_with_sinks_and_a_smallest_of_two(family: str, left: dict[str, int] | None) -> None:
    rng = Random(0)
    subject = next(d for d in iter(lambda: Decoder(rng, family), None) if d.traits["chunks"] == "one")
    with room(), torch.no_grad():
        case = replace(subject.draw(rng), schedule=Schedule.from_spec("late:1"))
        check(subject, case)
        report = subject.run(case).reports[0]
    assert len(report.skipped) == 2 * subject.layers
    assert left is None or report.remaining() == left
