"""Which rows a schedule means: those of images, of videos, of audio, told by the token that stands for them.

A modality is what the model's config names a placeholder token for. Frames that a processor writes as images are rows
of images, and the sound of a video is audio.
"""

from __future__ import annotations

from typing import Any

from opskip_compile.errors import ScheduleError
from opskip_compile.schedule.validation import check_choice, check_list, show

MODALITIES = ("image", "video", "audio")
VISUAL = ("image", "video")  # what a schedule means that says nothing
ALL = "all"

_FIELDS = ("{}_token_id", "{}_token_index")


def check_modalities(value: object, field: str = "modalities") -> tuple[str, ...]:
    """Names in the order of `MODALITIES`, each once, of a list, of text with commas, or of ``"all"``.

    Raises:
        ScheduleError: no name, an unknown one, or one that stands there twice; names ``field``.
    """
    if value == ALL:
        return MODALITIES
    names = check_list(value.split(",") if isinstance(value, str) else value, field)
    for name in names:
        check_choice(name, MODALITIES, field)
    if not names or len(set(names)) < len(names):
        raise ScheduleError(f"{field}: expected some of {', '.join(MODALITIES)}, each once, or all, got {show(value)}")
    return tuple(name for name in MODALITIES if name in names)


def in_words(modalities: tuple[str, ...]) -> str:
    """``image and video``."""
    return " and ".join(filter(None, [", ".join(modalities[:-1]), modalities[-1]]))


def named_modalities(config: Any) -> dict[str, frozenset[int]]:
    """The modalities for whose tokens a config, or a class of configs, has a field, whatever stands in it."""
    return {name: frozenset() for name in MODALITIES if any(hasattr(config, field.format(name)) for field in _FIELDS)}


def tokens_by_modality(config: Any) -> dict[str, frozenset[int]]:
    """The token ids that stand for the rows of each modality in a config of transformers; only those that it names."""
    found = {}
    for modality in MODALITIES:
        values = (getattr(config, name.format(modality), None) for name in _FIELDS)
        ids = frozenset(value for value in values if isinstance(value, int))
        if ids:
            found[modality] = ids
    return found
