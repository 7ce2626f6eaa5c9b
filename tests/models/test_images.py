"""Pictures: every kind of file that people have, the web, data URIs, and what is said of what can't be read."""

from __future__ import annotations

import base64
import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("PIL.Image")
pytest.importorskip("numpy")

import numpy as np
from PIL import Image

from opskip_compile.errors import OpSkipError
from opskip_compile.models import downloads
from opskip_compile.models.images import content_of, load_image, open_image
from tests.helpers.commands import call, one_line
from tests.helpers.web import Pages, served

RED = (200, 30, 10)


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pages]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with served() as pages:
        yield pages


def red(folder: Path, name: str = "red.png", **how: Any) -> Path:
    Image.new("RGB", (8, 6), RED).save(folder / name, **how)
    return folder / name


def corner(image: Any) -> tuple[int, ...]:
    assert image.mode == "RGB"
    return tuple(image.getpixel((0, 0)))


def test_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    """Conversion alone cuts every value off at 255: a white picture, without a word."""
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "grey.png")
    found = np.asarray(load_image(tmp_path / "grey.png"))
    assert (found[..., 0] == values >> 8).all() and (found[..., 1] == found[..., 2]).all()
    for mode in ("I", "F"):
        Image.new(mode, (4, 4), 300).save(tmp_path / "range.tiff")
        with pytest.raises(OpSkipError, match=rf"range.tiff: its values have no fixed range \(mode {mode}\)"):
            load_image(tmp_path / "range.tiff")


def test_modes(tmp_path: Path) -> None:
    """Also without a word of Pillow's."""
    for mode, colour, want in (
        ("L", 90, (90, 90, 90)),
        ("LA", (90, 0), (90, 90, 90)),
        ("RGBA", (*RED, 0), RED),
        ("1", 1, (255, 255, 255)),
    ):
        Image.new(mode, (4, 4), colour).save(tmp_path / f"{mode}.png")
        assert corner(load_image(tmp_path / f"{mode}.png")) == want
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.tiff")
    assert corner(load_image(tmp_path / "cmyk.tiff")) == (255, 0, 0)
    palette = Image.new("RGB", (4, 4), RED).quantize(4)
    palette.save(tmp_path / "palette.png", transparency=bytes([0, 9, 9, 9]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert corner(load_image(tmp_path / "palette.png")) == RED


def test_an_animation_is_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, (0, 0, 255))]
    for name in ("a.gif", "a.png", "a.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        assert max(abs(a - b) for a, b in zip(corner(load_image(tmp_path / name)), RED, strict=True)) <= 8


def test_a_photograph_is_upright(tmp_path: Path) -> None:
    """As transformers loads it: cameras write how they were held."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right to see it upright
    picture = Image.new("RGB", (16, 8), RED)
    picture.save(tmp_path / "held.jpg", exif=exif)
    assert load_image(tmp_path / "held.jpg").size == (8, 16)


def test_what_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").touch()
    for name in ("cut.png", "cut.jpg", "cut.webp", "cut.gif"):
        Image.effect_noise((64, 64), 90).convert("RGB").save(tmp_path / name)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:900])
    (tmp_path / "folder.png").mkdir()
    for name, why in (
        ("text.png", "cannot identify image file"),
        ("empty.png", "cannot identify image file"),
        ("cut.png", "image file is truncated.*"),
        ("cut.jpg", "image file is truncated.*"),
        ("cut.webp", ".+"),
        ("cut.gif", ".+"),
        ("folder.png", "Is a directory"),
        ("gone.png", "No such file or directory"),
    ):
        with pytest.raises(OpSkipError, match=rf"^image: cannot read the image {tmp_path / name}: {why}$"):
            open_image(tmp_path / name)


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    """Of 13,000 x 13,000: Pillow warns of it, and takes 2.7 GB. Of 20,000 x 20,000: Pillow's own refusal."""
    for side, started in ((13_000, time.monotonic()), (20_000, time.monotonic())):
        file = tmp_path / f"{side}.png"
        Image.new("1", (side, side)).save(file)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            said = "it has more than 89,478,485 pixels"
            with pytest.raises(OpSkipError, match=rf"^image: cannot read the image {file}: {said}"):
                open_image(file)
        assert time.monotonic() - started < 10
    file = tmp_path / "13000.png"
    found = one_line(call("inspect", "tiny-llava", "--image", file))
    assert found.startswith(f"image: cannot read the image {file}: {said}")


def test_the_limit_is_that_of_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = red(tmp_path)
    filters = list(warnings.filters)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 47)
    with pytest.raises(OpSkipError, match="more than 47 pixels"):
        load_image(file)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert corner(load_image(file)) == RED
    assert warnings.filters == filters


