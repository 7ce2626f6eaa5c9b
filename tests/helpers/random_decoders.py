"""Random cases, each compared with the oracle: (decoder, schedule, layout of the visual rows, batch, cache).

A decoder is captured by Dynamo once for all of its cases. `Switch` then hands the captured graph to the real backend
for every schedule, so what runs is what ``torch.compile(..., backend="opskip")`` would run, under Dynamo's guards.
`random_wholes` goes the whole real way instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Protocol
from unittest import mock

import torch
from torch import Tensor, fx, nn

import opskip_compile as opskip
from opskip_compile.backend import capture
from opskip_compile.backend.entry import opskip as backend
from opskip_compile.backend.reports import REPORTS
from opskip_compile.passes.normalize.cleanup import copy_graph
from opskip_compile.schedule.rules import OPERATORS
from tests.helpers import decoders
from tests.helpers.caches import CACHE
from tests.helpers.leveled import chooser, skipping
from tests.helpers.random_layouts import random_levels, random_rows, random_schedule
from tests.helpers.random_models import FAMILIES, build, random_config
from tests.helpers.random_programs import WIDTH, random_program

TOLERANCE = 1e-4
Skipped = frozenset[tuple[int, str, str]]


@dataclass(frozen=True)
class Case:
    """What is drawn for one call: bool ``(batch, sequence)`` masks, the lengths of the chunks, a seed of the values."""

    schedule: opskip.Schedule
    visual: Tensor
    shown: Tensor
    chunks: tuple[int, ...]
    seed: int

    def __str__(self) -> str:
        def rows(i: int) -> str:
            return "".join(
                "_vt"[0 if not s else 1 if v else 2] for v, s in zip(self.visual[i], self.shown[i], strict=True)
            )

        layout = " ".join(rows(i) for i in range(len(self.visual)))
        return f"schedule {self.schedule.to_spec()!r}, rows {layout}, chunks {self.chunks}, seed {self.seed}"


@dataclass
class Ran:
    """What one call gave: tensors, with the bool mask of what counts in each, and the report of every chunk."""

    values: list[Tensor]
    masks: list[Tensor | None]
    reports: list[opskip.Report] = field(default_factory=list)


class Subject(Protocol):
    """One decoder, captured once; `traits` say what it is."""

    name: str
    traits: dict[str, str]
    layers: int

    def draw(self, rng: Random) -> Case: ...

    def run(self, case: Case) -> Ran:
        """Compiled."""

    def want(self, case: Case, skipped: Sequence[Skipped]) -> list[Tensor]:
        """Under the definition; one set of skipped operators per chunk."""


class Switch:
    """A backend that keeps what Dynamo captured and rewrites it for the present schedule when it is called."""

    def __init__(self) -> None:
        capture.install()  # as the backend's name does
        self.schedule = opskip.Schedule()
        self.reports: list[opskip.Report] = []

    def __call__(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        captured, made = copy_graph(gm.graph), dict[opskip.Schedule, tuple[Callable[..., Any], opskip.Report]]()

        def call(*args: Any) -> Any:
            if self.schedule not in made:
                count = REPORTS.count
                own = fx.GraphModule(gm, copy_graph(captured))
                run = backend(own, args, options={"schedule": self.schedule, "lower": "eager"})
                made[self.schedule] = run, REPORTS.since(count)[0]
            run, report = made[self.schedule]
            self.reports.append(report)
            return run(*args)

        return call


def compiled(function: Callable[..., Any], switch: Switch) -> Callable[..., Any]:
    """One capture for every batch above one and every length."""
    return torch.compile(function, backend=switch, dynamic=True, fullgraph=True)


def random_case(rng: Random, layers: int, single: bool, padding: bool, chunks: str, keeps: bool = False) -> Case:
    batch, length = 1 if single else rng.randint(2, 6), rng.randint(5, 14)
    visual = torch.tensor([random_rows(rng, length) for _ in range(batch)])
    shown = torch.ones_like(visual)
    if padding:
        left = rng.random() < 0.5
        for row in shown:
            n = rng.choice((0, 0, 1, 2, 3))
            row[: n if left else 0] = False
            row[length if left else length - n :] = False
    parts = (length,)
    if chunks == "two":
        first = rng.randint(2, length - 2)
        parts = (first, length - first)
    elif chunks == "decode":
        parts = (length - 2, 1, 1)
        visual[:, -2:] = False
    schedule, seed = random_schedule(rng, layers, keeps), rng.randint(0, 10**6)
    if keeps and rng.random() < 0.3:
        levels = random_levels(rng, layers)
        chosen = chooser(len(levels), rng.choice((-3.0, 0.0, 0.0, 3.0)), seed)
        schedule = opskip.Schedule(levels=levels, chooser=chosen)
    return Case(schedule, visual, shown, parts, seed)


class Program:
    """A toy decoder: written by hand (see `decoders`) or drawn op by op (see `random_programs`)."""

    def __init__(self, rng: Random) -> None:
        hand = rng.random() < 0.3
        name = rng.choice(HAND_WRITTEN) if hand else ""
        self.program, text = (getattr(decoders, name), name) if hand else random_program(rng)
        join = decoders.add_in_place if name == "pre_norm" and rng.random() < 0.5 else decoders.add
        self.single = rng.random() < 0.3
        self.name = "toy" if hand else "program"
        self.traits = {"what": text, "cache": "none", "batch": "1" if self.single else "2-6"}
        self.layers, self.switch = 0, Switch()
        self.run_compiled = compiled(
            lambda h, visual, features: self.program(opskip.mark_visual(h, visual), join, features), self.switch
        )
        self.program(torch.zeros(1, 3, WIDTH), self._count, torch.zeros(1, 3, WIDTH))

    def _count(self, h: Tensor, layer: int, **branches: Tensor) -> Tensor:
        self.layers = max(self.layers, layer + 1)
        return decoders.add(h, layer, **branches)

    def draw(self, rng: Random) -> Case:
        return random_case(rng, self.layers, self.single, False, "one")

    def _inputs(self, case: Case) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(case.seed)
        shape = (*case.visual.shape, WIDTH)
        return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)

    def run(self, case: Case) -> Ran:
        h, features = self._inputs(case)
        self.switch.schedule, self.switch.reports = case.schedule, []
        values = _flat(self.run_compiled(h, case.visual, features))
        return Ran(values, [None] * len(values), self.switch.reports)

    def want(self, case: Case, skipped: Sequence[Skipped]) -> list[Tensor]:
        h, features = self._inputs(case)
        names = [f"{layer}.{kind}" for layer, kind, _ in skipped[0]]
        through = [f"{layer}.{kind}" for layer, kind, rows in skipped[0] if rows == "through_visual"]
        return _flat(self.program(h, decoders.oracle(case.visual, names, through), features))


HAND_WRITTEN = (
    "pre_norm norm_after parallel scaled deepstack deepstack_in_place in_place_at_once plain_ffn hidden_states "
    "shape_only ffn_first with_cache gate_in_layer_one fragment"
).split()


class Decoder:
    """A random text decoder of transformers, with a cache or without, in one chunk or in several."""

    def __init__(self, rng: Random, family: str | None = None) -> None:
        self.name = family or rng.choice(FAMILIES)
        attention = rng.choice(("sdpa", "sdpa", "eager"))
        self.config = random_config(rng, self.name)
        self.model = build(self.config, self.name, attention)
        cache = rng.choice(("none", "dynamic", "dynamic", "by_config", "static"))
        mask = rng.choice(("none", "2d", "2d", "4d") if cache == "none" else ("none", "2d", "2d"))
        chunks = "one" if cache == "none" else rng.choice(("one", "one", "two", "decode"))
        single, positions = rng.random() < 0.3, rng.choice(("none", "given"))
        self.layers, self.single = self.config.num_hidden_layers, single
        self.deepstack = rng.randint(0, self.layers) if "qwen3_vl" in self.name else 0
        self.traits = {
            "attention": attention,
            "cache": cache,
            "mask": mask,
            "chunks": chunks,
            "batch": "1" if single else "2-6",
            "positions": positions,
            **({"deepstack": str(self.deepstack)} if self.deepstack else {}),
        }
        self.switch, model = Switch(), self.model

        def forward(visual: Tensor, hidden: Tensor, **more: Any) -> Tensor:
            return model(inputs_embeds=opskip.mark_visual(hidden, visual), **more).last_hidden_state

        self.run_compiled = compiled(forward, self.switch)

    def draw(self, rng: Random) -> Case:
        padding = self.traits["mask"] != "none" and rng.random() < 0.6
        keeps = self.traits["attention"] == "sdpa"
        return random_case(rng, self.layers, self.single, padding, self.traits["chunks"], keeps)

    def run(self, case: Case) -> Ran:
        self.switch.schedule, self.switch.reports = case.schedule, []
        values, masks = self._chunks(case, lambda i, visual, more: self.run_compiled(visual, **more))
        return Ran(values, masks, self.switch.reports)

    def want(self, case: Case, skipped: Sequence[Skipped]) -> list[Tensor]:
        def dense(i: int, visual: Tensor, more: dict[str, Any]) -> Tensor:
            hidden = more.pop("hidden")
            with opskip.oracle(self.model, skipping(skipped[i], case.schedule), visual):
                return self.model(inputs_embeds=hidden, **more).last_hidden_state

        return self._chunks(case, dense)[0]

    def _chunks(
        self, case: Case, call: Callable[[int, Tensor, dict[str, Any]], Tensor]
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        batch, length = case.visual.shape
        generator = torch.Generator().manual_seed(case.seed)
        hidden = torch.randn(batch, length, self.config.hidden_size, generator=generator)
        features = torch.randn(self.deepstack, batch, length, self.config.hidden_size, generator=generator)
        cache, start = self._cache(batch), 0
        values: list[Tensor] = []
        masks: list[Tensor | None] = []
        for i, n in enumerate(case.chunks):
            part = slice(start, start := start + n)
            visual, shown = case.visual[:, part].clone(), case.shown[:, part]
            more: dict[str, Any] = {"hidden": hidden[:, part].clone(), "use_cache": cache is not None}
            more[CACHE] = cache
            if self.traits["mask"] == "2d":
                more["attention_mask"] = case.shown[:, :start].long()
            elif self.traits["mask"] == "4d":
                more["attention_mask"] = self._mask(case)
            if self.traits["positions"] == "given":
                more["position_ids"] = self._positions(case)[..., part].clone()
            if self.deepstack:
                more["visual_pos_masks"] = visual
                more["deepstack_visual_embeds"] = [f[:, part][visual] for f in features]
            values.append(call(i, visual, more))
            masks.append(shown)
        for layer in cache.layers if cache is not None else ():
            for kept in (layer.keys, layer.values):
                values.append(kept.transpose(1, 2))
                counted = case.shown[:, -kept.shape[2] :]
                masks.append(nn.functional.pad(counted, (0, kept.shape[2] - counted.shape[1]), value=True))
        return values, masks

    def _cache(self, batch: int) -> Any:
        from transformers import DynamicCache, StaticCache

        kind = self.traits["cache"]
        if kind == "none":
            return None
        if kind == "static":
            return StaticCache(config=self.config, max_cache_len=16)
        return DynamicCache(config=self.config) if kind == "by_config" else DynamicCache()

    def _mask(self, case: Case) -> Tensor:
        """Additive; text looks back, the visual rows of an element see each other, and every row sees itself."""
        n = case.visual.shape[1]
        both = case.visual[:, :, None] & case.visual[:, None]
        allowed = (torch.ones(n, n, dtype=torch.bool).tril() | both) & case.shown[:, None]
        allowed = (allowed | torch.eye(n, dtype=torch.bool))[:, None]
        return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)

    def _positions(self, case: Case) -> Tensor:
        found = (case.shown.cumsum(1) - 1).clamp_min(0)
        if not self.name.endswith("vl_text") and self.name not in ("glm4v_text", "qwen3_vl_moe_text"):
            return found
        return torch.stack([found, found // 2, found // 3])


def _flat(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


@dataclass
class Checked:
    """How many operators the schedule named in the first chunk, which were skipped, and why others stay full."""

    wanted: int
    skipped: Skipped
    reasons: list[str]
    whole: bool


def check(subject: Subject, case: Case, shows: bool = False) -> Checked:
    """One case against the oracle of what the report says was skipped.

    Args:
        shows: also assert that leaving the rows out shows in the result.

    Raises:
        AssertionError: a wrong result, or a report that does not account for every operator of the schedule.
    """
    with torch.no_grad():
        got = subject.run(case)
        skipped = [
            frozenset((op.layer, op.kind, op.rows or "") for op in r.operators if op.skipped) for r in got.reports
        ]
        assert len(skipped) == len(case.chunks), f"{len(skipped)} graphs for {len(case.chunks)} calls"
        want = subject.want(case, skipped)
        assert len(got.values) == len(want) > 0
        for i, (a, b, mask) in enumerate(zip(got.values, want, got.masks, strict=True)):
            assert_close(a, b, mask, i)
        if (
            shows
            and skipped[0]
            and not case.schedule.levels
            and bool((case.visual & case.shown)[:, : case.chunks[0]].any())
        ):
            dense = subject.want(case, [frozenset()] * len(case.chunks))
            assert any(not torch.allclose(a, b, 1e-4, 1e-4) for a, b in zip(dense, want, strict=True)), "nothing shows"
    report, states = got.reports[0], case.schedule.resolve(subject.layers)
    named = ((layer, kind, getattr(s, kind)) for layer, s in enumerate(states) for kind in OPERATORS)
    wanted = {(layer, kind, str(rows)) for layer, kind, rows in named if rows is not None}
    assert skipped[0] <= wanted, f"skipped without being asked: {skipped[0] - wanted}"
    missed = {(miss.layer, miss.kind) for miss in report.misses}
    left = {(layer, kind) for layer, kind, _ in wanted - skipped[0]}
    assert left <= missed or report.reason, f"no reason for {left - missed}"
    reasons = [miss.reason for miss in report.misses] or ([report.reason] if left else [])
    return Checked(len(wanted), skipped[0], reasons, not report.remaining())


def assert_close(got: Tensor, want: Tensor, mask: Tensor | None, number: int = 0) -> None:
    """Equal within `TOLERANCE` of the largest value; of rows that are padding nothing is said."""
    assert got.shape == want.shape and got.dtype == want.dtype, f"tensor {number}: {got.shape}, not {want.shape}"
    a, b = (got, want) if mask is None else (got[mask], want[mask])
    if not a.numel():
        return
    off = ((a - b).abs().max() / b.abs().max().clamp_min(1e-6)).item()
    assert off <= TOLERANCE, f"tensor {number} is off by {off:.1e} of its largest value"


def make_subject(number: int, family: str | None = None) -> Subject:
    """The same decoder for the same number: a third are toys, one of thirty a whole model, the rest text decoders.

    ``family`` names a text decoder to take instead, or ``"program"``.
    """
    rng = Random(f"decoder {number}")
    if family == "program":
        return Program(rng)
    if family is None and number % 30 == 29:
        from tests.helpers.random_wholes import Whole

        return Whole(rng)
    return Program(rng) if family is None and number % 3 == 0 else Decoder(rng, family)


def make_case(subject: Subject, number: int, i: int) -> Case:
    """The same case for the same decoder and number; three layouts in a row share a schedule, and so a rewrite."""
    schedule = subject.draw(Random(f"case {number} {i - i % 3}")).schedule
    return replace(subject.draw(Random(f"case {number} {i}")), schedule=schedule)


@contextmanager
def room() -> Iterator[None]:
    """No compiled code of other decoders, and as many graphs of one function as its cases need."""
    torch._dynamo.reset()
    limits = torch._dynamo.config.patch(recompile_limit=256, accumulated_recompile_limit=2**20)
    # Dynamo times its guards after flushing the processor's cache: much of a small graph's compile time.
    with limits, mock.patch("torch._dynamo.guards.profile_guard_manager", lambda *_: 0.0, create=True):
        yield
    torch._dynamo.reset()
