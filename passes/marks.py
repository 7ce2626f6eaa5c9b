"""Which live tensors are known to hold visual rows: the channel between two graphs of one forward.

Where a graph break lies between the merge of image features and the decoder, the first graph marks the tensor that
it hands on and the second finds the mark. A mark belongs to one tensor object and dies with it, so a mask can never
be taken for another forward's.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from dataclasses import dataclass

import torch
from torch.utils.weak import WeakIdKeyDictionary

from opskip_compile import _compat
from opskip_compile.errors import NothingSkippedWarning

NOT_SKIPPED = (
    "opskip: image features were merged into the decoder's input, but no compiled graph skipped an operator on them "
    "({why}). {advice}."
)


@dataclass
class Mark:
    """The visual mask of one tensor, bool ``(batch, sequence)``, and whether a decoder graph has taken it up.

    Attributes:
        mask: True where a row is visual.
        used: a decoder graph has taken it up.
        if_unused: what a user is told if none does.
    """

    mask: torch.Tensor
    used: bool = False
    if_unused: str = ""


class Marks:
    """Marks by tensor identity. Safe to use from several threads."""

    def __init__(self) -> None:
        self._marks: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._lock = threading.Lock()

    def put(self, tensor: torch.Tensor, mask: torch.Tensor, *, if_unused: str = "") -> None:
        """Say that the rows of ``tensor`` ``(batch, sequence, width)`` where ``mask`` is True are visual.

        Code that was compiled for a tensor without a mark is compiled again for ``tensor``. With ``if_unused``, a user
        is told so if no decoder graph takes the mark up.
        """
        mark = Mark(mask.detach(), if_unused=if_unused)
        _compat.set_apart(tensor)
        with self._lock:
            self._marks[tensor] = mark
        if if_unused:
            weakref.finalize(tensor, _warn_if_unused, mark).atexit = False

    def get(self, tensor: object) -> Mark | None:
        """The mark of ``tensor``, if it has one that fits its shape."""
        if not isinstance(tensor, torch.Tensor):
            return None
        with self._lock:
            mark = self._marks.get(tensor)  # type: ignore[no-untyped-call]
        return mark if mark is not None and mark.mask.shape == tensor.shape[:2] else None


def _warn_if_unused(mark: Mark) -> None:
    if not mark.used:
        warnings.warn(mark.if_unused, NothingSkippedWarning, stacklevel=2)


MARKS = Marks()