@pytest.mark.parametrize("head", ["data:image/png;base64,", "DATA:;base64,", "data:image/png;charset=x;base64,"])
def test_data_uris(head: str, tmp_path: Path) -> None:
    content = red(tmp_path).read_bytes()
    uri = head + base64.b64encode(content).decode()
    assert corner(load_image(uri)) == RED
    assert content_of(uri) == content == content_of(tmp_path / "red.png")


def test_a_data_uri_without_base64(tmp_path: Path) -> None:
    content = red(tmp_path).read_bytes()
    assert corner(load_image("data:image/png," + "".join(f"%{byte:02x}" for byte in content))) == RED


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("data:image/png;base64", "a data URI has a comma before its content"),
        ("data:image/png;base64,a*b", "not base64: "),
        ("data:image/png;base64," + "A" * 99, "not base64: "),
        ("data:image/png;base64,AAAA", "cannot identify image file"),
        ("data:image/png;base64," + "A" * 400, "cannot identify image file"),
    ],
)
def test_bad_data_uris(uri: str, why: str) -> None:
    with pytest.raises(OpSkipError) as caught:
        open_image(uri)
    said = str(caught.value)
    assert why in said and said.startswith("image: cannot read ") and len(said) < 200
    assert uri[:30] in said


def test_urls(web: Pages, tmp_path: Path) -> None:
    web.content["/red.png"] = red(tmp_path).read_bytes()
    assert corner(load_image(web.url("/red.png"))) == RED
    assert corner(load_image(web.url("/to/red.png"))) == RED
    assert content_of(web.url("/red.png")) == web.content["/red.png"]
    assert web.asked == ["/red.png", "/to/red.png", "/red.png"], "each URL once"
    web.content["/r%C3%B6t%20%231.png?size=x&y=2"] = web.content["/red.png"]
    assert corner(load_image(web.url("/röt %231.png?size=x&y=2"))) == RED


def test_urls_that_can_not_be_read_stay_whole(web: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    web.content["/page.png"] = b"<!doctype html>"
    monkeypatch.setattr(downloads, "MOST_BYTES", 3 << 20)
    monkeypatch.setattr(downloads, "PATIENCE", 0.3)
    monkeypatch.setattr(downloads, "DEADLINE", 0.4)
    for path, why in (
        ("/page.png", "cannot identify image file"),
        ("/gone.png?a=b", "the server says 404 Not Found"),
        ("/endless", "more than 3 MiB"),
        ("/silent", "timed out"),
        ("/trickle", "not there after 0 s"),
        ("/cut", "cut off, 4 bytes are missing"),
    ):
        started = time.monotonic()
        with pytest.raises(OpSkipError) as caught:
            open_image(web.url(path))
        assert web.url(path) in str(caught.value) and why in str(caught.value)
        assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("http://127.0.0.1:9/red.png", "Connection refused"),
        ("http://[broken/red.png", "cannot download 'http://"),
        ("https://", "cannot download 'https://'"),
        ("ftp://example.com/red.png", "only files, http, https and data URIs are read"),
        ("file:///red.png", "only files, http, https and data URIs are read"),
        ("s3://bucket/red.png", "only files, http, https and data URIs are read"),
    ],
)
def test_other_uris(uri: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(OpSkipError) as caught:
        open_image(uri)
    assert why in str(caught.value) and uri in str(caught.value)


def test_a_url_on_the_command_line(web: Pages, tmp_path: Path) -> None:
    web.content["/red.png"] = red(tmp_path).read_bytes()
    shown = call("inspect", "tiny-llava", "--image", web.url("/red.png"), "--schedule", "silent:3", "--json")
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["report"]["prompt"]["visual"] == [16]
    gone = web.url("/gone.png")
    found = one_line(call("inspect", "tiny-llava", "--image", gone))
    assert found == f"image: cannot download {gone!r}: the server says 404 Not Found"
