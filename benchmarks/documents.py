"""Long text instead of an image: does a text model keep its answers where the rows of a document are left out?

python -m benchmarks.documents [--steps 1500] [--limit 500] [--work FOLDER]

A small Qwen3 learns to read: a document of twenty facts (`anna 's key : red box .`, 141 rows), and behind it a question
about one of them, with an answer of two words or of one. Then the rows of the document take the place that visual rows
have elsewhere: late operators leave them out, from some layer on, or the rows leave for good, as tokens are dropped.
By the oracle's hooks, since this asks for answers and not for speed; that a document's rows can be named in compiled
code is `tests/benchmarks/test_documents.py`. Writes `benchmarks/results/answers/documents.json`.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.vqa.muon import Muon
from opskip_compile.evaluation.measures import TaskRows, accuracies, bootstrap, retained
from opskip_compile.models.oracle import decoder_layers, oracle
from opskip_compile.output.environment import environment
from opskip_compile.schedule.flops import count_flops
from opskip_compile.schedule.schedule import Schedule
from opskip_compile.schedule.validation import write_json

RESULTS = Path(__file__).parent / "results" / "answers"
LAYERS, WIDTH = 8, 128
FACTS, SHOWN = 20, 12  # in a document; questions behind each one in training
NAMES, THINGS, COLORS, PLACES = 16, 8, 12, 12
PAD, END, START, OWNS, IS, STOP, WHAT, WHO = range(8)
NAME = 8
THING = NAME + NAMES
COLOR = THING + THINGS
PLACE = COLOR + COLORS
VOCABULARY = PLACE + PLACES
FACT_ROWS, ANSWER = 7, 3  # tokens of a fact; of an answer, with its end
ROWS = 1 + FACTS * FACT_ROWS  # of a document
KINDS = ("what", "who")
RATE, WARMUP, BATCH = 6e-3, 60, 16
RESAMPLES = 2000


@dataclass(frozen=True)
class Reading:
    """A document with a question about it, as token ids."""

    document: list[int]
    kind: str
    question: list[int]
    answer: list[int]


def facts(rng: random.Random, count: int) -> list[tuple[int, int, int, int]]:
    """Whose thing has which color and place: no two facts share both of a pair."""
    owners = rng.sample([(name, thing) for name in range(NAMES) for thing in range(THINGS)], count)
    values = rng.sample([(color, place) for color in range(COLORS) for place in range(PLACES)], count)
    return [(NAME + n, THING + t, COLOR + c, PLACE + p) for (n, t), (c, p) in zip(owners, values, strict=True)]


def document(known: Sequence[tuple[int, int, int, int]]) -> list[int]:
    """Its rows: one that begins it, then seven for each fact."""
    return [START, *(token for n, t, c, p in known for token in (n, OWNS, t, IS, c, p, STOP))]


def ask(fact: tuple[int, int, int, int], kind: str) -> tuple[list[int], list[int]]:
    """A question about a fact and its answer: what somebody's thing is like, or whose it is that is like this."""
    n, t, c, p = fact
    return ([WHAT, n, t, IS], [c, p, END]) if kind == "what" else ([WHO, c, p, OWNS], [n, t, END])


def reading(split: str, index: int, count: int = FACTS) -> Reading:
    """One example, a function of split and index."""
    rng = random.Random(f"documents-{split}-{index}")
    known, kind = facts(rng, count), rng.choice(KINDS)
    return Reading(document(known), kind, *ask(rng.choice(known), kind))


def batch(seed: int, step: int, count: int) -> tuple[Tensor, Tensor]:
    """Token ids ``(batch, rows)`` of documents with several questions behind each, and the targets of the answers, -100
    elsewhere."""
    ids, targets = [], []
    for element in range(BATCH):
        rng = random.Random(f"documents-train-{seed}-{step}-{element}")
        known = facts(rng, count)
        row = document(known)
        target = [-100] * len(row)
        for fact in rng.sample(known, min(SHOWN, count)):
            question, answer = ask(fact, rng.choice(KINDS))
            row += question + answer
            target += [-100] * (len(question) - 1) + answer + [-100]
        ids.append(row)
        targets.append(target)
    return torch.tensor(ids), torch.tensor(targets)


def build(layers: int = LAYERS, width: int = WIDTH) -> Any:
    """The model, not trained."""
    torch.manual_seed(0)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=width // 4,
            max_position_embeddings=512,
            tie_word_embeddings=False,
            pad_token_id=PAD,
            bos_token_id=START,
            eos_token_id=END,
            attn_implementation="sdpa",
        )
    )


