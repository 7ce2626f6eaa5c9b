"""Samples of a calibration: answers behind prompts, rows, and one clear error for each thing that can be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import DynamicCache

from opskip_compile.calibration.batches import prompt_rows, with_answers
from opskip_compile.calibration.divergence_meter import DivergenceMeter
from opskip_compile.calibration.files import FileSamples
from opskip_compile.calibration.journal import Journal
from opskip_compile.calibration.samples import InMemorySamples, Samples
from opskip_compile.demo.samples import DemoSamples
from opskip_compile.errors import OpSkipError, OptionError
from opskip_compile.models.checkpoint import load_checkpoint
from opskip_compile.models.jsonl import read_lines
from opskip_compile.models.packaged.model import DemoEncoder, load_model, load_processor
from opskip_compile.models.prompts import Encoder
from opskip_compile.schedule.left_out import LeftOut
from tests.helpers.checkpoints import TEMPLATE, make_checkpoint
from tests.helpers.families import FAMILIES, IMAGE, UNEVEN, visual_mask
from tests.helpers.planted import samples

LLAVA = FAMILIES["llava"]


def ready(checked: Samples) -> Samples:
    checked.check()
    checked.answer(Journal(None, {}))
    return checked


def test_answers_stand_behind_the_prompts() -> None:
    """Rows that predict a token of the answer: the last of the prompt and all of the answer but its last."""
    inputs = {**LLAVA.inputs(UNEVEN), "mm_token_type_ids": torch.ones(2, 25, dtype=torch.int64)}
    length = inputs["input_ids"].shape[1]
    inputs["mm_token_type_ids"] = torch.ones(2, length, dtype=torch.int64)
    answered, rows = with_answers(inputs, [[7, 8, 9], [6]], pad=0)
    assert answered["input_ids"][:, length:].tolist() == [[7, 8, 9], [6, 0, 0]]
    assert answered["attention_mask"][:, length:].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert answered["mm_token_type_ids"][:, length:].tolist() == [[0] * 3] * 2
    assert answered["pixel_values"] is inputs["pixel_values"]
    assert rows[0].nonzero().flatten().tolist() == [length - 1, length, length + 1]
    assert rows[1].nonzero().flatten().tolist() == [length - 1]


def test_greedy_answers_are_the_models() -> None:
    """Forced through one pass, each answer row predicts what `generate` said."""
    model = LLAVA.build(3)
    answered = ready(InMemorySamples(model, samples("llava", 1), answer_tokens=4))
    batch = answered.batch(0)
    with torch.no_grad():
        logits = model(**batch.inputs).logits[batch.answers]
    logits[:, IMAGE] = -torch.inf  # an answer has no image in it
    assert torch.equal(logits.argmax(-1), batch.predicted)
    assert batch.keep == 5  # the answer and the row before it


def test_labels_are_the_same_as_answers() -> None:
    model, prompts = LLAVA.build(3), samples("llava", 1)
    asked = ready(InMemorySamples(model, prompts, answer_tokens=3)).batch(0)
    labels = torch.where(asked.answers.roll(1, 1), asked.inputs["input_ids"], -100)
    told = ready(InMemorySamples(model, [{**asked.inputs, "labels": labels}]))
    again = told.batch(0)
    assert torch.equal(again.answers, asked.answers)
    assert torch.equal(again.predicted, asked.predicted)
    assert told.items[0].rows == ready(InMemorySamples(model, prompts)).items[0].rows  # FLOPs are those of the prompt
    assert "labels" not in again.inputs


def test_rows_of_prompts() -> None:
    inputs = LLAVA.inputs(UNEVEN)
    visual, mask = visual_mask(inputs), inputs["attention_mask"].bool()
    rows = prompt_rows(visual, mask)
    assert [(r.all, r.visual) for r in rows] == [(24, 16), (41, 32)]
    assert [r.kept(LeftOut()) for r in rows] == [8, 9]
    assert [r.kept(LeftOut("through_visual")) for r in rows] == [5, 3]
    assert [r.kept(LeftOut(keep=0.1)) for r in rows] == [8 + 2, 9 + 4]


def test_split_is_disjoint_and_the_same_for_a_seed() -> None:
    eight = InMemorySamples(LLAVA.build(1), samples("llava", 8))
    eight.check()
    inside, outside = eight.split(0.25, 0)
    assert sorted(inside + outside) == list(range(8))
    assert len(outside) == 2
    assert eight.split(0.25, 0) == (inside, outside)
    assert {eight.split(0.25, seed)[1] for seed in range(6)} != {outside}
    assert eight.split(0, 0) == (tuple(range(8)), ())
    with pytest.raises(OpSkipError, match="samples: 1 given, of which 1 would be held out"):
        one = InMemorySamples(LLAVA.build(1), samples("llava", 1))
        one.check()
        one.split(0.1, 0)


def test_digest_is_that_of_the_content() -> None:
    model = LLAVA.build(1)

    def digest(prompts: list[Any]) -> str:
        in_memory = InMemorySamples(model, prompts)
        in_memory.check()
        return in_memory.digest

    same, other = samples("llava", 2), samples("llava", 2)
    assert digest(same) == digest(other)
    other[1]["pixel_values"] = other[1]["pixel_values"] + 1
    assert digest(same) != digest(other)
    assert digest(same) != digest(same[::-1])


def test_samples_can_be_used_again() -> None:
    """For another budget, say: nothing is counted twice."""
    in_memory = InMemorySamples(LLAVA.build(1), samples("llava", 2))
    in_memory.check()
    before = in_memory.digest, in_memory.count
    in_memory.check()
    assert (in_memory.digest, in_memory.count) == before == (in_memory.digest, 4)


def changed(**more: Any) -> dict[str, Any]:
    return {**LLAVA.inputs(), **more}


TEXT = {"input_ids": torch.tensor([[3, 4, 5]])}
PADDED_RIGHT = torch.tensor([[1] * 23 + [0]])


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ([], "samples: there are none"),
        (None, "samples: expected a list of processor outputs or a file, got a NoneType"),
        ([changed(), 3], r"samples\[1\]: expected the mapping that a processor returns, got a int"),
        ([{}], r"samples\[0\]: input_ids: expected integers of shape \(batch, sequence\)"),
        ([{"input_ids": torch.zeros(1, 0, dtype=torch.long)}], r"samples\[0\]: input_ids: the prompt is empty"),
        ([changed(), TEXT], r"samples\[1\]: the prompt has no visual rows"),
        ([changed(attention_mask=torch.ones(1, 3))], r"samples\[0\]: attention_mask: expected the shape of input_ids"),
        ([changed(attention_mask=PADDED_RIGHT)], r"samples\[0\]: attention_mask: .* padded on the left"),
        ([changed(position_ids=torch.zeros(1, 24))], r"samples\[0\]: position_ids: can't be used here"),
        ([changed(cache=DynamicCache())], r"samples\[0\]: cache: can't be used here"),
        ([changed(past_key_values=DynamicCache())], r"samples\[0\]: past_key_values: can't be used here"),
        ([changed(labels=torch.zeros(1, 3))], r"samples\[0\]: labels: expected the shape of input_ids"),
        ([changed(labels=torch.full((1, 24), -100))], r"samples\[0\]: labels: an element has no answer"),
    ],
)
def test_a_bad_sample_is_named_before_the_model_runs(prompt: Any, said: str) -> None:
    model = LLAVA.build(1)
    model.register_forward_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(OpSkipError, match=said):
        InMemorySamples(model, prompt).check()


def test_a_model_without_an_image_token() -> None:
    model = LLAVA.build(1)
    model.config.image_token_id = None
    with pytest.raises(OpSkipError, match="model: the config of LlavaForConditionalGeneration names no image token"):
        InMemorySamples(model, samples("llava", 1))


@pytest.mark.parametrize("answered", [False, True])
def test_logits_that_are_not_finite_are_named(answered: bool) -> None:
    model = LLAVA.build(2)
    with torch.no_grad():
        model.lm_head.weight[5] = torch.nan
    prompts = samples("llava", 2, ((3, 5),))
    if answered:
        for inputs in prompts:
            inputs["labels"] = torch.where(torch.arange(24) > 20, inputs["input_ids"], -100)
    in_memory = InMemorySamples(model, prompts)
    in_memory.check()
    with pytest.raises(OpSkipError, match=r"samples\[0\]: the (dense )?model's logits are not finite"):
        in_memory.answer(Journal(None, {}))
        DivergenceMeter(model, in_memory, Journal(None, {})).measure([frozenset()], [0, 1])


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for i in range(3):
        Image.new("RGB", (16, 16), (80 * i, 40, 200)).save(tmp_path / f"{i}.png")
    return tmp_path


def lines(folder: Path, *entries: Any) -> Path:
    file = folder / "data.jsonl"
    file.write_text("\n".join(e if isinstance(e, str) else json.dumps(e) for e in entries) + "\n")
    return file


GOOD = {"image": "0.png", "prompt": "what is this"}


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: expected an object with image or audio, prompt and perhaps answer"),
        ({"prompt": "what"}, "line 2: image: expected a path"),
        ({**GOOD, "image": 3}, "line 2: image: expected a path"),
        ({"images": [], "prompt": "what"}, "line 2: image: expected a path"),
        ({**GOOD, "images": ["0.png"]}, "line 2: image, images: expected one of them, not both"),
        ({**GOOD, "image": "gone.png"}, "line 2: image: there is no file '.*gone.png'"),
        ({"image": "0.png"}, "line 2: prompt: expected some text"),
        ({**GOOD, "prompt": "  "}, "line 2: prompt: expected some text"),
        ({**GOOD, "answer": ""}, "line 2: answer: expected some text, a list of texts, or no such field"),
        ({**GOOD, "answer": []}, "line 2: answer: expected some text, a list of texts, or no such field"),
        ({**GOOD, "answer": ["a", None]}, "line 2: answer: expected some text, a list of texts, or no such field"),
        ({**GOOD, "task": " "}, "line 2: task: expected a name, or no such field"),
    ],
)
def test_a_bad_line_is_named(bad: Any, said: str, pictures: Path) -> None:
    with pytest.raises(OpSkipError, match=r"^data.jsonl, " + said):
        read_lines(lines(pictures, GOOD, bad))


def test_a_picture_that_is_none_is_named(pictures: Path) -> None:
    (pictures / "1.png").write_text("no picture")
    from_file = FileSamples(
        load_model(), lines(pictures, GOOD, {**GOOD, "image": "1.png"}), DemoEncoder(load_processor())
    )
    with pytest.raises(OpSkipError, match=r"^data.jsonl, line 2: image: cannot read the image "):
        from_file.check()


def test_files(pictures: Path) -> None:
    with pytest.raises(OpSkipError, match=r"data: '.*gone' can't be read: No such file"):
        read_lines(pictures / "gone")
    with pytest.raises(OpSkipError, match=r"data: '.*data.jsonl' holds no samples"):
        read_lines(lines(pictures, "", "  "))
    more = {"images": ["1.png", "2.png"], "prompt": "what is this", "answer": ["a", "b"], "task": "x"}
    read = read_lines(lines(pictures, GOOD, "", more))
    assert [line.name for line in read] == ["data.jsonl, line 1", "data.jsonl, line 3"]
    assert read[1].images == (pictures / "1.png", pictures / "2.png")
    assert (read[0].answer, read[0].task) == (None, "data")
    assert (read[1].answer, read[1].answers, read[1].task) == ("a", ("a", "b"), "x")


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_lines_through_a_processor(
    template: str | None, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A batch is what its lines are alone, padded on the left; answers that are given are taken."""
    model, processor = load_checkpoint(make_checkpoint(tmp_path_factory.mktemp("model"), template))
    file = lines(
        pictures,
        {**GOOD, "answer": "this is"},
        {"image": "1.png", "prompt": "what"},
        {"images": ["1.png", "2.png"], "prompt": "is this what", "answer": "what"},
    )
    together, alone = (ready(FileSamples(model, file, Encoder.of(processor), batch=n)) for n in (3, 1))
    assert [len(s.items) for s in (together, alone)] == [1, 3]
    assert [row for item in together.items for row in item.rows] == [row for item in alone.items for row in item.rows]
    batch = together.batch(0)
    assert batch.inputs["pixel_values"].shape[0] == 4
    assert batch.inputs["pixel_values"].dtype == model.dtype
    for i, counts in enumerate((2, None, 1)):
        one = alone.batch(i)
        mask, unpadded = batch.inputs["attention_mask"][i].bool(), one.inputs["attention_mask"][0].bool()
        assert torch.equal(batch.inputs["input_ids"][i][mask], one.inputs["input_ids"][0][unpadded])
        assert counts is None or int(one.answers.sum()) == counts


