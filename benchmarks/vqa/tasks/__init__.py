"""The ten tasks by name, in the order of every table."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from benchmarks.vqa.base import Task
from benchmarks.vqa.tasks import (
    charts,
    colors,
    comparison,
    counting,
    digits,
    easy,
    existence,
    forms,
    relations,
    words,
)

_MODULES = (easy, digits, words, charts, counting, colors, relations, existence, comparison, forms)
TASKS: Mapping[str, Task] = MappingProxyType({module.TASK.name: module.TASK for module in _MODULES})
