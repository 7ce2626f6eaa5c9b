"""The document study: what is asked, how rows are left out, and that compiled code leaves the same rows out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import opskip_compile as opskip
from benchmarks import documents
from benchmarks.documents import FACT_ROWS, FACTS, ROWS, answers, batch, build, looking_away, reading, right
from opskip_compile.models.oracle import oracle

SPEC = "silent:2-3 attend:1"


@pytest.fixture(scope="module")
def model():  # type: ignore[no-untyped-def]
    found = build(4, 32).eval()
    with torch.no_grad():
        for name, weight in found.named_parameters():
            if "layers" in name and weight.dim() == 2:
                weight.mul_(6)
    return found


def test_a_question_has_one_answer_in_its_document() -> None:
    for index in range(40):
        each = reading("test", index)
        assert len(each.document) == ROWS == 1 + FACTS * FACT_ROWS
        facts = [tuple(each.document[i : i + FACT_ROWS]) for i in range(1, ROWS, FACT_ROWS)]
        asked, answer = tuple(each.question[1:3]), tuple(each.answer[:2])
        ends = (4, 6) if each.kind == "who" else (0, 3)
        pairs = [(fact[4:6], (fact[0], fact[2])) for fact in facts]
        if each.kind == "what":
            pairs = [(value, key) for key, value in pairs]
        assert [value for key, value in pairs if key == asked] == [answer], ends
    assert {reading("test", i).kind for i in range(20)} == {"what", "who"}
    assert reading("train", 3) != reading("test", 3) == reading("test", 3)


def test_targets_stand_before_their_tokens() -> None:
    ids, targets = batch(0, 5, FACTS)
    wanted = targets != -100
    assert torch.equal(ids[:, 1:][wanted[:, :-1]], targets[wanted])
    assert not wanted[:, : ROWS + 3].any()
    assert wanted.sum(1).tolist() == [documents.SHOWN * 3] * documents.BATCH


def test_rows_of_a_document_can_be_named_in_compiled_code(model) -> None:  # type: ignore[no-untyped-def]
    """`mark_visual` takes any rows, and a text model: the oracle's logits and answers, by `compile` and `generate`."""
    torch._dynamo.reset()
    asked, schedule = [reading("test", i) for i in range(3)], opskip.Schedule.from_spec(SPEC)
    ids = torch.tensor([[*each.document, *each.question] for each in asked])
    rows = torch.zeros_like(ids, dtype=torch.bool)
    rows[:, :ROWS] = True
    with torch.no_grad():
        dense = model(input_ids=ids).logits[:, ROWS:]
        with oracle(model, schedule, rows):
            expected = model(input_ids=ids).logits[:, ROWS:]
        said = answers(model, asked, schedule, size=2)
        opskip.compile(model, schedule, options={"lower": "eager"})
        embedded = model.get_input_embeddings()(ids)
        opskip.mark_visual(embedded, rows)
        result = model(inputs_embeds=embedded, use_cache=False).logits[:, ROWS:]
        assert opskip.last_report().rewritten
        embedded = model.get_input_embeddings()(ids)
        opskip.mark_visual(embedded, rows)
        mask = torch.ones_like(ids)
        told = model.generate(inputs_embeds=embedded, attention_mask=mask, max_new_tokens=3, do_sample=False)
        opskip.remove(model)
    assert torch.allclose(result, expected, atol=1e-5)
    assert not torch.allclose(expected, dense, atol=1e-3)
    assert told.tolist() == said


def test_dropped_rows_are_as_if_they_were_not_there(model) -> None:  # type: ignore[no-untyped-def]
    """From layer 0 on: a prompt of the question alone, at its old positions, and its answer after that."""
    each = reading("test", 0)
    ids = torch.tensor([each.document + each.question])
    with torch.no_grad():
        places = torch.arange(ids.shape[1])[None]
        alone = model(input_ids=ids[:, ROWS:], position_ids=places[:, ROWS:]).logits
        with looking_away(model, 0, ROWS):
            whole = model(input_ids=ids).logits[:, ROWS:]
            (said,) = answers(model, [each], None)
        assert torch.allclose(whole, alone, atol=1e-5)
        tokens = ids[:, ROWS:]
        for token in said:
            places = torch.arange(ROWS, ROWS + tokens.shape[1])[None]
            assert int(model(input_ids=tokens, position_ids=places).logits[0, -1].argmax()) == token
            tokens = torch.cat([tokens, torch.tensor([[token]])], 1)
        assert not torch.allclose(model(input_ids=ids).logits[:, ROWS:], whole, atol=1e-3)


def test_an_answer_is_right_up_to_its_end() -> None:
    asked = [reading("test", i) for i in range(3)]
    said = [asked[0].answer, [*asked[1].answer[:1], 9, 1], [*asked[2].answer, 5]]
    assert right(said, asked) == [1, 0, 1]


def test_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "LAYERS", 2)
    monkeypatch.setattr(documents, "build", lambda: build(2, 32))
    documents.main(["--steps", "2", "--limit", "4", "--work", str(tmp_path / "work"), "--results", str(tmp_path)])
    found = json.loads((tmp_path / "documents.json").read_text(encoding="utf-8"))
    assert [(row["family"], row["from_layer"]) for row in found["results"]] == [
        ("dense", None),
        *((family, layer) for layer in (1, 0) for family in ("FFN", "attention", "both", "dropped")),
    ]
    cuts = {(row["family"], row["from_layer"]): row["flops_cut"] for row in found["results"]}
    assert cuts["FFN", 1] + cuts["attention", 1] == pytest.approx(cuts["both", 1], abs=1e-5)
    assert cuts["both", 1] < cuts["dropped", 1] < 0.5 < cuts["dropped", 0] < 1
    assert found["log"][-1]["step"] == 1