def test_lines_are_spread_evenly_under_a_limit(pictures: Path) -> None:
    file = lines(pictures, *[{**GOOD, "prompt": f"what {i}"} for i in range(10)])
    from_file = FileSamples(load_model(), file, DemoEncoder(load_processor()), limit=5)
    assert [line.prompt for line in from_file.lines] == [f"what {i}" for i in (0, 2, 4, 6, 8)]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda f: FileSamples(load_model(), f, DemoEncoder(load_processor()), batch=0), "batch: expected an integer"),
        (
            lambda f: Encoder.of(object()),
            "processor: expected one of transformers for images or audio, and text",
        ),
        (lambda f: DemoSamples(load_model(), load_processor(), 0), "limit: expected 1 to "),
    ],
)
def test_bad_options(make: Callable[[Path], Any], said: str, pictures: Path) -> None:
    with pytest.raises(OptionError, match=said):
        make(lines(pictures, GOOD))


def test_what_the_processor_refuses_is_named(pictures: Path) -> None:
    file = lines(pictures, {"images": ["0.png", "1.png"], "prompt": "what"})
    with pytest.raises(OpSkipError, match=r"data.jsonl, line 1: the processor refuses it: image: the demo model takes"):
        FileSamples(load_model(), file, DemoEncoder(load_processor())).check()