def teach(model: Any, steps: int, seed: int = 0) -> list[dict[str, float]]:
    """Train in place, from two facts a document to all of them within the first half; returns the log."""
    inner = [p for name, p in model.named_parameters() if p.dim() == 2 and "layers" in name]
    rest = [p for name, p in model.named_parameters() if not (p.dim() == 2 and "layers" in name)]
    optimizers = (Muon(inner, lr=RATE), torch.optim.AdamW(rest, lr=RATE, betas=(0.9, 0.98), weight_decay=0.0))
    model.train()
    log, recent, right, started = [], 0.0, 0.0, time.monotonic()
    for step in range(steps):
        count = min(FACTS, 2 + step * 2 * (FACTS - 2) // steps)
        ids, targets = batch(seed, step, count)
        logits = model(input_ids=ids, use_cache=False).logits
        wanted = targets != -100
        loss = cross_entropy(logits[wanted], targets[wanted])
        loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = RATE * min(1.0, (step + 1) / WARMUP, max(0.01, 2.5 * (steps - step) / steps))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        hits = (logits[wanted].argmax(1) == targets[wanted]).float().mean().item()
        recent += max(0.05, 1 / (step + 1)) * (loss.item() - recent)
        right += max(0.05, 1 / (step + 1)) * (hits - right)
        if step % 50 == 0 or step == steps - 1:
            log.append({"step": step, "facts": count, "loss": round(recent, 4), "tokens_right": round(right, 4)})
            print(f"{log[-1]} {time.monotonic() - started:.0f}s", flush=True)
    model.eval()
    return log


@contextmanager
def looking_away(model: Any, layer: int, rows: int) -> Iterator[None]:
    """From a layer on nothing sees the first rows any more, as if they had left the sequence; decode steps neither."""

    def mask(module: nn.Module, args: Any, named: dict[str, Any]) -> Any:
        queries = named["hidden_states"].shape[1]
        start = 0 if queries > 1 else named["past_key_values"].get_seq_length(module.layer_idx)
        seen = torch.ones(start + queries, start + queries, dtype=torch.bool).tril()[start:]
        seen[max(0, rows - start) :, :rows] = False
        return args, {**named, "attention_mask": seen[None, None]}

    layers = decoder_layers(model)[layer:]
    handles = [part.self_attn.register_forward_pre_hook(mask, with_kwargs=True) for part in layers]  # type: ignore[operator, union-attr]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def answers(model: Any, asked: Sequence[Reading], schedule: Schedule | None, size: int = 100) -> list[list[int]]:
    """Greedy answers, with a schedule whose rows are those of the documents."""
    said: list[list[int]] = []
    for start in range(0, len(asked), size):
        part = asked[start : start + size]
        ids = torch.tensor([[*each.document, *each.question] for each in part])
        rows = torch.zeros_like(ids, dtype=torch.bool)
        rows[:, :ROWS] = True
        with nullcontext() if schedule is None else oracle(model, schedule, rows):
            told = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=ANSWER, do_sample=False
            )
        said += told[:, ids.shape[1] :].tolist()
    return said


def right(said: Sequence[Sequence[int]], asked: Sequence[Reading]) -> list[float]:
    """1 for each answer that is right from its first token to its end."""
    return [float(list(told[: len(each.answer)]) == each.answer) for told, each in zip(said, asked, strict=True)]


def measured(model: Any, limit: int) -> list[dict[str, Any]]:
    """The dense model, then each family of late operators from each layer on."""
    asked = [reading("test", index) for index in range(limit)]
    kinds = {kind: [i for i, each in enumerate(asked) if each.kind == kind] for kind in KINDS}
    tasks = {kind: TaskRows(tuple(own), tuple(range(len(own)))) for kind, own in kinds.items()}
    dense = right(answers(model, asked, None), asked)
    text = len(asked[0].question)

    def row(family: str, layer: int | None, spec: str | None, cut: float, found: list[float]) -> dict[str, Any]:
        by_kind = accuracies(found, tasks)
        interval = bootstrap(found, dense, tasks, RESAMPLES, 0).retained
        return {
            "family": family,
            "from_layer": layer,
            "schedule": spec,
            "flops_cut": round(cut, 6),
            "accuracy": round(statistics.fmean(by_kind.values()), 6),
            "by_kind": by_kind,
            "retained": retained(by_kind, accuracies(dense, tasks)),
            "retained_interval": None if interval is None else [interval.low, interval.high],
        }

    rows, last = [row("dense", None, None, 0.0, dense)], LAYERS - 1
    for layer in range(last, -1, -1):
        for family, state in (("FFN", "attend"), ("attention", "transform"), ("both", "silent")):
            spec = f"{state}:{layer}-{last}"
            counted = count_flops(model.config, visual_tokens=ROWS, text_tokens=text, schedule=spec)
            found = right(answers(model, asked, Schedule.from_spec(spec)), asked)
            rows.append(row(family, layer, spec, counted.cut, found))
            print(f"{spec}: {rows[-1]['accuracy']:.1%} right", flush=True)
        full = count_flops(model.config, visual_tokens=ROWS, text_tokens=text).dense / LAYERS
        few = count_flops(model.config, visual_tokens=0, text_tokens=text).dense / LAYERS
        with looking_away(model, layer, ROWS):
            found = right(answers(model, asked, None), asked)
        cut = (LAYERS - layer) * (1 - few / full) / LAYERS
        rows.append(row("dropped", layer, None, cut, found))
        print(f"dropped from {layer}: {rows[-1]['accuracy']:.1%} right", flush=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, teach, ask and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--limit", type=int, default=500, help="test questions")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("documents"), help="folder for the model")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write to")
    given = parser.parse_args(arguments)
    given.results.mkdir(parents=True, exist_ok=True)
    given.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(given.threads)
    model, kept = build(), given.work / f"model_{given.steps}.pt"
    if kept.exists():
        state = torch.load(kept, weights_only=True)
        model.load_state_dict(state["model"])
        log = state["log"]
    else:
        log = teach(model, given.steps)
        torch.save({"model": model.state_dict(), "log": log}, kept)
    rows = measured(model.eval(), given.limit)
    about = {"facts": FACTS, "document_rows": ROWS, "layers": LAYERS, "width": WIDTH, "steps": given.steps, "log": log}
    content = {"environment": environment("cpu", "float32"), **about, "questions": given.limit, "results": rows}
    write_json(content, given.results / "documents.json")


if __name__ == "__main__":
    main()
