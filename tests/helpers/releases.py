"""What differs between the releases of transformers that are supported."""

from __future__ import annotations

import pytest
import transformers

OLD = tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 23)
"""True for releases before the one that the default set-up has; 5.17 is the oldest that is tested."""


def since_5_23(what: str) -> pytest.MarkDecorator:
    """Skip a test of something that transformers 5.17 does otherwise."""
    return pytest.mark.skipif(OLD, reason=f"transformers before 5.23: {what}")