def test_the_demos_own_samples() -> None:
    of_demo = DemoSamples(load_model(), load_processor(), 20, seed=1)
    of_demo.check()
    assert of_demo.count == 20
    assert [len(item.names) for item in of_demo.items] == [2] * 10
    assert len({question.image_id for question in of_demo.questions}) == 20


def test_journal_goes_on_behind_a_torn_line(tmp_path: Path) -> None:
    file, about = tmp_path / "journal", {"model": "a", "n": 1}
    journal = Journal(file, about)
    journal.put("none", 0, [[0.1, 0.25]])
    journal.put("none", 1, [[1e-17]])
    journal.close()
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"key": "none", "it')
    again = Journal(file, about)
    assert again.get("none", 0) == [[0.1, 0.25]]
    assert again.get("none", 1) == [[1e-17]]
    assert again.get("none", 2) is None
    again.put("x", 2, 3)
    again.close()
    assert file.read_bytes() == whole + b'{"key": "x", "item": 2, "value": 3}\n'


def test_journal_of_something_else_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "journal"
    Journal(file, {"model": "a", "data": "b"}).close()
    with pytest.raises(OpSkipError, match="was written with data 'b', this run has 'c'; use another file"):
        Journal(file, {"model": "a", "data": "c"})
    file.write_text("hello\n")
    with pytest.raises(OpSkipError, match="line 1: not written by this package"):
        Journal(file, {"model": "a"})
    with pytest.raises(OpSkipError, match=r"resume: '.*gone/journal': No such file"):
        Journal(tmp_path / "gone" / "journal", {})
    assert file.read_text() == "hello\n"
