"""The graph diff: every node on one line, with the right status, the right shape, and the same bytes every time."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import networkx as nx
import pytest
import torch

import opskip_compile as opskip
from opskip_compile.report.diff import GraphDiff
from opskip_compile.report.diff_data import STATUSES, DiffLine
from tests.helpers.decoders import gate_in_layer_one
from tests.helpers.families import FAMILIES, ONE_IMAGE, UNEVEN
from tests.helpers.grabbed import grab
from tests.helpers.own_decoder import Decoder, explain_qwen3_vl, visual
from tests.helpers.releases import since_5_23
from tests.helpers.support import ZOO
from tests.passes.analysis.test_match import BUILDS, run

pytestmark = pytest.mark.usefixtures("fresh")
SPEC = "silent:2 transform:0 attend:1"


@pytest.fixture(scope="module")
def diff() -> GraphDiff:
    """A small diff with one silent layer of two."""
    torch._dynamo.reset()
    return opskip.explain(FAMILIES["llava"].build(2), FAMILIES["llava"].inputs(), "silent:1").diff()


def check(diff: GraphDiff) -> None:
    """What holds of every diff."""
    lines = diff.lines
    befores = [line.before.name for line in lines if line.before is not None]
    afters = [line.after.name for line in lines if line.after is not None]
    assert sorted(befores) == sorted(record.name for record in diff.before), "every captured node stands once"
    assert sorted(afters) == sorted(record.name for record in diff.after), "every rewritten node stands once"
    assert Counter(line.status for line in lines) == Counter({k: v for k, v in diff.counts.items() if v})
    for line in lines:
        check_line(line)
    order = {record.name: i for i, record in enumerate(diff.after)}
    for group in diff.groups:
        places = [order[line.after.name] for line in group.lines if line.after is not None]
        assert places == sorted(places), "the right column is in the order of the graph"


def check_line(line: DiffLine) -> None:
    before, after = line.before, line.after
    if line.status == "added":
        assert before is None
    elif line.status == "removed":
        assert after is None
    else:
        same = before.operation == after.operation and before.literals == after.literals
        if line.status == "kept":
            assert (before.code, before.shape) == (after.code, after.shape)
        elif line.status == "rewired":
            assert same and before.shape == after.shape and before.operands != after.operands
        else:
            assert line.status == "changed"
            assert not same or after.row_dim is not None or before.shape != after.shape
            differing = [i for i, (a, b) in enumerate(zip(before.shape, after.shape, strict=True)) if a != b]
            assert set(differing) <= {0, after.row_dim}, "only the rows (and a broadcast batch) may differ"


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", BUILDS)
def test_every_build(name: str, batch: int) -> None:
    build = BUILDS[name]
    _, _, report, _ = run(build.model, build.spec, batch, counted=build.counted)
    diff = report.diff()
    check(diff)
    changed = {g.name for g in diff.groups if g.layer is not None and g.counts["changed"] + g.counts["added"]}
    assert set(report.skipped) <= changed
    if name not in ("parallel-one", "parallel-two-row-sets", "deepstack-in-place", "in-place-at-once"):
        assert changed == set(report.skipped), "full operators only read other nodes"
    assert diff.facts["summary"]["nodes_after"] == len(diff.after) == report.nodes_after


@pytest.mark.parametrize(
    ("family", "layout"),
    [*((family, UNEVEN) for family in FAMILIES), ("qwen3_vl", ONE_IMAGE), ("llava", ONE_IMAGE)],
    ids=lambda value: value if isinstance(value, str) else f"batch of {len(value)}",
)
def test_shapes_are_those_of_the_running_graph(family: str, layout: object) -> None:
    spec = f"{SPEC} silent@through_visual:3"
    found = grab(FAMILIES[family].build(4), FAMILIES[family].inputs(layout), spec)
    diff = found.report.diff()
    check(diff)
    for records, graph in ((diff.before, found.before), (diff.after, found.after)):
        real, known = found.shapes(graph), {r.name: r for r in records if r.shape is not None}
        assert len(known) > 300
        for name, record in known.items():
            if name in real:
                assert record.shape == real[name], record.code
    assert {r.row_dim for r in diff.after} == {None, 1, 2}
    assert all(r.row_dim is None for r in diff.before)


@since_5_23("experts are computed for every row")
def test_shapes_of_flattened_and_sorted_tokens() -> None:
    """A routed FFN counts tokens times experts; its kept rows are a share of them."""
    family = ZOO["qwen3_vl_moe"]
    found = grab(family.build(), family.inputs(((2, 4),)), SPEC)
    diff, real = found.report.diff(), found.shapes(found.after)
    check(diff)
    known = {r.name: r.shape for r in diff.after if r.shape is not None and r.name in real}
    assert known == {name: real[name] for name in known}
    routed = [
        known[line.name] for line in diff.operator("1.ffn").lines if "grouped_mm" in (line.after or line.before).code
    ]
    assert [shape[0] for shape in routed] == [16, 16], "8 kept rows, 2 experts each"
    in_place = [line for line in diff.lines if line.before is not None and "itruediv(" in line.before.code]
    assert [line.status for line in in_place] == ["changed"] * 4, "the division on the kept rows stands for it"


@since_5_23("values have other numbers")
def test_only_the_skipped_operators_change() -> None:
    report = opskip.explain(FAMILIES["llava"].build(4), FAMILIES["llava"].inputs(), SPEC)
    diff = report.diff()
    states = {op["name"]: op["state"] for layer in diff.facts["layers"] for op in layer["operators"]}
    assert [name for name, state in states.items() if state == "skip"] == [
        "0.attention", "1.ffn", "2.attention", "2.ffn",
    ]  # fmt: skip
    for group in diff.groups:
        if group.layer is not None and states[group.name] == "full":
            changed = [line for line in group.lines if line.status == "changed"]
            attention = ["opskip.attend" in line.after.code for line in changed]
            assert attention == ([True] if group.name.endswith("attention") else []), "all but the mask is as it was"
        elif group.layer is not None:
            assert group.counts["changed"] > 1
    ffn = diff.operator("1.ffn")
    assert ffn.counts == {"kept": 0, "changed": 14, "rewired": 0, "added": 3, "removed": 0}
    down = next(line for line in ffn.lines if line.name == "down_proj_1_kept")
    assert down.before.code == "down_proj_1 = torch._C._nn.linear(mul_20, layers.1.mlp.down_proj.weight, None)"
    assert (down.before.shape, down.after.shape, down.after.row_dim) == ((1, 24, 32), (1, 8, 32), 1)
    keys = [line for line in diff.operator("0.attention").lines if line.before and "k_proj" in line.before.code]
    assert [line.status for line in keys] == ["kept"], "keys of every row stay"


def test_schedule_none_changes_nothing() -> None:
    diff = opskip.explain(FAMILIES["internvl"].build(2), FAMILIES["internvl"].inputs(), "none").diff()
    check(diff)
    assert diff.changes == ()
    assert {line.status for line in diff.lines} == {"kept"}
    assert str(diff).startswith("nothing was rewritten: the schedule skips nothing here")


def test_an_operator_that_can_not_be_matched_is_named() -> None:
    _, _, report, _ = run(gate_in_layer_one, "silent:0-2", 1)
    diff = report.diff()
    check(diff)
    cell = diff.facts["layers"][1]["operators"][0]
    assert (cell["name"], cell["state"]) == ("1.attention", "missed")
    assert cell["reason"] == "add does not add the operator to its own input"
    (miss,) = report.misses
    shown = str(diff)
    assert f"stays full: 1.attention at {miss.node} {miss.source}: {cell['reason']}" in shown
    assert re.search(
        r"nearest match: \w+ \(decoders.py:\d+\) adds to mul\w*, which is \w+ through mul, sigmoid, linear", shown
    )


def test_a_branch_without_a_product_is_the_nearest() -> None:
    class Odd(Decoder):
        def forward(self, hidden: torch.Tensor, visual: torch.Tensor, skip: str = "") -> torch.Tensor:
            hidden = opskip.mark_visual(hidden, visual)
            for attention in self.attention:
                q, k, v, _ = attention(self.norm(hidden)).chunk(4, dim=-1)
                hidden = hidden + torch.nn.functional.scaled_dot_product_attention(q, k, v)
                hidden = hidden + torch.tanh(self.norm(hidden))
            return self.norm(hidden)

    report = opskip.explain(Odd(), (torch.randn(1, 12, 16), visual(1, 12, 2, 8)), "attend:1 transform:0")
    assert report.skipped == ("0.attention",)
    (miss,) = report.misses
    assert (miss.layer, miss.kind) == (1, "ffn")
    assert re.fullmatch(
        r"\w+ \(test_diff.py:\d+\) adds tanh_1 \(tanh\) to the stream, but no matrix product is known in it",
        miss.nearest,
    )
    check(report.diff())
    cell = report.diff().facts["layers"][1]["operators"][1]
    assert cell["state"] == "missed"


def test_many_layers_read_as_a_short_table() -> None:
    (report,) = explain_qwen3_vl(18, 64, 128, 4, 2, 16, "silent:10-17 transform:2,4,6-7")
    diff = report.diff()
    check(diff)
    assert len(diff.after) > 1500
    shown = str(diff).splitlines()
    assert len(shown) < 30
    row = next(line for line in shown if line.strip().startswith("11-16"))
    assert row.split()[1:3] == ["attention", "skip"]
    assert max(map(len, shown)) <= 120
    assert len(diff.facts["layers"]) == 18
    assert len([g for g in diff.groups if g.layer is not None]) == 36


def test_unknown_operator_names_the_nearest(diff: GraphDiff) -> None:
    with pytest.raises(
        opskip.OpSkipError, match=r"operator: there is no '2\.ffn' in this graph; the nearest is '\d\.ffn'"
    ):
        diff.operator("2.ffn")
    with pytest.raises(opskip.OpSkipError, match=r"'1\.fnn'"):
        diff.to_dot("1.fnn")


def test_exports_hold_the_union_of_both_graphs(tmp_path: Path, diff: GraphDiff) -> None:
    graph = diff.to_networkx()
    assert isinstance(graph, nx.DiGraph)
    assert Counter(status for _, status in graph.nodes(data="status")) == Counter(
        {status: count for status, count in diff.counts.items() if count}
    )
    before = {(a, b) for r in diff.before for a in r.operands for b in [r.name]}
    after = {(a, b) for r in diff.after for a in r.operands for b in [r.name]}
    by_status = Counter(status for _, _, status in graph.edges(data="status"))
    assert by_status["kept"] + by_status["added"] == len(after)
    assert by_status["kept"] + by_status["removed"] == len(before)
    assert by_status["added"] and by_status["removed"] and by_status["kept"]

    diff.to_graphml(tmp_path / "diff.graphml")
    read = nx.read_graphml(tmp_path / "diff.graphml")
    assert dict(read.nodes(data=True)) == dict(graph.nodes(data=True))
    assert set(read.edges) == set(graph.edges)
    assert read.graph["schedule"] == "silent:1"

    dot = diff.to_dot()
    assert dot.count(" -> ") >= graph.number_of_edges()
    assert sum(line.strip().startswith('"') and "fillcolor" in line for line in dot.splitlines()) == len(graph)
    one = diff.to_dot("1.ffn")
    assert 'label="1.ffn"' in one and len(one) < len(dot) / 3


def test_html_is_written_whole_or_not_at_all(tmp_path: Path, diff: GraphDiff) -> None:
    diff.to_html(tmp_path / "page.html")
    assert "1.ffn" in (tmp_path / "page.html").read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]
    with pytest.raises(opskip.OpSkipError, match=r"missing/page\.html: can't be written: No such file"):
        diff.to_html(tmp_path / "missing" / "page.html")


def test_json_has_the_documented_form() -> None:
    diff = opskip.explain(FAMILIES["qwen3_vl"].build(2), FAMILIES["qwen3_vl"].inputs(), "silent:1").diff()
    data = json.loads(diff.to_json())
    assert data == json.loads(json.dumps(diff.to_dict()))
    assert (data["format"], data["version"]) == ("opskip-graph-diff", 1)
    for group in data["groups"]:
        assert set(group["counts"]) == set(STATUSES)
        for status, i, j in group["lines"]:
            assert status in STATUSES
            assert (i is None) == (status == "added") and (j is None) == (status == "removed")
    assert data["summary"]["flops_after"] < data["summary"]["flops_before"]
    assert data["summary"]["prompt"]["visual"] == [16]
    assert "milliseconds" not in json.dumps(data) and "timing" not in json.dumps(data)


PRINT_EVERYTHING = """
import hashlib, json, pathlib, tempfile
import opskip_compile as opskip
from tests.helpers import families
from tests.helpers.families import FAMILIES
family = FAMILIES["qwen3_vl"]
report = opskip.explain(family.build(3), family.inputs(families.UNEVEN), "silent:2 attend:0")
diff, folder = report.diff(), pathlib.Path(tempfile.mkdtemp())
diff.to_html(folder / "a.html"), diff.to_graphml(folder / "a.graphml")
plain = report.to_dict(); plain.pop("timing")
texts = [str(report), str(diff), str(diff.operator("2.ffn")), diff.to_json(), diff.to_dot(), json.dumps(plain)]
texts += [(folder / n).read_text() for n in ("a.html", "a.graphml")]
texts += [str(opskip.count_flops(report))]
print(*(hashlib.sha256(t.encode()).hexdigest() for t in texts))
"""


def test_all_output_is_the_same_from_run_to_run(capsys: pytest.CaptureFixture[str]) -> None:
    """This process and another one, with different hash seeds and different addresses."""
    exec(PRINT_EVERYTHING, {})
    here = capsys.readouterr().out.split()
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    done = subprocess.run(
        [sys.executable, "-c", PRINT_EVERYTHING],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=200, check=False,
        env={**os.environ, "PYTHONHASHSEED": seed},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(here) == 9
    assert done.stdout.split() == here
