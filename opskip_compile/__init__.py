"""opskip_compile: multimodal LLMs that skip visual rows, per layer and operator, at the compiler level."""

from opskip_compile.errors import (
    NothingSkippedWarning,
    OpSkipError,
    OptionError,
    RewriteError,
    ScheduleError,
    UncalibratedScheduleWarning,
)
