"""Every error and warning that leaves this package on purpose.

One root, `OpSkipError`, so that a caller can catch whatever this package refuses in one clause. Each message
names the field or the graph node that is wrong.
"""

from __future__ import annotations


class OpSkipError(Exception):
    """Root of every error that this package raises on purpose."""


class ScheduleError(OpSkipError, ValueError):
    """A schedule that is malformed or made for another model. The message names the field."""


class OptionError(OpSkipError, ValueError):
    """A backend option that does not exist or has a wrong value. The message names the nearest option."""


class RewriteError(OpSkipError, RuntimeError):
    """Under ``strict=True``: an operator of the schedule could not be proved safe to rewrite."""


class UncalibratedScheduleWarning(UserWarning):
    """No schedule was given and no preset fits the model: an uncalibrated fallback is in use."""


class NothingSkippedWarning(UserWarning):
    """A forward pass with visual rows ran through the backend and no operator was skipped."""


def in_one_line(error: Exception) -> str:
    """What an error of somebody else's code says, for a message of ours: in one line of at most 200 characters."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
