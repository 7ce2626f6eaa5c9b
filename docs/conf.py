"""The site: ``make docs``. Sphinx, since it reads docstrings as they are and PyTorch's own pages are made with it; MyST
reads the Markdown of this folder, which GitHub shows as well; Furo has a light and a dark form."""

from __future__ import annotations

from typing import Any

from opskip_compile import __version__

project = "opskip_compile"
copyright = "2026, the opskip_compile developers"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_title = f"opskip_compile {version}"
root_doc = "README"
include_patterns = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/*.md", "examples/*.md", "benchmarks/**.md"]
myst_heading_anchors = 4  # as GitHub has them
default_role = "py:obj"  # names in docstrings; those that have no page stay text
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_use_ivar = True

CONTENTS = {
    "Use it": (
        "docs/quick-start",
        "docs/usage",
        "docs/options",
        "docs/schedules",
        "docs/calibration",
        "docs/evaluation",
        "docs/inspection",
        "docs/serving",
        "docs/other-savings",
        "docs/several-devices",
        "docs/lmms-eval",
        "docs/troubleshooting",
        "examples/README",
    ),
    "Know more": (
        "docs/how-it-works",
        "docs/results",
        "docs/compile-time",
        "docs/support",
        "docs/limits",
        "docs/architecture",
        "docs/api",
    ),
    "The project": ("CONTRIBUTING", "CHANGELOG"),
}


def add_contents(app: Any, name: str, source: list[str]) -> None:
    """The front page is the README, with the site's contents beside it."""
    if name == root_doc:
        for caption, pages in CONTENTS.items():
            source[0] += "\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```", ""])
    elif name.startswith("benchmarks/"):  # pages that others link to, in no list
        source[0] = "---\norphan: true\n---\n\n" + source[0]


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", add_contents)
