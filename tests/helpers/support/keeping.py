"""Columns "keep shares" and "levels": forms of the other columns, with a schedule that keeps shares of the rows, and
with one by which every element of a batch takes a level of its own."""

from __future__ import annotations

import opskip_compile as opskip
from tests.helpers.leveled import leveled
from tests.helpers.support.forms import REGISTERED, Check, Member, form
from tests.helpers.support.outcome import KEEP, Outcome, instead_of_spec

LEVELS = leveled(
    KEEP,
    "silent@keep=0.2:2-3 transform@keep=0.1:0 attend@keep=0.5:1",
    "silent:2-3 transform:0 attend:1",
    threshold=-0.3,
)
WITH_LEVELS = (
    "opskip.compile",
    'torch.compile(backend="opskip")',
    "batch of 4, one without an image, padded on the left",
    "batch of 4, one without an image, padded on the right",
    "several images between texts",
    "image only",
    "a video",
    "StaticCache",
    "sliding-window cache, dynamic",
    "greedy, a batch with padding",
    "a new image on a filled cache",
    "prefill in two chunks, the image in the second",
    "eager attention",
    "fullgraph=True",
    "dynamic=True",
    "backward, batch of different counts",
    "lowered by Inductor",
)
WITH_SHARES = (
    *WITH_LEVELS,
    "a new image on a filled static cache",
    "output_hidden_states",
    "opskip.compile, regional=True",
    "hooks on every layer",
    "backward, lowered by Inductor",
)


def register() -> None:
    """Each of the chosen forms once more; the others have to be registered before."""
    chosen = (("keep shares", KEEP, WITH_SHARES), ("levels", LEVELS, WITH_LEVELS))
    for column, schedule, names in chosen:
        for name in names:
            form(column, f"{column}: {name}", slow=REGISTERED[name].slow)(_with(schedule, REGISTERED[name].check))


def _with(schedule: opskip.Schedule | str, check: Check) -> Check:
    def measured(family: Member) -> Outcome:
        with instead_of_spec(schedule):
            return check(family)

    return measured
