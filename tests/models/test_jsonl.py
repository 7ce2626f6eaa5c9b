"""JSONL as people's tools write it: what is read, and what is refused with file, line and field."""

from __future__ import annotations

import base64
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("PIL.Image")

from PIL import Image

from opskip_compile.calibration.files import FileSamples
from opskip_compile.errors import OpSkipError
from opskip_compile.evaluation.questions import checked_lines, task_rows
from opskip_compile.models.images import load_image
from opskip_compile.models.jsonl import encode, read_lines
from opskip_compile.models.packaged.model import DemoEncoder, load_model, load_processor
from tests.helpers.commands import call, one_line
from tests.helpers.web import Pages, served

GOOD = {"image": "red.png", "prompt": "what is the color of the shape?"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (16, 16), (200, 30, 10)).save(tmp_path / "red.png")
    return tmp_path


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pages]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with served() as pages:
        yield pages


def written(folder: Path, content: str | bytes | list[Any]) -> Path:
    file = folder / "data.jsonl"
    text = "\n".join(map(json.dumps, content)) if isinstance(content, list) else content
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def refused(folder: Path, content: str | bytes | list[Any]) -> str:
    with pytest.raises(OpSkipError) as caught:
        read_lines(written(folder, content))
    return str(caught.value)


def test_byte_order_mark_blank_lines_and_line_ends(folder: Path) -> None:
    """As Notepad and Excel write them."""
    line = json.dumps(GOOD).encode()
    plain = read_lines(written(folder, line))
    assert read_lines(written(folder, b"\xef\xbb\xbf" + line)) == plain
    found = read_lines(written(folder, b"\xef\xbb\xbf" + line + b"\r\n\r\n  \r\n" + line + b"\r\n\r\n"))
    assert [each.name for each in found] == ["data.jsonl, line 1", "data.jsonl, line 4"]
    assert {each.prompt for each in found} == {GOOD["prompt"]}


def test_only_line_feeds_end_a_line(folder: Path) -> None:
    """JSON allows Unicode's other line ends inside of text, and json.dumps(ensure_ascii=False) writes them so."""
    prompt = "what\u2028is\u0085this\u2029?"
    found = read_lines(written(folder, json.dumps({**GOOD, "prompt": prompt}, ensure_ascii=False)))
    assert [line.prompt for line in found] == [prompt]


@pytest.mark.parametrize(
    ("answer", "want"),
    [
        ("7", ("7",)),
        ("0", ("0",)),
        ("-3", ("-3",)),
        ("2.50", ("2.50",)),
        ("1e3", ("1e3",)),
        ("12345678901234567890123", ("12345678901234567890123",)),
        ('[3, "three", 3.0]', ("3", "three", "3.0")),
        ("null", ()),
        ('"true"', ("true",)),
    ],
)
def test_numbers_are_answers_as_they_are_written(answer: str, want: tuple[str, ...], folder: Path) -> None:
    line = json.dumps(GOOD)[:-1] + f', "answer": {answer}}}'
    assert read_lines(written(folder, line))[0].answers == want


@pytest.mark.parametrize("answer", ["true", "false", '["yes", true]'])
def test_true_and_false_are_no_answers(answer: str, folder: Path) -> None:
    said = refused(folder, json.dumps(GOOD)[:-1] + f', "answer": {answer}}}')
    assert said == "data.jsonl, line 1: answer: expected text: the word that is right in place of true or false"


@pytest.mark.parametrize("answer", ["NaN", "Infinity", "{}", "[]", "[null]", '[["a"]]', '" "', '[1, ""]'])
def test_other_answers_are_refused(answer: str, folder: Path) -> None:
    said = refused(folder, json.dumps(GOOD)[:-1] + f', "answer": {answer}}}')
    assert said.startswith("data.jsonl, line 1: ") and ("answer: expected some text" in said or "is not JSON" in said)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({**GOOD, "images": ["red.png"]}, "image, images: expected one of them, not both"),
        ({**GOOD, "images": []}, "image, images: expected one of them, not both"),
        ({"image": ["red.png", 3], "prompt": "a"}, "image: expected a path or URL, or images: a list of them"),
        ({"image": 3, "prompt": "a"}, "image: expected a path or URL, or images: a list of them"),
        ({"image": None, "images": None, "prompt": "a"}, "image: expected a path or URL, or images: a list of them"),
        ({**GOOD, "image": "."}, "image: 'FOLDER' is a folder"),
        ({**GOOD, "image": "gone.png"}, "image: there is no file 'FOLDER/gone.png'"),
        ({**GOOD, "image": "A" * 5000}, f"image: no path, URL or data URI: '{'A' * 40}'...: File name too long"),
        ({**GOOD, "image": "data:image/png;base64,?"}, "image: cannot read 'data:image/png;base64,?': not base64"),
        ({**GOOD, "image": "s3://a/b.png"}, "image: cannot read 's3://a/b.png': only files, http, https and data"),
        ({**GOOD, "prompt": 5}, "prompt: expected some text"),
        ({**GOOD, "task": 5}, "task: expected a name, or no such field"),
    ],
)
def test_a_bad_field_is_named(entry: Any, said: str, folder: Path) -> None:
    assert refused(folder, [GOOD, entry]).startswith("data.jsonl, line 2: " + said.replace("FOLDER", str(folder)))


