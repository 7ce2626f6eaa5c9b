"""The page: how many tests ran in the three runs, and every difference with its explanation."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.tables.figures import table
from benchmarks.transformers_suite.differences import EXPLANATIONS, Difference, Explanation, differences, explained
from benchmarks.transformers_suite.outcomes import Outcome, Suite, family_of
from benchmarks.transformers_suite.selection import FAMILIES, LEFT_OUT, RUNS

KINDS = {
    "dense numbers": "the test compares a result that skips with one that does not",
    "torch": "plain `torch.compile` does the same",
    "limit": "a documented limit",
    "fault": "a fault of this package",
}

INTRODUCTION = (
    "`plain` is the suite as it is. In the other two runs every multimodal model that a test makes is compiled by "
    '`opskip_compile.compile(model, schedule, options={"lower": "eager"})` before the test gets it, with the schedule '
    "of the run's name. A prompt counts as really skipped where a report of the test says that operators of it leave "
    "rows out. Tests that fail in every run fail in transformers itself, with these versions and sources."
)


def totals(suite: Suite) -> dict[str, dict[str, int]]:
    """Of each run: how many tests ran, and how many of them passed, had a model compiled, and skipped a prompt."""
    counts = {}
    for run in RUNS:
        ran = [runs[run] for runs in suite.values() if runs[run].ran]
        counts[run] = {
            "ran": len(ran),
            "passed": sum(outcome.outcome == "passed" for outcome in ran),
            "failed": sum(outcome.outcome == "failed" for outcome in ran),
            "crashed": sum(outcome.outcome == "crashed" for outcome in ran),
            "skipped themselves": sum(not runs[run].ran for runs in suite.values()),
            "with a compiled model": sum(outcome.compiled > 0 for outcome in ran),
            "with a graph": sum(outcome.graphs > 0 for outcome in ran),
            "with a prompt really skipped": sum(outcome.skipped > 0 for outcome in ran),
        }
    return counts


def page(results: Mapping[str, Any], suite: Suite) -> str:
    """All of it, in Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    sources = "; ".join(f"{name}: {source}" for name, source in results["sources"].items())
    counts = totals(suite)
    pairs = explained(differences(suite))
    return (
        "\n\n".join(
            (
                "# transformers' own tests, three times",
                f"Written by `{results['command']}` with {versions} on the CPU. {sources}.",
                INTRODUCTION,
                table(("", *RUNS), ([name, *(str(counts[run][name]) for run in RUNS)] for name in counts["plain"])),
                "## By family",
                "Tests that passed of those that ran; in brackets, how many of them really skipped a prompt.",
                table(("family", *RUNS), _families(suite)),
                "## Every test that does not end as it does plain",
                _differences(pairs),
                "## Why graphs of the run `late:0.5` were left as they are",
                table(("tests", "reason"), _reasons(suite)),
                "## What was not run",
                table(
                    ("tests, by name", "why"),
                    ((f"`{name.replace('|', ' / ')}`", why) for name, why in LEFT_OUT.items()),
                ),
            )
        )
        + "\n"
    )


def _families(suite: Suite) -> Iterable[list[str]]:
    for family in FAMILIES.values():
        here = [runs for test, runs in suite.items() if family_of(test) == family.folder]
        if here:
            yield [family.title, *(_cell([runs[run] for runs in here]) for run in RUNS)]


def _cell(outcomes: list[Outcome]) -> str:
    ran = [outcome for outcome in outcomes if outcome.ran]
    skipped = sum(outcome.skipped > 0 for outcome in ran)
    counts = f"{sum(outcome.outcome == 'passed' for outcome in ran)} of {len(ran)}"
    return f"{counts} ({skipped})" if skipped else counts


def _differences(pairs: list[tuple[Difference, Explanation | None]]) -> str:
    if not pairs:
        return "None."
    groups: dict[Explanation | None, list[Difference]] = defaultdict(list)
    for difference, explanation in pairs:
        groups[explanation].append(difference)
    parts = []
    for explanation in (*EXPLANATIONS, None):
        if explanation in groups:
            head = "not explained" if explanation is None else f"{KINDS[explanation.kind]}: {explanation.text}"
            parts.append("\n".join([f"* {head}", *_tests(groups[explanation])]))
    return "\n".join(parts)


def _tests(group: list[Difference]) -> Iterable[str]:
    """The families together that have the same test with the same ends."""
    families: dict[tuple[str, str, str, str], list[str]] = defaultdict(list)
    for one in group:
        name = one.test.rpartition("::")[2]
        families[name, one.run, one.plain, one.here].append(FAMILIES[family_of(one.test)].title)
    for (name, run, plain, here), titles in families.items():
        yield f"    * `{name}`, {run}: {plain} -> {here} ({', '.join(titles)})"


def _reasons(suite: Suite) -> Iterable[list[str]]:
    counts = Counter(reason for runs in suite.values() for reason in runs["late:0.5"].reasons)
    return ([str(count), reason] for reason, count in counts.most_common())
