"""The training recipe of the VQA suite: packing, training steps, resuming, exporting."""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("easy_vqa")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from PIL import Image

from benchmarks.vqa import accuracy, architectures, curves, learning, mixing, muon, recipe, train
from benchmarks.vqa.architectures import FAMILIES, Kit
from benchmarks.vqa.draw import recording
from benchmarks.vqa.packing import pack
from benchmarks.vqa.starting import load_weights
from benchmarks.vqa.tasks import TASKS
from opskip_compile.schedule.schedule import Schedule

EVERY_FAMILY = pytest.mark.parametrize("name", list(FAMILIES))


def small(name: str, depth: int = 2) -> Kit:
    """The architecture with fewer layers and half of its width."""
    kit = architectures.load(name)
    text = {**kit.settings["text_config"], "num_hidden_layers": depth, "hidden_size": 64, "intermediate_size": 96}
    ours = {"taps": [0, 1], "pointing_layer": 1}
    vision = {**kit.settings["vision_config"]}
    vision |= {"out_hidden_size": 64} if "out_hidden_size" in vision else {"num_hidden_layers": 1}
    return dataclasses.replace(kit, settings={**kit.settings, "text_config": text, "vision_config": vision, **ours})


def options(work: Path, **given: Any) -> argparse.Namespace:
    """The options of a short run."""
    found = train.parse(["--work", str(work), "--no-compile", "--steps", "4", "--batch", "1", "--warmup", "1"])
    changes = {"evaluate_questions": 1, "cooldown": 1, "rows": 200, "checkpoint_seconds": 1e9, **given}
    return argparse.Namespace(**{**vars(found), **changes})


def test_held_out_questions_are_kept_apart() -> None:
    rng = random.Random(0)
    assert not set(mixing._easy_indices(True)) & set(mixing._easy_indices(False))
    drawn = [mixing.index("charts", rng) for _ in range(200)]
    kept = [mixing.index("charts", rng, apart=True) for _ in range(200)]
    assert max(drawn) < 1_000_000 - mixing.KEPT_APART <= min(kept)


@EVERY_FAMILY
def test_answers_are_tokens_or_letters(name: str) -> None:
    kit = architectures.load(name)
    for text in ("orange", "spoon", "91", "100"):
        for spelled in (False, True):
            ids = kit.answer(text, spelled)
            assert kit.tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len(kit.answer("orange", False)) == 2 and len(kit.answer("orange", True)) == 7
    for task in TASKS.values():
        for index in range(30):
            assert kit.tokenizer.unk_token_id not in kit.question(task.example("test", index).question)


