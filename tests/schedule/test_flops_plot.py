"""FLOPs over image sizes: the figures against `count_flops`, and the plot taken apart."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from opskip_compile import Geometry, Schedule, count_flops
from opskip_compile.schedule import flops_plot

pytest.importorskip("matplotlib")

SIZE = Geometry(4, 64, 160, 4, 2, 16)
BOTH = Schedule.from_spec("silent:3 attend:1 transform:0")


def curves(spec: str | Schedule, text: int = 64) -> dict[str, tuple[list[float], list[float]]]:
    """The curves of the figure: gid -> rows and values."""
    made = flops_plot.figure(flops_plot.sweep(SIZE, text, spec), "title")
    lines = [line for axes in made.axes for line in axes.lines if line.get_gid()]
    return {line.get_gid(): (list(line.get_xdata()), list(line.get_ydata())) for line in lines}


@pytest.mark.parametrize("text", [1, 64])
def test_sweep_and_curves_are_count_flops(text: int) -> None:
    want = [count_flops(SIZE, visual_tokens=n, text_tokens=text, schedule=BOTH) for n in flops_plot.SIZES]
    assert flops_plot.sweep(SIZE, text, BOTH) == tuple(want)
    found = curves(BOTH, text)
    assert set(found) == {"cut", "cut-ffn", "cut-attention", "speedup"}
    assert all(rows == [64, 144, 256, 576, 1024, 2048, 2880, 4096, 8192, 16384] for rows, _ in found.values())
    assert found["cut"][1] == pytest.approx([100 * (1 - r.skipped / r.dense) for r in want], rel=1e-12)
    assert found["speedup"][1] == pytest.approx([r.dense / r.skipped for r in want], rel=1e-12)
    for kind in ("ffn", "attention"):
        saved = [sum(op.dense - op.skipped for op in r.operators if op.operator == kind) for r in want]
        assert found[f"cut-{kind}"][1] == pytest.approx(
            [100 * s / r.dense for s, r in zip(saved, want, strict=True)], rel=1e-12
        )


@pytest.mark.parametrize(
    ("spec", "name"), [("none", "total"), ("attend:0-3", "FFN only"), ("transform:1", "attention only")]
)
def test_one_curve_says_whose_it_is(spec: str, name: str) -> None:
    assert set(curves(spec)) == {"cut", "speedup"}
    cut, _ = flops_plot.figure(flops_plot.sweep(SIZE, 64, spec), "title").axes
    assert [text.get_text() for text in cut.texts][-1] == name


def test_labels() -> None:
    reports = flops_plot.sweep(SIZE, 20, BOTH)
    made = flops_plot.figure(reports, "a $model$")
    cut, speed = made.axes
    title = made.get_suptitle()
    assert title == "a $model$"
    words = [text.get_text() for text in cut.texts]
    assert words[:10] == [f"{100 * report.cut:.1f}" for report in reports]
    assert set(words[10:]) == {"total", "FFN", "attention"}
    assert [t.get_text() for t in speed.texts][:10] == [f"{report.ideal_speedup:.2f}x" for report in reports]
    assert (speed.get_xscale(), speed.xaxis.get_transform().base) == ("log", 2)
    assert [label.get_text() for label in speed.get_xticklabels()] == [str(size) for size in flops_plot.SIZES]
    assert "20 text rows" in speed.get_xlabel()
    assert "%" in cut.get_ylabel() and "speed-up" in speed.get_ylabel()


@pytest.mark.parametrize("spec", ["none", "silent:3 attend:1 transform:0", "silent:0-3", "attend:0-3"])
def test_names_do_not_touch(spec: str) -> None:
    made = flops_plot.figure(flops_plot.sweep(SIZE, 64, spec), "title")
    made.draw_without_rendering()
    for axes in made.axes:
        boxes = [text.get_window_extent() for text in axes.texts[10:]]
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
        assert all(box.x1 <= made.bbox.x1 for box in boxes), "inside the picture"


@pytest.mark.parametrize(
    ("suffix", "start"), [(".png", b"\x89PNG\r\n\x1a\n"), (".svg", b"<?xml"), (".pdf", b"%PDF"), (".PNG", b"\x89PNG")]
)
def test_file_is_the_same_every_time(tmp_path: Path, suffix: str, start: bytes) -> None:
    reports = flops_plot.sweep(SIZE, 64, BOTH)
    for name in ("a", "b"):
        flops_plot.save_plot(reports, "title", tmp_path / (name + suffix))
    first, second = ((tmp_path / (name + suffix)).read_bytes() for name in ("a", "b"))
    assert first.startswith(start)
    assert first == second
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["a", "b"], "nothing is left behind"
    flops_plot.save_plot(flops_plot.sweep(SIZE, 64, "none"), "title", tmp_path / ("a" + suffix))
    assert (tmp_path / ("a" + suffix)).read_bytes() != first


def test_png_has_the_size_that_is_promised_whatever_the_user_set(tmp_path: Path) -> None:
    import matplotlib

    reports = flops_plot.sweep(SIZE, 64, BOTH)
    flops_plot.save_plot(reports, "title", tmp_path / "a.png")
    with matplotlib.rc_context({"savefig.dpi": 40, "lines.linewidth": 9, "font.size": 30, "savefig.bbox": "tight"}):
        flops_plot.save_plot(reports, "title", tmp_path / "b.png")
    content = (tmp_path / "a.png").read_bytes()
    assert struct.unpack(">II", content[16:24]) == (1200, 1050)
    assert (tmp_path / "b.png").read_bytes() == content


def test_a_failed_plot_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.png"
    target.write_text("old")

    def broken(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(flops_plot, "_draw_speedup", broken)
    with pytest.raises(RuntimeError):
        flops_plot.save_plot(flops_plot.sweep(SIZE, 64, BOTH), "title", target)
    assert target.read_text() == "old"
