"""transformers' own suite: what the plug-in compiles and counts, where the tests come from, and what the page says."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks.transformers_suite.__main__ import JSON_FILE, PAGE_FILE, environment
from benchmarks.transformers_suite.differences import Explanation, complaints, differences, explained
from benchmarks.transformers_suite.folder import from_archive, from_repository
from benchmarks.transformers_suite.outcomes import Outcome, join, of_plain, read_lines, to_plain
from benchmarks.transformers_suite.page import page, totals
from benchmarks.transformers_suite.selection import FAMILIES, RUNS, selected

TESTS = """
import copy, os, unittest
import transformers
from transformers import LlavaForConditionalGeneration
from opskip_compile.models.tiny import FAMILIES

class LlavaForConditionalGenerationModelTest(unittest.TestCase):
    def test_prompt(self):
        model = FAMILIES["llava"].build(2)
        model(**FAMILIES["llava"].inputs())

    def test_loaded(self):
        import tempfile
        with tempfile.TemporaryDirectory() as folder:
            FAMILIES["llava"].build(2).save_pretrained(folder)
            LlavaForConditionalGeneration.from_pretrained(folder)

    def test_part_fails(self):
        for part in range(2):
            with self.subTest(part=part):
                self.assertEqual(part, 0)

    def test_skips_itself(self):
        self.skipTest("no reason")

    def test_pipeline_of_another_package(self):
        raise AssertionError("is not selected")

    def test_zz_ends_the_process(self):
        os._exit(3)

class LlavaIntegrationTest(unittest.TestCase):
    def test_is_of_another_class(self):
        raise AssertionError("is not selected")
