"""Guessed tokens after a skipped prefill: how many are accepted, and what skipping is worth as a drafter.

python -m benchmarks.speculative [--model qwen3_vl] [--limit 200] [--json FILE]

A trained model of the suite answers the tasks whose answers are spelled out. Tokens are guessed by prompt lookup or
drafted by a copy of the model, dense or skipped, as transformers' ``generate`` does it; schedules are those that
`benchmarks.vqa.evaluate` found. Acceptance is the share of guessed tokens that stand in the answer, with an interval of
95 % from 2,000 samples of the questions, drawn with replacement.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from transformers.generation import candidate_generator

import opskip_compile as opskip
from benchmarks.vqa.architectures import CONFIGS
from benchmarks.vqa.evaluate import RESULTS, KitEncoder, load_trained, remembering, tower_of
from benchmarks.vqa.exporting import LONGEST_ANSWER
from benchmarks.vqa.tasks import TASKS
from opskip_compile.output.environment import environment
from opskip_compile.schedule.validation import write_json

SPELLED = ("words", "digits", "forms")  # tasks whose answers have a token for each letter
CUTS = (0.337, 0.5)
GUESSES = 4  # tokens at a time
GENERATORS = (candidate_generator.AssistedCandidateGenerator, candidate_generator.PromptLookupCandidateGenerator)
Inputs = dict[str, Tensor]
Guess = tuple[int, list[int]]  # where in the sequence, and which tokens


def questions(encoder: KitEncoder, limit: int) -> list[Inputs]:
    """The first test questions of each task, one prompt each."""
    found = []
    for i in range(limit):
        example = TASKS[SPELLED[i % len(SPELLED)]].example("test", i // len(SPELLED))
        found.append(encoder.prompts([list(example.images)], [example.question]))
    return found


def schedules(model: str) -> dict[str, str]:
    """By the share of FLOPs that was asked for: the operators that the evaluation left out."""
    outcomes = json.loads((RESULTS / f"vqa_{model}.json").read_text(encoding="utf-8"))["outcomes"]
    found = {one["asked"]: one["runs"][0]["spec"] for one in outcomes if one["method"] == "operators"}
    return {f"{cut:.1%}": found[cut] for cut in CUTS}


@contextmanager
def listening(guesses: list[Guess]) -> Iterator[None]:
    """Note every guess that ``generate`` tries."""

    def noting(kind: Any) -> Any:
        inner = kind.get_candidates

        def get_candidates(self: Any, input_ids: Tensor, *args: Any, **named: Any) -> Any:
            ids, scores = inner(self, input_ids, *args, **named)
            at = input_ids.shape[1]
            guesses.append((at, ids[0, at:].tolist()))
            return ids, scores

        return mock.patch.object(kind, "get_candidates", get_candidates)

    with noting(GENERATORS[0]), noting(GENERATORS[1]):
        yield


def accepted(guess: Guess, sequence: Sequence[int]) -> int:
    """How many tokens of a guess stand in the answer, up to the first that does not."""
    at, tokens = guess
    there = sequence[at : at + len(tokens)]
    return next((i for i, (a, b) in enumerate(zip(tokens, there, strict=False)) if a != b), len(there))


def answered(model: Any, prompts: Sequence[Inputs], **how: Any) -> tuple[list[list[int]], list[tuple[int, int]]]:
    """Greedy answers, and for each question how many tokens were accepted and guessed."""
    answers, counts = [], []
    for inputs in prompts:
        guesses: list[Guess] = []
        with listening(guesses), torch.no_grad():
            whole = model.generate(**inputs, do_sample=False, max_new_tokens=LONGEST_ANSWER, **how)[0].tolist()
        # What is guessed beyond the end of the answer was never compared.
        known = [(at, tokens[: max(0, len(whole) - at)]) for at, tokens in guesses]
        counts.append((sum(accepted(guess, whole) for guess in known), sum(len(tokens) for _, tokens in known)))
        answers.append(whole[inputs["input_ids"].shape[1] :])
    return answers, counts


def share(counts: Sequence[tuple[int, int]], seed: int = 0) -> dict[str, Any]:
    """Accepted of guessed tokens, with its interval over questions; None where nothing was guessed."""

    def of(sample: Sequence[tuple[int, int]]) -> float | None:
        guessed = sum(count for _, count in sample)
        return sum(count for count, _ in sample) / guessed if guessed else None

    rng = random.Random(seed)
    drawn = sorted(value for _ in range(2000) if (value := of(rng.choices(counts, k=len(counts)))) is not None)
    interval = [drawn[int(len(drawn) * 0.025)], drawn[int(len(drawn) * 0.975)]] if drawn else None
    return {"guessed": sum(count for _, count in counts), "accepted": of(counts), "interval": interval}


def equal(a: Sequence[list[int]], b: Sequence[list[int]]) -> float:
    """The share of answers that are the same, token by token."""
    return sum(x == y for x, y in zip(a, b, strict=True)) / len(a)


def as_drafter(model: Any) -> Any:
    """A copy that drafts a fixed number of tokens, and sees the picture.

    transformers 5.23 calls no forward of a drafter the first one (``GenerationMixin._sample``), and image features are
    handed to the first alone. Here it is the one whose cache is empty.
    """
    drafter = copy.deepcopy(model)
    drafter.generation_config.update(
        num_assistant_tokens=GUESSES, num_assistant_tokens_schedule="constant", assistant_confidence_threshold=0.0
    )
    inner = drafter.prepare_inputs_for_generation

    @functools.wraps(inner)  # generate reads its signature
    def prepare(*args: Any, is_first_iteration: bool = False, **named: Any) -> Any:
        cache = named.get("past_key_values")
        return inner(*args, is_first_iteration=cache is None or not cache.get_seq_length(), **named)

    drafter.prepare_inputs_for_generation = prepare
    return drafter


def measured(model: Any, prompts: Sequence[Inputs], specs: dict[str, str]) -> list[dict[str, Any]]:
    """Every way to guess."""

    def skipped(which: Any, spec: str) -> Any:
        torch._dynamo.reset()
        return opskip.compile(which, spec, prefill_only=True, options={"lower": "eager"})

    found: list[dict[str, Any]] = []

    def add(guessed_by: str, checked_by: str, plain: list[list[int]], run: Callable[[], Any]) -> None:
        answers, counts = run()
        row = {
            "guessed by": guessed_by,
            "checked by": checked_by,
            **share(counts),
            "same answers": equal(answers, plain),
        }
        found.append(row)
        print(row, flush=True)

    lookup = {"prompt_lookup_num_tokens": GUESSES}
    dense, _ = answered(model, prompts)
    dense_drafter = as_drafter(model)
    add("prompt lookup", "dense", dense, lambda: answered(model, prompts, **lookup))
    add("dense", "dense", dense, lambda: answered(model, prompts, assistant_model=dense_drafter))
    for cut, spec in specs.items():
        drafter = skipped(as_drafter(model), spec)
        add(cut, "dense", dense, lambda drafter=drafter: answered(model, prompts, assistant_model=drafter))
        whole = skipped(copy.deepcopy(model), spec)
        plain, _ = answered(whole, prompts)
        add("prompt lookup", cut, plain, lambda whole=whole: answered(whole, prompts, **lookup))
        add(cut, cut, plain, lambda w=whole, d=drafter: answered(w, prompts, assistant_model=d))
        add("dense", cut, plain, lambda whole=whole: answered(whole, prompts, assistant_model=dense_drafter))
        found.append({"answers as dense": equal(plain, dense), "checked by": cut})
    return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen3_vl", choices=sorted(path.stem for path in CONFIGS.glob("*.json")))
    parser.add_argument("--limit", type=int, default=200, help="questions")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    model, encoder = load_trained(given.model)
    prompts, specs = questions(encoder, given.limit), schedules(given.model)
    with remembering(tower_of(model)):
        found = measured(model, prompts, specs)
    about = {"environment": environment("cpu", "float32"), "model": given.model, "questions": given.limit}
    if given.json:
        write_json({**about, "schedules": specs, "found": found}, given.json)


if __name__ == "__main__":
    main()
