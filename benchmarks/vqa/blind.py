"""How far the words of a question alone lead: the most frequent training answer, without looking at the image.

python -m benchmarks.vqa.blind [--train 20000] [--out benchmarks/results/answers/vqa_blind.json]

Two guesses are made: by the question's own text (by its template where the text is new), and by its template alone.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.vqa.base import Example, Task, score
from benchmarks.vqa.tasks import TASKS
from opskip_compile.output.environment import environment
from opskip_compile.output.files import write_whole

RESULT = Path(__file__).resolve().parents[1] / "results" / "answers" / "vqa_blind.json"
PACKAGES = ("numpy", "pillow", "matplotlib", "scikit-learn", "easy-vqa")


class Blind:
    """The most frequent answer to each text and to each template of the examples that it was given."""

    def __init__(self, examples: Iterable[Example]) -> None:
        texts: dict[str, Counter[str]] = defaultdict(Counter)
        templates: dict[str, Counter[str]] = defaultdict(Counter)
        for example in examples:
            texts[example.question][example.answer] += 1
            templates[example.template][example.answer] += 1
        self.by_text = {text: _most_frequent(answers) for text, answers in texts.items()}
        self.by_template = {template: _most_frequent(answers) for template, answers in templates.items()}

    def from_template(self, example: Example) -> str:
        """A guess from the template; the first possible answer where it is new."""
        return self.by_template.get(example.template, example.choices[0])

    def from_text(self, example: Example) -> str:
        """A guess from the whole text; the template's where it is new."""
        return self.by_text.get(example.question) or self.from_template(example)


def _most_frequent(answers: Mapping[str, int]) -> str:
    return min(answers, key=lambda answer: (-answers[answer], answer))


def measure(task: Task, train: int, test: int | None = None) -> dict[str, Any]:
    """Chance and both blind accuracies on the first `test` test examples (all of them by default)."""
    blind = Blind(task.example("train", index) for index in range(min(train, task.size("train"))))
    return figures(blind, [task.example("test", index) for index in range(test or task.size("test"))])


def figures(blind: Blind, examples: Sequence[Example]) -> dict[str, Any]:
    """What `blind` scores on `examples`; chance is the mean of one over the answers that each question allows."""
    count = len(examples)
    return {
        "questions": count,
        "texts": len({e.question for e in examples}),
        "answers": len({e.answer for e in examples}),
        "chance": round(sum(1 / len(e.choices) for e in examples) / count, 4),
        "blind_text": round(sum(score(blind.from_text(e), e.answer) for e in examples) / count, 4),
        "blind_template": round(sum(score(blind.from_template(e), e.answer) for e in examples) / count, 4),
    }


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures as a markdown table."""
    lines = [
        "| task | test questions | distinct texts | distinct answers | chance | blind, by text | blind, by template |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in results.items():
        shares = (f"{row[key]:.1%}" for key in ("chance", "blind_text", "blind_template"))
        counts = (f"{row[key]:,}" for key in ("questions", "texts", "answers"))
        lines.append(f"| {name} | {' | '.join((*counts, *shares))} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every task, print the table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=20_000, help="training examples that the guesses are made from")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args(arguments)
    if given.train < 1:
        parser.error("--train must be positive")
    results = {}
    for name, task in TASKS.items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        results[name] = measure(task, given.train)
    print(table(results))
    content = {
        **environment("cpu", "float32"),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "train_examples": given.train,
        "results": results,
    }
    write_whole(given.out, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
