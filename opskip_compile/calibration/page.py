"""One HTML page of a calibration: the plot, the schedule and the tables. It needs no network and runs no script."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

from opskip_compile.calibration.budget import amount
from opskip_compile.calibration.data import CalibrationData, Choice, Quality
from opskip_compile.calibration.operator_sets import OperatorId
from opskip_compile.calibration.plots import figure
from opskip_compile.output.plots import drawn
from opskip_compile.schedule.rules import OPERATORS

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem; color: #1a1a1a }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse; margin: .5rem 0; display: block; overflow-x: auto }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap }
th:first-child, td:first-child, th:last-child { text-align: left }
td.spec { white-space: normal; font-family: ui-monospace, monospace; text-align: left }
tr.chosen td { background: #e3f0fa; font-weight: 600 } td.skip { background: #fde8d8 }
code, pre { font-family: ui-monospace, monospace } pre { background: #f5f5f5; padding: .8rem; overflow-x: auto }
svg { max-width: 100%; height: auto }
@media (prefers-color-scheme: dark) { html { filter: invert(.92) hue-rotate(180deg) } }
"""


def render(result: CalibrationData) -> str:
    """The page. Raises as `CalibrationResult.plot`."""
    svg = drawn(lambda: figure(result), ".svg").decode()
    svg = svg[svg.index("<svg") :]
    chosen, spec = result.chosen, result.chosen.schedule.to_spec()
    parts = [
        f"<h1>Schedule {html.escape(spec)}</h1>",
        f"<p>{chosen.cut:.1%} fewer FLOPs: {amount(result.dense_cost, result.unit)} becomes "
        f"{amount(chosen.cost, result.unit)} for a prefill.</p>",
        svg,
        "<h2>Choices</h2>",
        _table(
            ("", "FLOPs cut", f"cost, {result.unit}", "KL, calibration", "KL, held out", "same answer", "schedule"),
            _choices(result),
        ),
        f"<h2>Scores, {html.escape(result.scores.unit)}</h2>",
        _scores(result),
        "<h2>Stability and effort</h2>",
        f"<pre>{html.escape(str(result))}</pre>",
        "<h2>Where it comes from</h2>",
        _table(("field", "value"), [((k, str(v)), "") for k, v in result.about.items()]),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        'img-src data:">'
        f"<title>opskip calibration</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _choices(result: CalibrationData) -> list[tuple[tuple[str, ...], str]]:
    rows = [("calibrated", choice) for choice in result.front]
    if result.chosen.skipped not in {choice.skipped for choice in result.front}:
        rows.append(("calibrated", result.chosen))
    rows.sort(key=lambda row: row[1].cut)
    rows += [(name, choice) for name, choices in result.controls.items() for choice in choices]
    chosen = ("calibrated", result.chosen.skipped)
    return [(_choice(name, choice), "chosen" if (name, choice.skipped) == chosen else "") for name, choice in rows]


def _choice(name: str, choice: Choice) -> tuple[str, ...]:
    judged = choice.judged
    return (
        name,
        f"{choice.cut:.1%}",
        f"{choice.cost:.4g}",
        _divergence(choice.calibration),
        _divergence(choice.heldout),
        "" if judged is None else f"{judged.agreement:.1%}",
        choice.schedule.to_spec(),
    )


def _divergence(quality: Quality | None) -> str:
    return "" if quality is None else f"{quality.divergence:.3g} ± {quality.error:.1g}"


def _scores(result: CalibrationData) -> str:
    rows = []
    kept = result.chosen.kept
    for layer in range(result.num_layers):
        cells = [f"<td>{layer}</td>"]
        for kind in OPERATORS:
            op = OperatorId(layer, kind)
            mark = ' class="skip"' if op in kept else ""
            share = f", keeps {kept[op]:.0%}" if kept.get(op) else ""
            cells.append(f"<td{mark}>{result.scores.values[op]:.3g} ± {result.scores.errors[op]:.1g}{share}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    head = "".join(f"<th>{name}</th>" for name in ("layer", "attention", "FFN"))
    return f"<p>Shaded: skipped.</p><table><tr>{head}</tr>{''.join(rows)}</table>"


def _table(names: Sequence[str], rows: Iterable[tuple[Sequence[Any], str]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    body = []
    for cells, kind in rows:
        *plain, spec = (html.escape(str(cell)) for cell in cells)
        shown = "".join(f"<td>{cell}</td>" for cell in plain)
        body.append(f'<tr class="{kind}">{shown}<td class="spec">{spec}</td></tr>')
    return f"<table><tr>{head}</tr>{''.join(body)}</table>"
