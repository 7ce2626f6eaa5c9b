"""Find which operators of the demo model to skip, from training questions alone.

Each operator is first skipped alone: KL(dense || skipped) at the answer row per FLOP saved is its price. Then
the set grows greedily, and every step measures the divergence of the whole set, so operators that replace
each other are not both taken. The test split is never read here.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from skipping import Operator, answer_logits, as_schedule, divergence, operators
from torch import Tensor
from tqdm import tqdm

from opskip_compile.demo.data import (
    MODEL_DIR,
    DemoProcessor,
    Question,
    collate,
    load_model,
    load_processor,
    load_questions,
)
from opskip_compile.flops import count_flops

SCHEDULE_FILE = MODEL_DIR.parent / "schedule.json"


@dataclass(frozen=True, slots=True)
class Probe:
    """A set of skipped operators with its measured divergence (nats) and its FLOPs cut (0 to 1)."""

    skipped: tuple[Operator, ...]
    divergence: float
    cut: float


class Search:
    """Greedy growth of a skipped set on calibration questions; every measurement is kept once."""

    def __init__(self, model: Any, processor: DemoProcessor, questions: Sequence[Question]) -> None:
        self.model, self.processor, self.questions = model, processor, questions
        self.visual_rows, self.text_rows = _typical_prompt(questions, processor)
        self.dense: Tensor = answer_logits(model, questions, processor)
        self._known: dict[frozenset[Operator], Probe] = {}

    def probe(self, skipped: Sequence[Operator]) -> Probe:
        """Divergence and FLOPs cut of skipping all of `skipped` together."""
        key = frozenset(skipped)
        if key not in self._known:
            logits = answer_logits(self.model, self.questions, self.processor, tuple(sorted(key)))
            self._known[key] = Probe(tuple(sorted(key)), divergence(self.dense, logits), self.cut(skipped))
        return self._known[key]

    def cut(self, skipped: Sequence[Operator]) -> float:
        """Share of the prefill FLOPs that `skipped` saves at the typical prompt."""
        rows = {"visual_tokens": self.visual_rows, "text_tokens": self.text_rows}
        return count_flops(self.model, **rows, schedule=as_schedule(skipped)).cut

    def alone(self) -> dict[Operator, Probe]:
        """Every operator skipped on its own."""
        everything = operators(self.model)
        return {o: self.probe([o]) for o in tqdm(everything, desc="operators alone", mininterval=5)}

    def grow(self, least: float, most: float) -> list[Probe]:
        """Add the operator with the smallest rise in divergence per FLOP until the cut is in `least`..`most`.

        A step that can reach `least` without passing `most` takes the candidate of the smallest divergence.
        """
        path = [Probe((), 0.0, 0.0)]
        while path[-1].cut < least:
            current = path[-1]
            left = [o for o in operators(self.model) if o not in current.skipped]
            fitting = [o for o in left if self.cut((*current.skipped, o)) <= most]
            if not fitting:
                raise ValueError(f"no set of operators cuts {least:.1%} to {most:.1%}: widen the window")
            label = f"grow from {current.cut:.1%}"
            probes = [self.probe((*current.skipped, o)) for o in tqdm(fitting, desc=label, mininterval=5, leave=False)]
            reaching = [p for p in probes if p.cut >= least]
            best = min(reaching, key=lambda p: p.divergence) if reaching else None
            if best is None:
                best = min(probes, key=lambda p: (p.divergence - current.divergence) / (p.cut - current.cut))
            path.append(best)
            tqdm.write(f"cut {best.cut:.1%} divergence {best.divergence:.5f}: {_spell(best.skipped)}")
        return path

    def exchange(self, probe: Probe, least: float, most: float, rounds: int) -> Probe:
        """Swap one skipped operator for a full one while that lowers the divergence within the window."""
        for _ in range(rounds):
            inside, outside = probe.skipped, [o for o in operators(self.model) if o not in probe.skipped]
            swaps = [(*[o for o in inside if o != gone], new) for gone in inside for new in outside]
            swaps = [s for s in swaps if least <= self.cut(s) <= most]
            probes = [self.probe(s) for s in tqdm(swaps, desc="exchange", mininterval=5, leave=False)]
            best = min(probes, key=lambda p: p.divergence, default=probe)
            if best.divergence >= probe.divergence:
                break
            probe = best
            tqdm.write(f"swap: cut {best.cut:.1%} divergence {best.divergence:.5f}: {_spell(best.skipped)}")
        return probe


def calibration(count: int, seed: int) -> list[Question]:
    """`count` training questions, each about another image."""
    questions = load_questions("train")
    random.Random(seed).shuffle(questions)
    return list({q.image_id: q for q in questions}.values())[:count]


def _typical_prompt(questions: Sequence[Question], processor: DemoProcessor) -> tuple[int, int]:
    inputs = collate(questions[:64], processor)
    visual = int(inputs["mm_token_type_ids"][0].sum())
    lengths = inputs["attention_mask"].sum(1).float()
    return visual, round(float(lengths.mean())) - visual


def _spell(skipped: Sequence[Operator]) -> str:
    return " ".join(f"{name[:4]}{layer}" for layer, name in skipped)


def main(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    model, processor = load_model(args.model).to(args.device), load_processor(args.model)
    search = Search(model, processor, calibration(args.samples, args.seed))
    alone = search.alone()
    for operator, single in sorted(alone.items(), key=lambda item: item[1].divergence / item[1].cut):
        kl, cut = single.divergence, single.cut
        print(f"{operator.name:9} {operator.layer}  KL {kl:.5f}  cut {cut:.2%}  KL per cut {kl / cut:.4f}")
    chosen = search.exchange(search.grow(args.least, args.most)[-1], args.least, args.most, args.exchange)
    text = model.config.get_text_config()
    schedule = as_schedule(
        chosen.skipped,
        name="demo",
        model={
            "architecture": type(model).__name__,
            "num_layers": text.num_hidden_layers,
            "hidden_size": text.hidden_size,
        },
        provenance={
            "method": "greedy growth by rise of joint KL(dense || skipped) at the answer row per FLOP saved, "
            f"then at most {args.exchange} exchanges",
            "data": f"{args.samples} questions of the easy-VQA training split, one per image",
            "seed": args.seed,
            "visual_rows": search.visual_rows,
            "text_rows": search.text_rows,
            "flops_cut": round(chosen.cut, 4),
            "divergence": float(f"{chosen.divergence:.3g}"),
            "operators_alone": {f"{o.name} {o.layer}": float(f"{p.divergence:.3g}") for o, p in alone.items()},
            "command": f"python benchmarks/demo_model/search.py --samples {args.samples} --seed {args.seed} "
            f"--least {args.least} --most {args.most} --exchange {args.exchange}",
        },
    )
    schedule.save(args.output)
    print(f"{args.output}: {schedule.to_spec()}  cut {chosen.cut:.2%}  divergence {chosen.divergence:.5f}")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=250, help="calibration questions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--least", type=float, default=0.337, help="smallest FLOPs cut")
    parser.add_argument("--most", type=float, default=0.362, help="largest FLOPs cut")
    parser.add_argument("--exchange", type=int, default=2, help="rounds of swaps after the growth")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", type=Path, default=MODEL_DIR)
    parser.add_argument("--output", type=Path, default=SCHEDULE_FILE)
    args = parser.parse_args(arguments)
    if args.samples < 1 or not 0 < args.least <= args.most < 1:
        parser.error("needs --samples of at least 1 and 0 < --least <= --most < 1")
    return args


if __name__ == "__main__":
    main(parse())
