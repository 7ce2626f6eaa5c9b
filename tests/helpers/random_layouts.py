"""Random schedules, and random visual rows of a prompt."""

from __future__ import annotations

from random import Random

import opskip_compile as opskip
from opskip_compile.schedule.left_out import ROWS, Rows
from opskip_compile.schedule.rules import OPERATORS, Late, Rule

SHARES = (0.1, 0.25, 0.5, 0.75, 1)


def random_schedule(rng: Random, layers: int, keeps: bool = False) -> opskip.Schedule:
    """A few rules, some of them with keep shares if ``keeps``."""
    keeps = keeps and rng.random() < 0.5
    kind, rules = rng.randint(0, 11), list[Rule]()
    if kind == 0:
        return opskip.Schedule()
    if kind == 1:
        return opskip.Schedule(late=Late(rng.choice((0.34, 0.5, 1)), rng.choice(ROWS)))
    for layer in range(layers):
        for operator in OPERATORS:
            if kind == 2 or rng.random() < 0.6:
                rows: Rows = "visual" if rng.random() < 0.7 else "through_visual"
                keep = rng.choice(SHARES) if keeps and rng.random() < 0.6 else 0.0
                rules.append(Rule((layer,), (operator,), rows, keep))
    return opskip.Schedule(tuple(rules), num_layers=layers if rng.random() < 0.5 else None)


def random_levels(rng: Random, layers: int) -> tuple[opskip.Schedule, ...]:
    """Two to four schedules; an operator leaves out the same set of rows in all of them, less another share."""
    rows: dict[tuple[int, str], Rows] = {
        (layer, operator): "visual" if rng.random() < 0.7 else "through_visual"
        for layer in range(layers)
        for operator in OPERATORS
    }
    return tuple(
        opskip.Schedule(
            tuple(
                Rule((layer,), (operator,), left_out, rng.choice((0.0, *SHARES)))
                for (layer, operator), left_out in rows.items()
                if rng.random() < 0.6
            )
        )
        for _ in range(rng.randint(2, 4))
    )


def random_rows(rng: Random, length: int) -> list[bool]:
    """The visual rows of one element."""
    kind = rng.choice(("none", "all", "first", "last", "span", "span", "spans", "every_other", "any"))
    a = rng.randint(0, length - 1)
    b = rng.randint(a, length - 1)
    at = {
        "none": lambda i: False,
        "all": lambda i: True,
        "first": lambda i: i <= a,
        "last": lambda i: i >= a,
        "span": lambda i: a <= i <= b,
        "spans": lambda i: (i // (1 + a % 3)) % 3 == 1,
        "every_other": lambda i: i % 2 == a % 2,
    }
    return [rng.random() < 0.5 if kind == "any" else at[kind](i) for i in range(length)]
