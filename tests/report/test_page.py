"""The HTML page of a graph diff: what stands in the file. `test_page_in_a_browser` opens it."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from importlib.resources import files
from typing import Any

import pytest

from opskip_compile.report.page import embed, render
from tests.helpers import pages


class _Elements(HTMLParser):
    """What an HTML parser takes for elements, and the text of the data."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.data = ""
        self._in_data = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self._in_data = ("id", "diff") in attrs

    def handle_endtag(self, tag: str) -> None:
        self._in_data = False

    def handle_data(self, data: str) -> None:
        self.data += data if self._in_data else ""


@pytest.mark.parametrize("diff", [pages.diff(2), pages.hostile(), pages.unknown()], ids=["plain", "hostile", "unknown"])
def test_data_survives_and_adds_no_element(diff: dict[str, Any]) -> None:
    found = _Elements(render(diff))
    assert json.loads(found.data) == diff
    assert found.tags == _Elements(render(pages.diff(1))).tags


def test_nothing_in_the_data_means_anything_to_html() -> None:
    text = embed({"code": " ".join(pages.HOSTILE)})
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == {"code": " ".join(pages.HOSTILE)}


def test_equal_dicts_give_equal_bytes() -> None:
    diff = pages.diff(4)
    turned = dict(reversed(diff.items()))
    assert render(diff) == render(turned) == render(json.loads(json.dumps(diff)))


def test_page_reaches_for_nothing() -> None:
    text = render(pages.diff(2))
    without = text.replace("http://www.w3.org/2000/svg", "")
    for word in ("http://", "https://", "//cdn", "@import", "url(", "fetch(", "XMLHttpRequest", "innerHTML", "eval("):
        assert word not in without, word
    found = _Elements(text)
    assert not [value for name, value in found.attributes if name == "src"]
    assert [value[:10] for name, value in found.attributes if name == "href"] == ["data:image"]
    policy = next(value for name, value in found.attributes if value.startswith("default-src"))
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy


def test_what_json_has_no_word_for_is_refused() -> None:
    with pytest.raises(TypeError):
        render({**pages.diff(1), "more": object()})


def test_assets_stay_small_and_end_no_element() -> None:
    for asset in files("opskip_compile.report").joinpath("assets").iterdir():
        text = asset.read_text(encoding="utf-8")
        assert len(text.splitlines()) < 400, asset.name
        if not asset.name.endswith("html"):
            assert "</" not in text, asset.name