"""
LATE, MESSAGE = "late:0.5", "Tensor-likes are not close!\n\nMismatched"


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Mapping[str, Outcome]]:
    """Run -> test -> what the plug-in wrote of it, without class and folder."""
    folder = tmp_path_factory.mktemp("suite")
    file = folder / FAMILIES["llava"].path
    file.parent.mkdir(parents=True)
    file.write_text(TESTS)
    found = {}
    for run in RUNS:
        out = folder / "out.jsonl"
        out.unlink(missing_ok=True)
        options = ["-p", "benchmarks.transformers_suite.plugin", "--suite-run", run, "--suite-out", out, file]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "--rootdir", folder, *options],
            cwd=folder,
            env=environment(folder),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 3, done.stdout + done.stderr
        found[run] = {name.rpartition("::")[2]: outcome for name, outcome in read_lines(out).items()}
    return found


def test_every_model_is_compiled_and_skipped_prompts_are_counted(
    outcomes: Mapping[str, Mapping[str, Outcome]],
) -> None:
    prompts = {run: tests["test_prompt"] for run, tests in outcomes.items()}
    assert {run: prompt.outcome for run, prompt in prompts.items()} == dict.fromkeys(RUNS, "passed")
    assert {run: prompt.compiled for run, prompt in prompts.items()} == {"plain": 0, "none": 1, LATE: 1}
    assert {run: prompt.graphs for run, prompt in prompts.items()} == {"plain": 0, "none": 1, LATE: 1}
    assert {run: prompt.skipped for run, prompt in prompts.items()} == {"plain": 0, "none": 0, LATE: 1}
    assert prompts["none"].reasons == ("the schedule skips nothing here",)
    # One for the model that is saved, one for the one that is loaded, and none for the parts of either.
    assert {run: tests["test_loaded"].compiled for run, tests in outcomes.items()} == {"plain": 0, "none": 2, LATE: 2}


def test_ends_of_tests(outcomes: Mapping[str, Mapping[str, Outcome]]) -> None:
    tests = outcomes["plain"]
    assert {name: outcome.outcome for name, outcome in tests.items()} == {
        "test_loaded": "passed",
        "test_part_fails": "failed",
        "test_prompt": "passed",
        "test_skips_itself": "skipped",
        "test_zz_ends_the_process": "crashed",
    }
    assert "1 != 0" in tests["test_part_fails"].why
    assert not tests["test_skips_itself"].ran


def test_tests_of_a_source_distribution_go_over_those_of_a_repository(tmp_path: Path) -> None:
    theirs = {"tests/test_modeling_common.py": "old", "tests/generation/test_utils.py": "generation"}
    theirs |= {"utils/tool.py": "", "src/transformers/__init__.py": '__version__ = "5.0.0"\n', "README.md": ""}
    repository = tmp_path / "repository"
    for name, text in theirs.items():
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text(text)
    author = ("-c", "user.name=somebody", "-c", "user.email=somebody@localhost")
    for command in (("init", "-q"), ("add", "."), (*author, "commit", "-qm", "first"), ("tag", "v5.0.0")):
        subprocess.run(["git", "-C", str(repository), *command], check=True)
    folder = tmp_path / "folder"
    assert from_repository(folder, str(repository), "refs/tags/v5.0.0").startswith("transformers 5.0.0, commit ")

    with tarfile.open(tmp_path / "transformers.tar.gz", "w:gz") as archive:
        for name, text in {"tests/test_modeling_common.py": "new", "src/tests/test_x.py": "", "setup.py": ""}.items():
            member = tarfile.TarInfo(f"transformers-5.0.0/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    assert from_archive(folder, tmp_path / "transformers.tar.gz") == ["tests/test_modeling_common.py"]
    assert (folder / "tests/test_modeling_common.py").read_text() == "new"
    assert (folder / "tests/generation/test_utils.py").read_text() == "generation"
    assert not (folder / "README.md").exists()


def test_a_test_after_a_crash_did_not_get_its_turn(tmp_path: Path) -> None:
    lines = [{"test": "llava::T::test_a"}, {"test": "llava::T::test_a", "outcome": "passed"}]
    (tmp_path / "plain").write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"test": "llava::T::test_b"}]))
    plain = read_lines(tmp_path / "plain")
    assert {name: outcome.outcome for name, outcome in plain.items()} == {
        "llava::T::test_a": "passed",
        "llava::T::test_b": "crashed",
    }
    whole = dict.fromkeys(("llava::T::test_a", "llava::T::test_b"), Outcome("passed"))
    suite = join({"plain": whole, "none": plain, LATE: {"llava::T::test_a": Outcome("passed")}})
    assert [(one.run, one.test[-1], one.here) for one in differences(suite)] == [
        ("none", "b", "crashed"),
        (LATE, "b", "crashed"),
    ]
    assert of_plain(json.loads(json.dumps(to_plain(suite)))) == suite


def test_nothing_is_left_unexplained() -> None:
    here = {"plain": Outcome("passed"), "none": Outcome("passed"), LATE: Outcome("failed", MESSAGE, 1, 1, 1)}
    found = differences({"llava::T::test_inputs_embeds": here})
    right = Explanation("inputs_embeds$", (LATE,), "not close", "dense numbers", "it compares")
    assert complaints(found, [right]) == []
    (unexplained,) = complaints(found, [])
    assert unexplained.startswith(
        "not explained: llava::T::test_inputs_embeds failed in the run late:0.5: Tensor-likes"
    )
    for wrong in (
        Explanation("input_ids", (LATE,), "not close", "fault", "another test"),
        Explanation("inputs_embeds", ("none",), "not close", "fault", "another run"),
        Explanation("inputs_embeds", (LATE,), "IndexError", "fault", "another message"),
    ):
        assert complaints(found, [right, wrong]) == [f"explains nothing: {wrong.tests}"]
        assert len(complaints(found, [wrong])) == 2


def test_selection() -> None:
    assert selected("test_greedy_generate")
    assert selected("test_eager_matches_sdpa_inference_09_fp32_pad_left")
    assert not selected("test_eager_matches_sdpa_inference_08_fp32_pad_left_sdpa_kernels")
    assert not selected("test_pipeline_image_text_to_text")


def test_page_says_what_ran() -> None:
    dense, skips = Outcome("passed", compiled=1, graphs=1, reasons=("no visual rows",)), Outcome("passed", "", 1, 1, 1)
    suite = {
        "llava::T::test_a": {"plain": Outcome("passed"), "none": dense, LATE: skips},
        "llava::T::test_b": {"plain": Outcome("skipped"), "none": Outcome("skipped"), LATE: Outcome("skipped")},
        "glm4v::T::test_a": {"plain": Outcome("passed"), "none": dense, LATE: Outcome("failed", MESSAGE)},
    }
    assert [counts["ran"] for counts in totals(suite).values()] == [2, 2, 2]
    text = page({"versions": {"torch": "2"}, "sources": {"tests": "here"}, "command": "this"}, suite)
    assert "| LLaVA | 1 of 1 | 1 of 1 | 1 of 1 (1) |" in text
    assert "* not explained\n    * `test_a`, late:0.5: passed -> failed (GLM-4V)" in text
    assert "| with a prompt really skipped | 0 | 0 | 1 |" in text


def test_what_is_published() -> None:
    """At least 400 tests ran in each run, and every one that does not end as it does plain is explained by torch."""
    results = json.loads(JSON_FILE.read_text(encoding="utf-8"))
    suite = of_plain(results["tests"])
    assert PAGE_FILE.read_text(encoding="utf-8") == page(results, suite)
    counts = totals(suite)
    assert counts == results["totals"]
    assert all(counts[run]["ran"] >= 400 and not counts[run]["crashed"] for run in RUNS)
    assert counts["late:0.5"]["with a prompt really skipped"] >= 300
    found = differences(suite)
    assert complaints(found) == []
    assert {explanation.kind for _, explanation in explained(found) if explanation is not None} == {"torch"}
