"""Column "keep shares": forms of the other columns, with a schedule that keeps shares of the rows."""

from __future__ import annotations

from tests.helpers.support.forms import REGISTERED, Check, Member, form
from tests.helpers.support.outcome import KEEP, Outcome, instead_of_spec

COLUMN = "keep shares"
CHOSEN = (
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
    "a new image on a filled static cache",
    "prefill in two chunks, the image in the second",
    "output_hidden_states",
    "eager attention",
    "fullgraph=True",
    "dynamic=True",
    "opskip.compile, regional=True",
    "hooks on every layer",
    "backward, batch of different counts",
    "lowered by Inductor",
    "backward, lowered by Inductor",
)


def register() -> None:
    """Each of the chosen forms once more; the others have to be registered before."""
    for name in CHOSEN:
        form(COLUMN, f"keep shares: {name}", slow=REGISTERED[name].slow)(_with_shares(REGISTERED[name].check))


def _with_shares(check: Check) -> Check:
    def measured(family: Member) -> Outcome:
        with instead_of_spec(KEEP):
            return check(family)

    return measured
