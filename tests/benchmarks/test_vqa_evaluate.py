"""The VQA suite's evaluation: prompts as training packs them, the table of a model, and its answer-silent study."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("easy_vqa")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from benchmarks.vqa import architectures, controls, evaluate, learning, mixing, silent
from benchmarks.vqa.architectures import FAMILIES
from benchmarks.vqa.packing import Sample, pack
from benchmarks.vqa.tasks import TASKS


@pytest.mark.parametrize("name", list(FAMILIES))
@pytest.mark.parametrize("images", [1, 2])
def test_prompts_are_those_of_training(name: str, images: int) -> None:
    """The last row of a padded prompt predicts what the packed row before the answer does."""
    torch.manual_seed(0)
    kit = architectures.load(name)
    model = kit.model().eval()
    found = (TASKS["comparison"].example("calibration", i) for i in range(100))
    examples = [example for example in found if len(example.images) == images][:8]
    texts = [example.question for example in examples]
    assert len({len(kit.question(text)) for text in texts}) > 1, "some prompt is padded"
    inputs = evaluate.KitEncoder(kit).prompts([example.images for example in examples], texts)
    samples = [
        Sample(example.images, mixing.encode([(example.question, example.answer)], "comparison", kit))
        for example in examples
    ]
    with torch.no_grad():
        got = model(**inputs).logits[:, -1]
        packed = pack(samples, kit, images * len(kit.block()) + 24)
        rows = [packed.rows[:, 0].tolist().index(element) for element in range(len(samples))]
        want = learning.answer_logits(model, packed)[rows]
    assert torch.allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_the_tower_remembers_what_it_saw(name: str) -> None:
    """The same batch again gives the same logits without the tower; other pixels are never taken for it."""
    torch.manual_seed(0)
    kit = architectures.load(name)
    model = kit.model().eval()
    encoder, tower = evaluate.KitEncoder(kit), evaluate.tower_of(model)
    batches = []
    for first in (0, 2):
        examples = [TASKS["colors"].example("calibration", first + i) for i in range(2)]
        batches.append(encoder.prompts([e.images for e in examples], [examples[0].question] * 2))
    runs = []
    block = next(module for module in tower.modules() if isinstance(module, torch.nn.LayerNorm | torch.nn.Linear))
    block.register_forward_hook(lambda *_: runs.append(1))
    with torch.no_grad():
        want = [model(**inputs).logits for inputs in batches]
        runs.clear()
        with evaluate.remembering(tower):
            got = [model(**inputs).logits for inputs in (*batches, *batches)]
        seen = len(runs)
        model(**batches[0])
    assert not torch.equal(want[0], want[1])
    for one, other in zip(got, (*want, *want), strict=True):
        assert torch.equal(one, other)
    assert seen == 2 * (len(runs) - seen), "the tower ran once for each batch, and runs as before afterwards"


def test_the_table_of_a_model(tmp_path: Path) -> None:
    asked = "--limit 2 --calibration 1 --method late --method vtw --cut 0.5 --eager --rounds 0".split()
    evaluate.main(["--model", "qwen3_vl", *asked, "--work", str(tmp_path / "work"), "--results", str(tmp_path)])
    found = json.loads((tmp_path / "vqa_qwen3_vl.json").read_text(encoding="utf-8"))
    assert {task: counts["questions"] for task, counts in found["tasks"].items()} == dict.fromkeys(TASKS, 2)
    assert {outcome["method"] for outcome in found["outcomes"]} == {"dense", "late", "vtw"}
    assert (tmp_path / "vqa_qwen3_vl.md").read_text(encoding="utf-8").count("|") > 20
    assert (tmp_path / "vqa_qwen3_vl.png").stat().st_size > 10_000


def test_models_of_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, Path]] = []

    load_trained = evaluate.load_trained

    def loading(name: str, models: Path) -> None:
        asked.append((name, models))
        raise InterruptedError

    monkeypatch.setattr(evaluate, "load_trained", loading)
    for name in ("llava", "not an architecture"):
        (tmp_path / name).mkdir()
    with pytest.raises(InterruptedError):
        evaluate.main(["--models", str(tmp_path)])
    assert asked == [("llava", tmp_path)]
    for options, message in (
        (["--model", "qwen3_vl"], "has no folder qwen3_vl"),
        (["--models", str(tmp_path / "none")], "has no folder internvl or llava or qwen3_vl"),
    ):
        with pytest.raises(SystemExit):
            evaluate.main(["--models", str(tmp_path), *options])
        assert message in capsys.readouterr().err
    assert len(asked) == 1
    own = tmp_path / "own" / "llava"
    shutil.copytree(evaluate.MODELS / "llava", own)
    weights = load_file(own / "model.safetensors")
    save_file({name: weight * 2 for name, weight in weights.items()}, own / "model.safetensors", {"format": "pt"})
    ours, theirs = load_trained("llava")[0], load_trained("llava", own.parent)[0]
    assert torch.equal(theirs.lm_head.weight, 2 * ours.lm_head.weight)


def test_the_answer_silent_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    silent.main(["--model", "qwen3_vl", "--prompts", "1", "--work", str(tmp_path / "w"), "--results", str(tmp_path)])
    found = json.loads((tmp_path / "vqa_silent_qwen3_vl.json").read_text(encoding="utf-8"))
    assert found["samples"] == len(TASKS)
    assert len(found["layers"]) == 10
    last = found["layers"][-1]["layer"]
    assert last["divergence"] < 1e-6 < last["update"], "nothing reads the visual rows of the last layer"
    assert "silent" in capsys.readouterr().out
    assert (tmp_path / "vqa_silent_qwen3_vl.png").stat().st_size > 10_000


@pytest.mark.parametrize("script", [silent, controls])
def test_the_study_and_the_controls_of_models_of_another_folder(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, Path]] = []

    def loading(name: str, models: Path = evaluate.MODELS) -> None:
        asked.append((name, models))
        raise InterruptedError

    monkeypatch.setattr(script, "load_trained", loading)
    for options in ([], ["--models", str(tmp_path)]):
        with pytest.raises(InterruptedError):
            script.main(["--model", "llava", "--work", str(tmp_path), *options])
    assert asked == [("llava", evaluate.MODELS), ("llava", tmp_path)]


def test_the_controls_of_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Schedules of the table at the cut that is asked for, beside the one of the smallest updates and a random one."""
    table = [
        {"asked": cut, "method": method, "runs": [{"spec": spec}]}
        for cut, method, spec in ((0.5, "operators", "silent:4-9"), (0.5, "vtw", "-"), (0.65, "late", "silent:2-9"))
    ]
    (tmp_path / "vqa_qwen3_vl.json").write_text(json.dumps({"outcomes": table}), encoding="utf-8")
    asked = "--model qwen3_vl --limit 1 --calibration 1 --cut 0.5 --random-seeds 1".split()
    controls.main([*asked, "--work", str(tmp_path / "work"), "--results", str(tmp_path)])
    found = json.loads((tmp_path / "vqa_controls_qwen3_vl.json").read_text(encoding="utf-8"))["outcomes"]
    specs = {outcome["method"]: outcome["runs"][0]["spec"] for outcome in found}
    assert list(specs) == ["dense", "operators", "update_norm", "random"]
    assert specs["operators"] == "silent:4-9" and len(set(specs.values())) == 4
    assert all(set(outcome["by_task"]) == set(TASKS) for outcome in found)
    assert found[0]["flops_cut"] == 0 and all(0.45 < outcome["flops_cut"] < 0.6 for outcome in found[1:])
    assert "update_norm" in capsys.readouterr().out
