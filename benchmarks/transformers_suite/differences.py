"""Every test that does not end as it does plain, and why: a table by name and message; what it leaves unexplained."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.transformers_suite.outcomes import Suite


@dataclass(frozen=True)
class Difference:
    """One test that ends in ``run`` otherwise than plain."""

    test: str
    run: str
    plain: str
    here: str
    why: str


@dataclass(frozen=True)
class Explanation:
    """Why the tests of some name end otherwise, with some message.

    Attributes:
        tests: pattern of their names.
        runs: the runs that it holds for.
        message: pattern of the message: another failure of the same test is not explained by it.
        kind: ``dense numbers`` where the test compares a result that is skipped with one that is not, ``torch`` where
            plain ``torch.compile`` does the same, ``limit`` where it is a documented limit, ``fault`` where it is ours.
        text: for readers.
    """

    tests: str
    runs: tuple[str, ...]
    message: str
    kind: str
    text: str

    def explains(self, difference: Difference) -> bool:
        """Whether it is about this one."""
        return (
            difference.run in self.runs
            and re.search(self.tests, difference.test) is not None
            and re.search(self.message, difference.why) is not None
        )


EXPLANATIONS: tuple[Explanation, ...] = (
    Explanation(
        r"test_capture_outputs_decorator$",
        ("none", "late:0.5"),
        r"'NoneType' object has no attribute 'keys'",
        "torch",
        "the test puts a method of its own into transformers that reads a context variable, which transformers does "
        'not set while `torch.compile` traces: `torch.compile(decoder.forward, backend="eager")` fails there, too.',
    ),
)


def differences(suite: Suite) -> list[Difference]:
    """All of them, in the order of the tests."""
    return [
        Difference(test, run, runs["plain"].outcome, outcome.outcome, outcome.why)
        for test, runs in suite.items()
        for run, outcome in runs.items()
        if outcome.outcome != runs["plain"].outcome
    ]


def explained(
    found: Sequence[Difference], explanations: Sequence[Explanation] = EXPLANATIONS
) -> list[tuple[Difference, Explanation | None]]:
    """Each difference with the first explanation that is about it."""
    return [(one, next((text for text in explanations if text.explains(one)), None)) for one in found]


def complaints(found: Sequence[Difference], explanations: Sequence[Explanation] = EXPLANATIONS) -> list[str]:
    """What is not explained, and explanations of nothing."""
    pairs = explained(found, explanations)
    used = {explanation for _, explanation in pairs}
    unexplained = [
        f"not explained: {one.test} {one.here} in the run {one.run}: {one.why[:200]}" for one, text in pairs if not text
    ]
    return unexplained + [f"explains nothing: {text.tests}" for text in explanations if text not in used]
