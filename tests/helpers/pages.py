"""Made-up diffs in the form of ``GraphDiff.to_dict()``, of any size, for tests of the page.

Each decoder layer is written from a table of steps. A step marked ``row`` works row by row, so a skipped operator
computes it on the kept rows only; the other steps (keys, values) stay as they are.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

ROWS, VISUAL, WIDTH, FFN_WIDTH, HEADS, KV_HEADS, HEAD = 1089, 1024, 4096, 12288, 32, 8, 128
KEPT = ROWS - VISUAL
FILE = "modeling_qwen3_vl.py"
STATUSES = ("kept", "changed", "rewired", "added", "removed")

# name, code, shape ("R": the rows), source line, row by row
_NORM = [
    ("hidden_f32", "{h}.to(torch.float32)", (1, "R", WIDTH), 79, True),
    ("pow", "hidden_f32.pow(2)", (1, "R", WIDTH), 80, True),
    ("variance", "pow.mean(-1, keepdim = True)", (1, "R", 1), 80, True),
    ("add_eps", "variance + 1e-06", (1, "R", 1), 81, True),
    ("rsqrt", "torch.rsqrt(add_eps)", (1, "R", 1), 81, True),
    ("hidden_norm", "hidden_f32 * rsqrt", (1, "R", WIDTH), 81, True),
    ("to_bf16", "hidden_norm.to(torch.bfloat16)", (1, "R", WIDTH), 82, True),
]
_ATTENTION = [
    *[(name, code, size, line, False) for name, code, size, line, _ in _NORM],
    ("normed", "layers.{n}.input_layernorm.weight * to_bf16", (1, "R", WIDTH), 82, False),
    ("linear_q", "torch._C._nn.linear(normed, {w}.self_attn.q_proj.weight, None)", (1, "R", WIDTH), 470, True),
    ("view_q", "linear_q.view((1, -1, 32, 128))", (1, "R", HEADS, HEAD), 470, True),
    ("query", "view_q.transpose(1, 2)", (1, HEADS, "R", HEAD), 470, True),
    ("linear_k", "torch._C._nn.linear(normed, {w}.self_attn.k_proj.weight, None)", (1, "R", 1024), 471, False),
    ("view_k", "linear_k.view((1, 1089, -1, 128))", (1, "R", KV_HEADS, HEAD), 471, False),
    ("key", "view_k.transpose(1, 2)", (1, KV_HEADS, "R", HEAD), 471, False),
    ("linear_v", "torch._C._nn.linear(normed, {w}.self_attn.v_proj.weight, None)", (1, "R", 1024), 472, False),
    ("view_v", "linear_v.view((1, 1089, -1, 128))", (1, "R", KV_HEADS, HEAD), 472, False),
    ("value", "view_v.transpose(1, 2)", (1, KV_HEADS, "R", HEAD), 472, False),
    ("q_embed", "query * cos_q", (1, HEADS, "R", HEAD), 475, True),
    ("k_embed", "key * cos", (1, KV_HEADS, "R", HEAD), 475, False),
    ("keys", "torch.cat([past_key_{n}, k_embed], dim = -2)", (1, KV_HEADS, "R", HEAD), 478, False),
    ("values", "torch.cat([past_value_{n}, value], dim = -2)", (1, KV_HEADS, "R", HEAD), 478, False),
    (
        "attn_output",
        "torch._C._nn.scaled_dot_product_attention(q_embed, keys, values, attn_mask = mask, dropout_p = 0.0, "
        "scale = 0.08838834764831845, is_causal = False, enable_gqa = True)",
        (1, HEADS, "R", HEAD),
        92,
        True,
    ),
    ("merged", "attn_output.transpose(1, 2).reshape(1, -1, 4096)", (1, "R", WIDTH), 488, True),
    ("o_proj", "torch._C._nn.linear(merged, {w}.self_attn.o_proj.weight, None)", (1, "R", WIDTH), 489, True),
]
_FFN = [
    *_NORM,
    ("normed_ffn", "layers.{n}.post_attention_layernorm.weight * to_bf16", (1, "R", WIDTH), 82, True),
    ("linear_gate", "torch._C._nn.linear(normed_ffn, {w}.mlp.gate_proj.weight, None)", (1, "R", FFN_WIDTH), 508, True),
    ("silu", "torch.nn.functional.silu(linear_gate)", (1, "R", FFN_WIDTH), 508, True),
    ("linear_up", "torch._C._nn.linear(normed_ffn, {w}.mlp.up_proj.weight, None)", (1, "R", FFN_WIDTH), 508, True),
    ("gated", "silu * linear_up", (1, "R", FFN_WIDTH), 508, True),
    ("down_proj", "torch._C._nn.linear(gated, {w}.mlp.down_proj.weight, None)", (1, "R", WIDTH), 508, True),
]
_STEPS = {"attention": _ATTENTION, "ffn": _FFN}
_FLOPS = {"attention": (109_000_000_000, 15_200_000_000), "ffn": (328_800_000_000, 19_600_000_000)}
_LOCAL = {kind: {step[0] for step in steps} for kind, steps in _STEPS.items()}


class _Sheet:
    """The two sides and the lines of the group that is being written."""

    def __init__(self) -> None:
        self.before: list[dict[str, Any]] = []
        self.after: list[dict[str, Any]] = []
        self.groups: list[dict[str, Any]] = []

    def group(self, name: str, title: str, layer: int | None = None, kind: str | None = None) -> None:
        self.groups.append({"name": name, "title": title, "layer": layer, "kind": kind, "lines": []})

    def line(self, status: str, old: dict[str, Any] | None, new: dict[str, Any] | None) -> None:
        ends: list[int | None] = []
        for side, node in ((self.before, old), (self.after, new)):
            ends.append(None if node is None else len(side))
            side += [] if node is None else [node]
        self.groups[-1]["lines"].append([status, *ends])

    def kept(self, node: dict[str, Any]) -> None:
        self.line("kept", node, dict(node))


def node(
    name: str, code: str, shape: list[int | str] | None = None, line: int | None = 1, **more: Any
) -> dict[str, Any]:
    """One node of a side; ``line`` is that of its source, ``None`` if not known."""
    source = "" if line is None else f"{FILE}:{line}"
    dtype = None if shape is None else "bfloat16"
    return {
        "name": name,
        "code": f"{name} = {code}",
        "shape": shape,
        "dtype": dtype,
        "source": source,
        "row_dim": None,
        **more,
    }


def _rename(code: str, layer: int, kind: str, rowed: set[str]) -> str:
    """The names of the table made those of one layer; names in ``rowed`` hold kept rows."""

    def full(found: re.Match[str]) -> str:
        word = found[0]
        return f"{word}_{layer}{kind[0]}" + ("_kept" if word in rowed else "") if word in _LOCAL[kind] else word

    return re.sub(r"(?<![\w.])[a-z]\w*", full, code)


def _step(step: tuple[Any, ...], layer: int, kind: str, stream: str, rowed: set[str]) -> dict[str, Any]:
    name, code, shape, line, _ = step
    weights = f"model.language_model.layers.{layer}"
    code = _rename(code.replace("{n}", str(layer)).replace("{w}", weights), layer, kind, rowed).replace("{h}", stream)
    sized: list[int | str] = [(KEPT if name in rowed else ROWS) if dim == "R" else dim for dim in shape]
    row_dim = list(shape).index("R") if name in rowed and "R" in shape else None
    return node(_rename(name, layer, kind, rowed), code, sized, line, row_dim=row_dim)


def _operator(sheet: _Sheet, layer: int, kind: str, stream: str, skipped: bool, padding: int) -> str:
    """Write one operator and return the stream behind it."""
    rows, exit_ = f"{stream}_rows", f"hidden_{layer}{kind[0]}"
    rowed = {step[0] for step in _STEPS[kind] if step[4]} if skipped else set()
    last = _STEPS[kind][-1][0]
    if skipped:
        select = node(rows, f"select_rows({stream}, rows_visual, 1)", [1, KEPT, WIDTH], 540, row_dim=1)
        sheet.line("added", None, select)
    for step in _STEPS[kind]:
        old = _step(step, layer, kind, stream, set())
        new = _step(step, layer, kind, rows if step[0] in rowed else stream, rowed)
        if skipped and step[0] == "linear_q":
            code = f"select_rows(normed_{layer}a, rows_visual, 1)"
            sheet.line("added", None, node(f"normed_{layer}a_rows", code, [1, KEPT, WIDTH], 470, row_dim=1))
            new["code"] = new["code"].replace(f"normed_{layer}a", f"normed_{layer}a_rows")
        sheet.line("changed" if step[0] in rowed else "kept", old, new)
    for i in range(padding):
        sheet.kept(node(f"pad_{layer}{kind[0]}_{i}", f"torch.ops.aten.alias(pad_{i})", [1, ROWS, HEAD], 600 + i))
    update = _rename(last, layer, kind, rowed)
    old = node(exit_, f"{stream} + {_rename(last, layer, kind, set())}", [1, ROWS, WIDTH], 541)
    if not skipped:
        sheet.kept(old)
        return exit_
    sheet.line("removed", node(f"metadata_{layer}{kind[0]}", f"getattr({stream}, 'shape')", None, 541), None)
    sheet.line("added", None, node(f"{exit_}_updated", f"{rows} + {update}", [1, KEPT, WIDTH], 541, row_dim=1))
    code = f"torch.where(live_visual, {exit_}_updated, {rows})"
    sheet.line("added", None, node(f"{exit_}_kept", code, [1, KEPT, WIDTH], 541, row_dim=1))
    scatter = f"scatter_rows({stream}, rows_visual, {exit_}_kept)"
    sheet.line("changed", old, {**old, "code": f"{exit_} = {scatter}"})
    return exit_


def _cell(layer: int, kind: str, state: str, stream: str, exit_: str) -> dict[str, Any]:
    before, after = _FLOPS[kind]
    skipped = state == "skip"
    return {
        "name": f"{layer}.{kind}",
        "kind": kind,
        "state": state,
        "rows": "visual" if skipped else None,
        "rows_before": ROWS,
        "rows_after": KEPT if skipped else ROWS,
        "flops_before": before,
        "flops_after": after if skipped else before,
        "entry": stream,
        "exit": exit_,
        "entry_source": f"{FILE}:{535 if kind == 'attention' else 548}",
        "exit_source": f"{FILE}:{547 if kind == 'attention' else 551}",
        "remaining": ["linear"] if skipped and layer % 7 == 3 else [],
        "reason": "it writes into the KV cache of another layer in place" if state == "missed" else "",
    }


def diff(layers: int = 36, nodes: int = 0, reason: str = "", missed: int | None = None) -> dict[str, Any]:
    """A diff whose last third is silent, with some layers that only attend or transform.

    ``nodes``: pad every operator so that each side has about this many. ``missed``: this layer's attention stays full
    though the schedule names it. ``reason``: nothing is rewritten, and this is why.
    """
    sheet, table = _Sheet(), []
    sheet.group("before", "before the layers")
    for i in range(40):
        sheet.kept(node(f"position_{i}", f"torch.arange({i}, device = device(type='cuda', index=0))", [ROWS], 380 + i))
    if not reason:
        code = "torch.ops.opskip.kept_rows.default(visual_pos_masks, False)"
        sheet.line("added", None, node("rows_visual", code, [1, KEPT], None, dtype="int64", row_dim=1))
        sheet.line("added", None, node("live_visual", "rows_visual >= 0", ["s3", KEPT, 1], None, dtype="bool"))
    sheet.line(
        "rewired" if not reason else "kept",
        node("cos", "emb.cos()", [1, ROWS, HEAD], 333),
        node("cos", "emb.cos()", [1, ROWS, HEAD], 333),
    )
    stream, base = "inputs_embeds", sum(map(len, _STEPS.values())) + 4
    padding = max(0, -(-(nodes - layers * base) // (2 * layers))) if nodes else 0
    for layer in range(layers):
        operators = []
        for kind in _STEPS:
            skipped = (
                layer >= layers - layers // 3 or (kind == "ffn" and layer % 6 == 5) or (layer, kind) == (4, "attention")
            )
            state = "full" if reason or not skipped else "skip"
            if (layer, kind) == (missed, "attention"):
                state = "missed"
            entry = stream
            sheet.group(f"{layer}.{kind}", f"layer {layer} {kind}", layer, kind)
            stream = _operator(sheet, layer, kind, stream, state == "skip", padding)
            operators.append(_cell(layer, kind, state, entry, stream))
        name = {(0, 0): "full", (0, 1): "attend", (1, 0): "transform", (1, 1): "silent"}
        table.append(
            {"layer": layer, "state": name[tuple(int(o["state"] == "skip") for o in operators)], "operators": operators}
        )
    sheet.group("after", "after the layers")
    sheet.kept(node("logits", f"torch._C._nn.linear({stream}, lm_head.weight, None)", [1, ROWS, 151936], 1410))
    return finish(sheet.before, sheet.after, sheet.groups, table, reason)


def finish(
    before: list[dict[str, Any]],
    after: list[dict[str, Any]],
    groups: list[dict[str, Any]],
    layers: list[dict[str, Any]],
    reason: str = "",
) -> dict[str, Any]:
    """Add the counts, the summary and the lists."""
    total: Counter[str] = Counter()
    for group in groups:
        counts = Counter(line[0] for line in group["lines"])
        group["counts"] = {status: counts[status] for status in STATUSES}
        total += counts
    operators = [op for layer in layers for op in layer["operators"]]
    misses = [
        {
            "layer": int(op["name"].split(".")[0]),
            "kind": op["kind"],
            "node": op["exit"],
            "source": op["exit_source"],
            "reason": op["reason"],
            "nearest": "a branch with one entry and one exit that adds to the residual stream",
        }
        for op in operators
        if op["state"] == "missed"
    ]
    stops = [
        {
            "node": f"linear_k_{op['name'].split('.')[0]}a",
            "operation": "linear",
            "source": f"{FILE}:471",
            "reason": "the view splits or merges the rows",
            "operator": op["name"],
        }
        for op in operators
        if op["remaining"] and op["kind"] == "attention"
    ]
    return {
        "format": "opskip-graph-diff",
        "version": 1,
        "summary": {
            "schedule": "silent:24-35 attend:5,11,17,23 transform:4",
            "schedule_origin": "given",
            "row_source": "masked_scatter",
            "reason": reason,
            "num_layers": len(layers),
            "prompt": {"batch": 1, "rows": ROWS, "visual": [VISUAL]},
            "nodes_before": len(before),
            "nodes_after": len(after),
            **{status: total[status] for status in STATUSES},
            "flops_before": sum(op["flops_before"] or 0 for op in operators),
            "flops_after": sum(op["flops_after"] or 0 for op in operators),
        },
        "layers": layers,
        "misses": misses,
        "stops": stops,
        "groups": groups,
        "before": before,
        "after": after,
    }


HOSTILE = [
    "</script><script>document.title='broken out'</script>",
    "<!--<script>",
    "<img src=x onerror=\"document.title='broken out'\">",
    "{{diff}} {{script}} \\u003c & \u2028\u2029 '\"`",
]


def hostile() -> dict[str, Any]:
    """Every text of a small diff is an attack."""
    made = diff(3, missed=2)
    text = " ".join(HOSTILE)
    for side in (made["before"], made["after"]):
        for node in side:
            node.update(code=f"{node['code']} {text}", source=text, dtype=text)
    for item in (*made["misses"], *made["stops"]):
        item.update(reason=text, source=text, nearest=text, operation=text)
    for layer in made["layers"]:
        for op in layer["operators"]:
            op.update(reason=text, entry_source=text, remaining=[text])
    made["summary"].update(schedule=text, schedule_origin=text, row_source=text, reason=text)
    return made


def unknown() -> dict[str, Any]:
    """Every value that may be missing is missing, and one operator is not in the graph."""
    made = diff(3)
    made["summary"].update(prompt=None, flops_before=None, flops_after=None)
    for layer in made["layers"]:
        for op in layer["operators"]:
            op.update(dict.fromkeys(("rows_before", "rows_after", "flops_before", "flops_after")))
    for side in (made["before"], made["after"]):
        for node in side:
            node.update(shape=None, dtype=None, source="")
    made["layers"][1]["operators"].pop()
    made["groups"] = [group for group in made["groups"] if group["name"] != "1.ffn"]
    return made