def test_null_is_no_field(folder: Path) -> None:
    """What exporters of tables write where a column has no value."""
    first, second = read_lines(
        written(folder, [{**GOOD, "images": None, "answer": None}, {**GOOD, "image": None, "images": ["red.png"] * 2}])
    )
    assert (len(first.images), len(second.images)) == (1, 2)


def test_files_that_are_none(folder: Path) -> None:
    for content in (b"", b"\xef\xbb\xbf", b"\n \r\n\t\n"):
        assert refused(folder, content) == f"data: {str(folder / 'data.jsonl')!r} holds no samples"
    latin = json.dumps(GOOD).encode() + b'\n{"image": "red.png", "prompt": "caf\xe9"}'
    said = f"data: {str(folder / 'data.jsonl')!r} is not UTF-8: line 2: "
    assert refused(folder, latin).startswith(said)
    assert "is not UTF-8: line 1: " in refused(folder, json.dumps(GOOD).encode("utf-16"))
    with pytest.raises(OpSkipError, match=f"data: '{folder}' can't be read: Is a directory"):
        read_lines(folder)
    assert "line 1: not JSON" in refused(folder, "[" * 100_000)


def test_images_by_url_and_data_uri(web: Pages, folder: Path) -> None:
    """The same inputs and samples as by a file, and each URL is asked for once."""
    content = (folder / "red.png").read_bytes()
    web.content["/a/red.png"] = content
    sources = ["red.png", web.url("/a/red.png"), "data:image/png;base64," + base64.b64encode(content).decode()]
    lines = read_lines(written(folder, [{**GOOD, "image": source, "answer": "red"} for source in sources]))
    assert not web.asked, "reading the file downloads nothing"
    assert lines[1].images == (sources[1],)
    encoder = DemoEncoder(load_processor())
    pixels = [encode([line], encoder)["pixel_values"] for line in lines]
    assert all(bool((each == pixels[0]).all()) for each in pixels)
    samples = FileSamples(load_model(), lines, encoder)
    samples.check()
    assert len({item.digest for item in samples.items}) == 1
    assert web.asked == ["/a/red.png"]
    assert [line.name for line in checked_lines(lines, "data", None, answered=True)] == [line.name for line in lines]
    assert task_rows(lines)["data"].groups == (0, 1, 2)
    with pytest.raises(OpSkipError, match=r"data.jsonl, line 1: the same pictures and prompt are in data too"):
        checked_lines(lines[:1], "calibration", None, unlike=lines[1:])


def test_a_url_that_fails_is_named_with_its_line(web: Pages, folder: Path) -> None:
    gone = web.url("/b//gone.png?x=1")
    lines = read_lines(written(folder, [GOOD, {**GOOD, "image": gone}]))
    said = f"data.jsonl, line 2: image: cannot download {gone!r}: the server says 404 Not Found"
    with pytest.raises(OpSkipError) as caught:
        FileSamples(load_model(), lines, DemoEncoder(load_processor())).check()
    assert str(caught.value) == said
    with pytest.raises(OpSkipError) as caught:
        checked_lines(lines, "data", None, unlike=[*lines[:1], *lines[1:]])
    assert str(caught.value) == said


def test_the_command_reads_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("nothing is to be downloaded")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    line = json.dumps({**GOOD, "images": [os.fspath(folder / "red.png")]})
    data = written(folder, b"\xef\xbb\xbf" + line.encode())
    for command in ("calibrate", "diagnose", "eval"):
        found = one_line(call(command, "--model", "x", "--data", data))
        assert found == "data.jsonl, line 1: image, images: expected one of them, not both"


def test_downloads_go_with_the_process(web: Pages, folder: Path) -> None:
    from opskip_compile.models.downloads import downloaded

    web.content["/red.png"] = (folder / "red.png").read_bytes()
    file = downloaded(web.url("/red.png"))
    assert file.is_file() and load_image(web.url("/red.png")).size == (16, 16)
    assert file.parent.name.startswith("opskip-images-")