@EVERY_FAMILY
@torch.no_grad()
def test_packed_rows_compute_what_a_prompt_of_its_own_does(name: str) -> None:
    kit = small(name)
    model = kit.model().eval()
    for task in ("words", mixing.PAIRS):
        sample = mixing.draw(task, kit, random.Random(1), 4)
        packed = pack([sample], kit, 360)
        alone = []
        for prompt, answer, _ in sample.asked:
            ids = torch.tensor([[*kit.block() * len(sample.pictures), *prompt, *answer[:-1]]])
            pixels = kit.image_processor([Image.fromarray(p) for p in sample.pictures], return_tensors="pt")
            inputs = {key: pixels[key] for key in ("pixel_values", "image_grid_thw") if key in pixels}
            if kit.family.two_axes:
                inputs["mm_token_type_ids"] = (ids == kit.ids(kit.family.image)[0]).to(torch.int64)
            alone.append(model(input_ids=ids, **inputs).logits[0, -len(answer) :])
        torch.testing.assert_close(learning.answer_logits(model, packed), torch.cat(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_muon_makes_updates_orthogonal(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(muon.orthogonal(torch.randn(3, 16, 40), dtype=dtype))
    assert (values > 0.5).all() and (values < 1.5).all()


@EVERY_FAMILY
def test_bfloat16_is_for_the_products_of_the_decoder_alone(name: str) -> None:
    kit = small(name)
    model = kit.model()
    model.set_attn_implementation("eager")
    heads = learning.Heads(64, kit.settings["taps"])
    packed = mixing.batch(kit, 0, 0, {"counting": 1.0}, {"batch": 1, "affirmative": 0, "rows": 200})
    seen: dict[str, set[torch.dtype]] = {"decoder": set(), "tower": set()}

    def note(part: str, found: torch.Tensor) -> None:
        seen[part].add(found.dtype)

    decoder = {id(module) for module in model.get_decoder().modules()}
    for module in model.model.modules():
        if isinstance(module, torch.nn.Linear):
            part = "decoder" if id(module) in decoder else "tower"
            module.register_forward_hook(lambda _, __, found, part=part: note(part, found))
    losses, _ = learning.losses(model, heads, packed, kit, torch.bfloat16)
    assert seen == {"decoder": {torch.bfloat16}, "tower": {torch.float32}}
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    assert not torch.is_autocast_enabled("cpu")


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    run = train.Run(small("qwen3_vl"), options(tmp_path, steps=100, batch=2))
    packed = mixing.batch(run.kit, 0, 0, run.task_weights(), vars(run.given))

    def loss() -> float:
        losses, _ = learning.losses(run.model, run.heads, packed, run.kit)
        return (losses["answers"] + 0.2 * losses["cells"] + 0.5 * losses["points"]).item()

    before = loss()
    for _ in range(6):
        run.advance()
    assert loss() < 0.85 * before


def test_shares_of_the_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = train.parse(["--share", "comparison of two=5", "--share", "comparison=1.5"]).share
    run = train.Run(small("llava"), options(tmp_path, share=given))
    plain = train.Run(small("llava"), options(tmp_path)).task_weights()
    changed = {"comparison of two": 5.0 * 1.1, "comparison": 1.5 * 1.1}  # every error begins at 1
    assert run.task_weights() == pytest.approx({**plain, **changed})
    for wrong, said in (("cats=2", "comparison of two"), ("words", "then = and a number"), ("words=-1", "above 0")):
        with pytest.raises(SystemExit):
            train.parse(["--share", wrong])
        assert said in capsys.readouterr().err


@EVERY_FAMILY
def test_a_step_changes_every_weight(name: str, tmp_path: Path) -> None:
    run = train.Run(small(name), options(tmp_path, batch=1))
    before = [parameter.detach().clone() for parameter in run.weights]
    run.advance()
    unchanged = [old.shape for old, new in zip(before, run.weights, strict=True) if (old == new).all()]
    assert len(unchanged) <= 2  # a norm after the last layer of a tower that takes the layer before it


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    kit = small("qwen3_vl")
    whole = train.train(kit, options(tmp_path / "whole"))
    first = train.Run(kit, options(tmp_path / "parts"))
    (tmp_path / "parts").mkdir()
    for _ in range(2):
        first.advance()
    first.save()
    second = train.train(kit, options(tmp_path / "parts"))
    assert second.step == whole.step == 4 and second.errors == whole.errors
    for one, other in ((second.model, whole.model), (second.average, whole.average)):
        assert all((a == b).all() for a, b in zip(one.parameters(), other.parameters(), strict=True))
    log = json.loads((tmp_path / "whole" / "log.json").read_text())["log"]
    assert set(log[-1]["accuracy"]) == set(mixing.CHECKS)
    entries, ends = curves.joined([log, log])
    steps = [entry["step"] for entry in log]
    assert [entry["step"] for entry in entries] == [*steps, *(steps[-1] + step for step in steps)]
    assert ends == [steps[-1]]
    curves.main([str(tmp_path / "whole" / "log.json")] * 2 + ["--out", str(tmp_path / "curves.png")])
    assert (tmp_path / "curves.png").stat().st_size > 1_000


@torch.no_grad()
def test_an_exported_model_answers_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kit = small("qwen3_vl")
    run = train.Run(kit, options(tmp_path))
    for parameter in run.average.parameters():
        parameter.copy_(parameter.half().float())  # what the file holds
    train.export_model(run.average, run.heads, kit, tmp_path / "model")
    model, loaded = accuracy.load(tmp_path / "model")
    packed = pack([mixing.draw("forms", kit, random.Random(0), 4)], loaded, 232)
    wanted = learning.answer_logits(run.average, packed)
    torch.testing.assert_close(learning.answer_logits(model, packed), wanted, rtol=1e-4, atol=1e-5)
    assert kit.tokenizer.get_vocab() == type(kit.tokenizer).from_pretrained(tmp_path / "model").get_vocab()
    figures = accuracy.measure(model, loaded, accuracy.test_samples("colors", loaded, 2), accuracy.PLANS["all skipped"])
    assert figures["mean"] == figures["colors"]
    with accuracy.removed(model, [0, 1]):
        assert not len(model.get_decoder().layers)
        bare = model.model.language_model(inputs_embeds=torch.ones(1, 3, 64), use_cache=False).last_hidden_state
    assert torch.equal(bare, model.model.language_model.norm(torch.ones(1, 3, 64)))
    torch.testing.assert_close(learning.answer_logits(model, packed), wanted, rtol=1e-4, atol=1e-5)
    asked = ["--held-out", "0", "--test", "1", "--remove", "0", "--remove", "1", "--out", str(tmp_path / "a.json")]
    planned: list[Schedule] = []
    measure = accuracy.measure

    def measured(model: Any, kit: Any, samples: Any, plan: Schedule) -> dict[str, float]:
        planned.append(plan)
        return measure(model, kit, samples, plan)

    monkeypatch.setattr(accuracy, "measure", measured)
    accuracy.main(["--model", str(tmp_path / "model"), *asked, "--schedule", "silent:1"])
    runs = json.loads((tmp_path / "a.json").read_text())["runs"]
    names = ("dense", "all skipped", "silent:1", "without layers 0", "without layers 1")
    assert [*runs] == [f"test, {name}" for name in names]
    assert planned == [*accuracy.PLANS.values(), Schedule.from_spec("silent:1"), Schedule(), Schedule()]
    with pytest.raises(SystemExit):
        accuracy.main(["--model", str(tmp_path / "model"), "--schedule", "silence:1"])
    assert "silence" in capsys.readouterr().err
    other = train.Run(kit, options(tmp_path, start=tmp_path / "model"))
    assert all((a == b).all() for a, b in zip(other.model.parameters(), model.parameters(), strict=True))


def exported(name: str, folder: Path) -> tuple[Any, learning.Heads]:
    """A model in a folder, and its training heads, in what the file holds."""
    run = train.Run(small(name), options(folder))
    for parameter in (*run.average.parameters(), *run.heads.parameters()):
        parameter.data = parameter.data.half().float()
    train.export_model(run.average, run.heads, run.kit, folder / "model")
    return run.average, run.heads


@EVERY_FAMILY
def test_a_deeper_model_begins_with_its_last_layers_split(name: str, tmp_path: Path) -> None:
    """Two layers become 0, 1, 1: the halves share one update, then learn on their own."""
    shallow, heads = exported(name, tmp_path)
    kit = small(name, depth=3)
    run = train.Run(kit, options(tmp_path, start=tmp_path / "model"))
    source, layers = shallow.get_decoder().layers, run.model.get_decoder().layers
    for place, origin in enumerate((0, 1, 1)):
        weights = dict(source[origin].named_parameters())
        for key, value in layers[place].named_parameters():
            half = place and key in ("self_attn.o_proj.weight", "mlp.down_proj.weight")
            assert torch.equal(value, weights[key] / 2 if half else weights[key]), (place, key)
    assert all((a == b).all() for a, b in zip(run.heads.parameters(), heads.parameters(), strict=True))
    packed = pack([mixing.draw("forms", kit, random.Random(0), 4)], kit, 232)
    with torch.no_grad():
        wanted, found = (learning.answer_logits(model, packed) for model in (shallow, run.average))
        shallow.get_decoder().layers = source[:1]
        without = learning.answer_logits(shallow, packed)
    assert (found - wanted).norm() < 0.5 * (without - wanted).norm(), "nearer than without the layer"
    run.advance()
    assert all((a != b).any() for a, b in zip(layers[1].parameters(), layers[2].parameters(), strict=True))


def test_a_start_from_another_architecture_takes_its_decoder_and_shared_tokens(tmp_path: Path) -> None:
    llava, _ = exported("llava", tmp_path)
    kit = small("internvl")
    other = kit.model()
    tower = {name: value.clone() for name, value in other.model.vision_tower.state_dict().items()}
    load_weights(other, learning.Heads(64, kit.settings["taps"]), kit, tmp_path / "model")
    layers = dict(other.get_decoder().layers.named_parameters())
    assert all((layers[name] == value).all() for name, value in llava.get_decoder().layers.named_parameters())
    assert all((other.model.vision_tower.state_dict()[name] == value).all() for name, value in tower.items())
    theirs, ours = (small(name).tokenizer.get_vocab() for name in ("llava", "internvl"))
    assert theirs["bigger"] != ours["bigger"]
    for one, two in ((llava.get_input_embeddings(), other.get_input_embeddings()), (llava.lm_head, other.lm_head)):
        assert (one.weight[theirs["bigger"]] == two.weight[ours["bigger"]]).all()


def test_a_start_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    exported("llava", tmp_path)
    for depth in (1, 5):
        other = small("llava", depth=depth)
        with pytest.raises(ValueError, match=f"has 2 decoder layers, the model {depth}"):
            load_weights(other.model(), learning.Heads(64, [0]), other, tmp_path / "model")
    wider = small("internvl")
    wider.settings["text_config"]["intermediate_size"] = 128
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_weights(wider.model(), learning.Heads(64, [0, 1]), wider, tmp_path / "model")
    normed = small("qwen3_vl")  # queries and keys have norms, which a Llama could not give it
    with pytest.raises(RuntimeError, match=r"only one of the two models has: 0\.self_attn\.q_norm\.weight"):
        load_weights(normed.model(), learning.Heads(64, [0, 1]), normed, tmp_path / "model")


@EVERY_FAMILY
def test_runs_of_the_configuration_files(name: str, tmp_path: Path) -> None:
    found = recipe.runs(architectures.load(name), name, tmp_path, tmp_path / "out", ["--device", "cuda"])
    starts = [given.start for _, given in found]
    assert starts[1:] == [given.out for _, given in found[:-1]] and found[-1][1].out == tmp_path / "out"
    assert starts[0] is None or (starts[0] / "model.safetensors").exists()
    assert all(given.device == "cuda" and given.steps > given.cooldown for _, given in found)
    depths = [kit.settings["text_config"]["num_hidden_layers"] for kit, _ in found]
    assert depths == sorted(depths) and depths[-1] == 10
    shares = [share for _, given in found for share in given.share]
    assert shares and {task for task, _ in shares} <= set(train.SHARES)


def test_a_recipe_is_its_runs_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kit = small("llava", depth=3)
    runs = [{"layers": 2, "seed": 5}, {"cooldown": 1, "share": {"charts": 2}}]
    monkeypatch.setattr(
        architectures, "load", lambda name: dataclasses.replace(kit, settings=kit.settings | {"runs": runs})
    )
    trained: list[int] = []
    advance = train.Run.advance

    def counted(run: train.Run) -> None:
        trained.append(len(run.model.get_decoder().layers))
        advance(run)

    monkeypatch.setattr(train.Run, "advance", counted)
    short = ["--steps", "1", "--no-compile", "--batch", "1", "--rows", "200", "--evaluate-questions", "1"]
    given = ["--config", "llava", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"), *short]
    with pytest.raises(SystemExit):
        recipe.main([*given, "--speed", "9"])
    assert "unrecognized arguments: --speed 9" in capsys.readouterr().err
    assert not trained
    recipe.main(given)
    assert trained == [2, 3]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["text_config"]["num_hidden_layers"] == 3
    logs = [json.loads((tmp_path / "work" / n / "log.json").read_text())["settings"] for n in ("1", "2")]
    assert [log["seed"] for log in logs] == [5, 0]
    assert [log["share"] for log in logs] == [[], [["charts", 2.0]]]
    recipe.main(given)
    assert trained == [2, 3]


def test_a_record_ends_with_its_block() -> None:
    with recording() as record:
        TASKS["colors"].example("train", 0)
    TASKS["colors"].example("train", 1)
    assert len(record) == 1
