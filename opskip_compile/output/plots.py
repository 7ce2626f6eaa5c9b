"""Write a plot to a file: whole or not at all, and the same figures give the same bytes.

Needs matplotlib. A plot is made without a display, without the user's matplotlib settings and without a date.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opskip_compile.errors import OpSkipError, OptionError
from opskip_compile.output.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INSTALL_HINT = 'install it with: pip install "opskip-compile[plot]"'
_METADATA: dict[str, dict[str, Any]] = {
    ".png": {"Software": None},
    ".svg": {"Date": None, "Creator": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


def check_plot(target: Path) -> None:
    """See that a plot can be written to ``target``.

    Raises:
        OptionError: its suffix is none of .png, .svg and .pdf.
        OpSkipError: matplotlib is not installed; says how to install it.
    """
    if target.suffix.lower() not in _METADATA:
        raise OptionError(f"plot: expected a file that ends in {', '.join(_METADATA)}, got {str(target)!r}")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise OpSkipError(f"plot, html: drawing needs matplotlib; {INSTALL_HINT}") from error


def write_figure(make: Callable[[], Figure], target: Path) -> None:
    """Draw what ``make`` makes and write it to ``target``, whole or not at all.

    Raises:
        OpSkipError: as `check_plot`, or the file can't be written.
    """
    check_plot(target)
    write_whole(target, drawn(make, target.suffix.lower()))


def drawn(make: Callable[[], Figure], suffix: str) -> bytes:
    """What ``make`` makes, as a file with this suffix.

    Raises:
        OpSkipError: matplotlib is not installed.
    """
    check_plot(Path(f"plot{suffix}"))
    import matplotlib
    from matplotlib import style

    with style.context("default"), matplotlib.rc_context({"svg.hashsalt": "opskip"}):
        content = io.BytesIO()
        make().savefig(content, format=suffix[1:], metadata=_METADATA[suffix])
    return content.getvalue()
