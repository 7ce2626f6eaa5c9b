"""The registry of forms: the columns of the support matrix, and what each of them runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from tests.helpers.support.outcome import Outcome


class Member(Protocol):
    """A family of the matrix: `opskip_compile.models.tiny.Family`, or one of `support.zoo`."""

    name: str
    title: str  # for the table in `docs/support.md`

    def build(self, layers: int = 4, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The model with the same random weights every time."""

    def inputs(
        self, layout: Sequence[Sequence[int]] = ((3, 5),), seed: int = 0, *, padding: str = "left"
    ) -> dict[str, Tensor]:
        """A batch: numbers of text rows of each element, with an image between two."""


Check = Callable[[Member], Outcome]
COLUMNS = (
    "one image",
    "batches and padding",
    "image layouts",
    "video",
    "caches",
    "generate",
    "later turns",
    "keep shares",
    "levels",
    "inputs and outputs",
    "dtypes",
    "attention kernels",
    "ways to compile",
    "gradients",
    "export",
    "quantised",
)


@dataclass(frozen=True)
class Form:
    """One way to run a model.

    Attributes:
        column: of the matrix in `docs/support.md`; several forms share one.
        name: of the form, unique.
        slow: lowers with Inductor or is slow otherwise: only where every cell is measured, but for the first family.
    """

    column: str
    name: str
    check: Check
    slow: bool = False


# Their decoders have no visual rows in the stream, which the first columns measure; the rest would be dense again.
WITHOUT_ROWS = ("mllama", "florence2", "t5gemma2")
# Measured in every family; all others in the families of `opskip_compile.models.tiny`.
EVERYWHERE = frozenset(
    {
        "opskip.compile",
        "opskip.compile, rows through_visual",
        'torch.compile(backend="opskip")',
        "keep shares: opskip.compile",
        "levels: opskip.compile",
        "batch of 8, padded on the right, rows through_visual",
        "image only, rows through_visual",
        "text only",
        "a video, rows through_visual",
        "an image and a video, rows through_visual",
        "StaticCache",
        "sliding-window cache, dynamic",
        "greedy, a batch with padding",
        "a new image on a filled cache",
        "output_hidden_states",
        "inputs_embeds with mark_visual",
        "bfloat16",
        "eager attention",
        "fullgraph=True",
        "backward, batch of different counts",
        "torch.export of a decoder with mark_visual in it",
        "torchao, int8 weights",
    }
)
REGISTERED: dict[str, Form] = {}


def form(column: str, name: str, slow: bool = False) -> Callable[[Check], Check]:
    """Register a check as one form of ``column``."""

    def register(check: Check) -> Check:
        def unless_without_rows(family: Member) -> Outcome:
            if family.name in WITHOUT_ROWS and COLUMNS.index(column) > COLUMNS.index("video"):
                return Outcome("absent", "the decoder's stream has no visual rows")
            return check(family)

        assert name not in REGISTERED and column in COLUMNS, name
        REGISTERED[name] = Form(column, name, unless_without_rows, slow)
        return check

    return register
