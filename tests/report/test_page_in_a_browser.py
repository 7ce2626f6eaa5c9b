"""What a browser makes of the HTML page of a graph diff. Skips where there is no Chromium."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.helpers import pages
from tests.helpers.browser import Page

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def big() -> dict[str, Any]:
    return pages.diff(36, nodes=5000)


def codes(diff: dict[str, Any], name: str) -> list[tuple[str, str]]:
    group = next(group for group in diff["groups"] if group["name"] == name)
    sides = (diff["before"], diff["after"])
    return [
        tuple("" if at is None else side[at]["code"] for at, side in zip(line[1:], sides, strict=True))
        for line in group["lines"]
    ]


def test_header_says_what_was_done_and_saved(page: Page) -> None:
    page.open(pages.diff(36, missed=26))
    text = page.text("#facts")
    for words in ("15.8 \u2192 9.69 TFLOPs", "38.5 % fewer", "28 of 72 skipped, 1 missed", "36 layers", "silent:24-35"):
        assert words in text
    for words in ("given", "1,089 rows, 1,024 visual", "batch of 1", "masked_scatter", "1,474 \u2192 1,544"):
        assert words in text
    assert "320 changed" in text.replace("\n", " ")
    assert not page.find("#reason").is_displayed()


def test_strip_has_two_cells_a_layer_with_their_states(page: Page) -> None:
    diff = pages.diff(36, missed=26)
    page.open(diff)
    cells = page.js(
        "[...document.querySelectorAll('#strip .cell')].map(c => [c.dataset.op, c.dataset.state, c.innerText])"
    )
    signs = {"full": "", "skip": "S", "missed": "!"}
    assert cells == [
        [op["name"], op["state"], signs[op["state"]]] for layer in diff["layers"] for op in layer["operators"]
    ]
    assert len(cells) == 72
    label = page.cell("26.attention").get_attribute("aria-label")
    assert label.startswith("26.attention, missed, rows 1,089, FLOPs 109 GFLOPs, it writes into the KV cache")
    assert page.count("#legend li") == 4


@pytest.mark.parametrize(
    ("name", "statuses"),
    [
        ("29.ffn", {"changed": 14, "added": 3, "removed": 1}),
        ("29.attention", {"kept": 17, "changed": 8, "added": 4, "removed": 1}),
        ("0.ffn", {"kept": 14}),
    ],
)
def test_clicking_a_cell_shows_its_aligned_lines(page: Page, name: str, statuses: dict[str, int]) -> None:
    diff = pages.diff(36)
    page.open(diff)
    page.cell(name).click()
    assert page.shown() == name
    assert page.statuses() == statuses
    assert page.pairs() == codes(diff, name)
    assert page.js("location.hash") == f"#op={name}"
    assert page.cell(name).get_attribute("aria-current") == "true"
    assert page.count("#strip [aria-current]") == 1


def test_head_of_an_operator(page: Page) -> None:
    page.open(pages.diff(36, missed=26), "op=31.attention")
    text = page.text("#head")
    for words in (
        "skip",
        "layer 31, silent",
        "1,089 \u2192 65",
        "visual rows left out",
        "109 \u2192 15.2 GFLOPs",
        "86.1 % fewer",
    ):
        assert words in text
    for words in ("hidden_30f", "modeling_qwen3_vl.py:535", "hidden_31a", "modeling_qwen3_vl.py:547", "linear"):
        assert words in text
    page.cell("26.attention").click()
    assert "Stays full: it writes into the KV cache" in page.text("#head .notice")
    assert "Nothing changed" in page.text("#table")


def test_kept_rows_and_changed_words_are_marked(page: Page) -> None:
    page.open(pages.diff(36), "op=29.ffn")
    row = "#table [data-line='1'] "
    assert [page.text(row + side + " + .shape") for side in (".old", ".new")] == [
        "bf16[1, 1089, 4096]",
        "bf16[1, 65, 4096]",
    ]
    assert page.text(row + ".new + .shape .rows") == "65"
    marked = page.js("[...document.querySelectorAll(arguments[0])].map(e => e.textContent)", row + ".new .own")
    assert marked == ["hidden_f32_29f_kept", "hidden_29a_rows"]
    assert page.text(row + ".source").split() == ["qwen3_vl", ":79"]
    assert "bfloat16" in page.find(row + ".new").get_attribute("title")


def test_hover_and_focus_tell_what_a_cell_saves(page: Page) -> None:
    chains = pytest.importorskip("selenium.webdriver.common.action_chains")
    page.open(pages.diff(36, missed=26))
    assert not page.find("#tip").is_displayed()
    chains.ActionChains(page.driver).move_to_element(page.cell("29.ffn")).perform()
    text = page.text("#tip")
    for words in (
        "29.ffn",
        "skip",
        "29, silent",
        "1,089 \u2192 65",
        "329 \u2192 19.6 GFLOPs",
        "94.0 % fewer",
        "modeling_qwen3_vl.py:548",
    ):
        assert words in text
    page.js("document.querySelector(arguments[0]).focus()", '[data-op="26.attention"]')
    assert "KV cache of another layer" in page.text("#tip")
    page.keys("\ue015")  # arrow down
    assert "26.ffn" in page.text("#tip")


def test_long_runs_of_kept_lines_are_folded(page: Page, big: dict[str, Any]) -> None:
    page.open(big, "op=before")
    assert page.statuses() == {"kept": 2, "added": 2, "rewired": 1}
    fold = page.find("#table .fold")
    assert fold.text.endswith("38 unchanged lines")
    fold.click()
    assert page.count("#table .fold") == 0
    assert page.pairs() == codes(big, "before")


def test_only_changes(page: Page) -> None:
    page.open(pages.diff(36), "op=29.attention")
    page.find("#only").click()
    assert page.statuses() == {"changed": 8, "added": 4, "removed": 1}
    assert page.count("#table .fold") > 1
    names = page.js("[...document.querySelectorAll('#groups option')].map(o => o.value)")
    assert names[:3] == ["before", "4.attention", "5.ffn"]
    assert "only=1" in page.js("location.hash")
    page.open(hash="op=29.attention&only=1")
    assert page.find("#only").is_selected()
    assert "kept" not in page.statuses()


def test_keys_and_buttons_step_through_the_operators(page: Page) -> None:
    page.open(pages.diff(36), "op=17.attention")
    for key, name in (
        ("]", "17.ffn"),
        ("]", "18.attention"),
        ("[", "17.ffn"),
        ("\ue012", "17.attention"),
        ("\ue014", "17.ffn"),
    ):
        page.keys(key)
        assert page.shown() == name
    page.find("#next").click()
    assert page.shown() == "18.attention"
    page.find("#previous").click()
    assert page.shown() == "17.ffn"
    page.driver.back()
    page.until(lambda: page.shown() == "18.attention")
    page.open(hash="op=before")
    page.keys("[")
    assert page.shown() == "before the layers"
    assert not page.find("#previous").is_enabled()


def test_search_finds_and_jumps(page: Page, big: dict[str, Any]) -> None:
    page.open(big, "op=0.ffn")
    page.keys("/")
    assert page.js("document.activeElement.id") == "search"
    page.search("DOWN_PROJ_33f_kept")
    assert page.text("#hits p") == "2 lines found"
    page.find("#hits .hit").click()
    assert page.shown() == "33.ffn"
    assert page.text("#table .target .new").startswith("down_proj_33f_kept = ")
    assert page.count("#table .target") == 1
    assert not page.find("#hits").is_displayed()
    assert "node=down_proj_33f_kept" in page.js("location.hash")


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        ("layers.12.mlp gate_proj", 1),  # code
        ("qwen3_vl.py:489", 36),  # source line
        ("metadata_29a", 1),  # only in the graph before
        ("nowhere_to_be_found", 0),
    ],
)
def test_search_looks_at_code_sources_and_both_sides(page: Page, words: str, lines: int) -> None:
    page.open(pages.diff(36))
    page.search(words)
    assert page.text("#hits p").startswith(f"{lines} line" if lines else "No line")
    assert page.count("#hits .hit") == lines


def test_search_list_is_capped(page: Page, big: dict[str, Any]) -> None:
    page.open(big)
    page.search("pad_")
    found = sum(node["name"].startswith("pad_") for node in big["after"])
    assert page.text("#hits p") == f"{found:,} lines found"
    assert page.count("#hits .hit") == 200
    assert page.text("#hits p:last-child") == f"and {found - 200:,} more"
    page.keys("\ue015\ue015\ue013\ue015")  # down, down, up, down
    assert page.js("[...document.querySelectorAll('.hit')].indexOf(document.activeElement)") == 1
    page.keys("\ue00c")
    assert not page.find("#hits").is_displayed()


def test_search_jumps_into_a_folded_run(page: Page, big: dict[str, Any]) -> None:
    page.open(big)
    page.search("position_17")
    page.find("#hits .hit").click()
    assert page.text("#table .target .new").startswith("position_17 = ")
    assert page.count("#table .fold") == 2


def test_lists_say_what_stays_full_and_why(page: Page) -> None:
    page.open(pages.diff(36, missed=26))
    misses, stops = (page.text(f"#lists details:nth-child({n})") for n in (1, 2))
    for words in (
        "stay full: 1",
        "26.attention",
        "hidden_26a",
        "py:547",
        "it writes into the KV cache",
        "nearest: a branch",
    ):
        assert words in misses
    for words in ("every row: 2", "linear_k_24a", "24.attention", "py:471", "the view splits or merges the rows"):
        assert words in stops
    page.find("#lists details:nth-child(2) .mono").click()
    assert page.shown() == "24.attention"
    assert page.text("#table .target .new").startswith("linear_k_24a = ")


def test_theme_follows_the_button(page: Page) -> None:
    page.open(pages.diff(2))
    found = {}
    for theme in ("auto", "light", "dark", "auto"):
        assert page.text("#theme") == f"Theme: {theme}"
        assert page.js("location.hash.includes('theme=')") == (theme != "auto")
        found[theme] = page.js("getComputedStyle(document.body).backgroundColor")
        page.find("#theme").click()
    assert found["light"] == "rgb(246, 247, 249)"
    assert found["dark"] == "rgb(20, 23, 28)"
    assert found["auto"] in (found["light"], found["dark"])


def test_a_link_opens_what_it_names(page: Page) -> None:
    diff = pages.diff(36)
    page.open(diff, "op=17.ffn&q=silu&theme=dark")
    assert page.shown() == "17.ffn"
    assert page.find("#search").get_attribute("value") == "silu"
    assert page.text("#theme") == "Theme: dark"
    page.open(hash="op=33.ffn&node=silu_33f_kept")
    assert page.text("#table .target .new").startswith("silu_33f_kept = ")
    page.open(hash="op=99.ffn")
    assert page.shown() == "4.attention"  # the first that changed
    assert page.text("#say") == "There is no 99.ffn in this graph."
    page.js("void (location.hash = 'op=5.ffn')")
    page.until(lambda: page.shown() == "5.ffn")


def test_hostile_text_is_only_text(page: Page) -> None:
    diff = pages.hostile()
    page.open(diff)
    for name in ("before", "0.attention", "2.attention", "2.ffn", "after"):
        page.open(hash=f"op={name}")
        page.js("document.querySelectorAll('.fold').forEach(fold => fold.click())")
        assert page.pairs() == codes(diff, name)
    page.search("onerror")
    assert page.count("#hits .hit mark") > 0
    assert page.driver.title == "opskip graph diff: " + " ".join(pages.HOSTILE)
    assert page.count("img") == 0
    assert page.count("script") == 2


def test_nothing_rewritten_says_why(page: Page) -> None:
    page.open(pages.diff(4, reason="no visual rows: this graph holds no masked_scatter"))
    assert page.text("#reason") == "Nothing was rewritten: no visual rows: this graph holds no masked_scatter"
    assert "0 of 8 skipped" in page.text("#facts")
    assert page.shown() == "0.attention"
    assert page.statuses() == {"kept": 25}


def test_values_that_are_not_known_read_so(page: Page) -> None:
    page.open(pages.unknown(), "op=2.ffn")
    assert page.text("#facts").count("not known") == 2
    assert page.text("#head").count("not known") == 2
    for text in (page.text("body"), page.cell("2.ffn").get_attribute("aria-label")):
        assert not re.search(r"\b(null|undefined|NaN|object)\b", text)
    assert page.cell("1.ffn").get_attribute("data-state") == "absent"
    page.cell("1.ffn").click()
    assert page.shown() == "1.ffn"
    assert "not in the graph" in page.text("#table")


@pytest.mark.parametrize("keep", ["format version", "summary", "groups before after"])
def test_a_diff_with_parts_missing_still_opens(page: Page, keep: str) -> None:
    diff = pages.diff(2)
    page.open({key: diff[key] for key in keep.split()})
    assert "No decoder layer was found" in page.text("#strip")


def test_a_large_graph_keeps_the_document_small(page: Page, big: dict[str, Any]) -> None:
    assert min(len(big["before"]), len(big["after"])) >= 5000
    page.open(big)
    most = 0
    for layer in big["layers"]:
        for op in layer["operators"]:
            page.js("document.querySelector(arguments[0]).click()", f'[data-op="{op["name"]}"]')
            assert page.shown() == op["name"]
            most = max(most, page.count("*"))
    page.search("linear")
    assert page.count("#hits .hit") == 200
    assert most < 2500
    assert page.count("*") < 5000


def test_one_huge_group_is_shown_in_portions(page: Page) -> None:
    kept = [pages.node(f"n{i}", "f()") for i in range(3000)]
    lines = [["kept" if i % 2 else "changed", i, i] for i in range(3000)]
    page.open(
        pages.finish(kept, kept, [{"name": "before", "title": "the graph", "lines": lines}], []), "node=n2000&op=before"
    )
    assert page.count("#table .line:not(.top)") == 400
    assert page.text("#table .target .old").startswith("n2000 = ")
    folds = page.driver.find_elements("css selector", ".fold")
    assert [fold.text.split()[-3:] for fold in folds] == [[n, "more", "lines"] for n in ("1,800", "800")]
    page.find("#table .fold:last-child").click()
    assert page.count("#table .line:not(.top)") == 800
    page.keys("/")
    page.search("n2999")
    page.find(".hit").click()
    assert page.text("#table .target .old").startswith("n2999 = ")


@pytest.mark.parametrize("width", [1600, 1280, 900, 600])
def test_nothing_pushes_the_page_wider(page: Page, width: int) -> None:
    diff = pages.diff(36)
    long = "language_model_" * 40
    diff["after"][-1]["code"] = diff["before"][-1]["code"] = f"logits = f({long})"
    diff["summary"]["schedule"] = long
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        page.open(diff)
        for name in ("29.attention", "after"):
            page.open(hash=f"op={name}")
            assert page.js("document.documentElement.scrollWidth") <= width
            cells = "[...document.querySelectorAll('#table .code, #facts dd')]"
            assert page.js(cells + ".filter(e => e.scrollWidth > e.clientWidth + 1).length") == 0
            after = "[...document.querySelectorAll('#table .line:not(.top, .removed) .new')]"
            assert page.js(f"new Set({after}.map(e => e.getBoundingClientRect().left)).size") == 1
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
