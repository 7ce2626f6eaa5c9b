"""One HTML page from a graph diff: which operators were skipped, what changed line by line, and what it saves.

The page is a single file without network access. The diff stands in it as JSON that can't end its script element, and
`page.js` draws it; a Content-Security-Policy that names the hashes of that script and style lets nothing else run.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

_SLOT = re.compile(r"\{\{(\w+)\}\}")
# In one script element, in this order.
_SCRIPTS = ("base.js", "overview.js", "code.js", "page.js")
_ESCAPES = str.maketrans(
    {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"},
)


def render(diff: Mapping[str, Any]) -> str:
    """The page of ``GraphDiff.to_dict()``; equal dicts give equal text.

    Raises:
        TypeError: the diff holds something that JSON can't.
    """
    style, script = _asset("page.css"), "\n".join(map(_asset, _SCRIPTS))
    schedule = diff.get("summary", {}).get("schedule") or ""
    parts = {
        "title": html.escape(f"opskip graph diff: {schedule}" if schedule else "opskip graph diff"),
        "policy": f"default-src 'none'; style-src {_source(style)}; script-src {_source(script)}; img-src data:; "
        "base-uri 'none'; form-action 'none'",
        "style": style,
        "script": script,
        "diff": embed(diff),
    }
    # One pass over the template, so that text of the diff which looks like a slot stays text.
    return _SLOT.sub(lambda slot: parts[slot[1]], _asset("page.html"))


def embed(value: Mapping[str, Any]) -> str:
    """JSON for a script element: no text in it, ``</script>`` and ``<!--`` included, means anything to HTML."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).translate(_ESCAPES)


def _asset(name: str) -> str:
    return files("opskip_compile.report").joinpath("assets", name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    """The source expression that allows exactly this inline ``text``."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
