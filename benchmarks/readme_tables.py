"""Write the tables of figures from ``benchmarks/results`` into README and docs, each between two comments that name it.

python -m benchmarks.readme_tables [--check]
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from functools import partial

from benchmarks.tables import answers, files, front, gpu, savings, speed, suites
from benchmarks.tables.figures import RESULTS, ROOT

RESULTS_PAGE: dict[str, Callable[[], str]] = {
    "prefill": lambda: speed.prefill("prefill/prefill_cpu"),
    "peers": lambda: speed.prefill("prefill/prefill_cpu_llava"),
    "widths": speed.widths,
    "profile": lambda: speed.profile("prefill/prefill_cpu_8b"),
    "bfloat16": lambda: speed.prefill("prefill/prefill_cpu_bf16"),
    "bfloat16, profile": lambda: speed.profile("prefill/prefill_cpu_bf16"),
    "shares": lambda: speed.prefill("prefill/prefill_cpu_shares"),
    "shares, 8B": lambda: speed.prefill("prefill/prefill_cpu_shares_8b"),
    "mixed levels": speed.mixed_levels,
    "signals": answers.signals,
    "code for a GPU": gpu.code,
    "calibration": answers.calibration,
    "calibration samples": answers.calibration_samples,
    "evaluation": lambda: answers.evaluation("answers/eval_demo"),
    "ten tasks, Qwen3-VL": lambda: answers.evaluation("answers/vqa_qwen3_vl"),
    "levels, Qwen3-VL": lambda: answers.evaluation("answers/vqa_levels_qwen3_vl", "answers/vqa_dropping_qwen3_vl"),
    "levels, LLaVA": lambda: answers.evaluation("answers/vqa_levels_llava", "answers/vqa_dropping_llava"),
    "levels, InternVL": lambda: answers.evaluation("answers/vqa_levels_internvl", "answers/vqa_dropping_internvl"),
    "combined": lambda: answers.combined("answers/vqa_combined_qwen3_vl"),
    "many turns": lambda: answers.many_turns("answers/vqa_turns_qwen3_vl"),
    "long answers": lambda: answers.long_answers("answers/vqa_long_qwen3_vl"),
    "ten tasks, LLaVA": lambda: answers.evaluation("answers/vqa_llava"),
    "ten tasks, InternVL": lambda: answers.evaluation("answers/vqa_internvl"),
}


PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"front": front.front},
    "docs/results.md": RESULTS_PAGE,
    "docs/compile-time.md": {
        "compile": speed.compile_time,
        "level compile": speed.level_compile,
        "passes": speed.passes,
        "row counts": speed.row_counts,
    },
    "docs/serving.md": {
        "vllm traffic": speed.vllm_traffic,
        "serving": speed.serving,
        "vllm prefill": speed.vllm_prefill,
        "vllm prefill, presets": lambda: speed.vllm_prefill("vllm/vllm_prefill_presets"),
        "vllm prefill, bfloat16": lambda: speed.vllm_prefill("vllm/vllm_prefill_bf16"),
    },
    "docs/other-savings.md": {"quantised weights": savings.quantised, "guessed tokens": savings.guessed},
    "docs/support.md": {"releases": suites.releases, "transformers' own tests": suites.transformers_suite},
    **{
        f"benchmarks/results/{study.name}/README.md": {"files": partial(files.files, study)}
        for study in sorted(RESULTS.iterdir())
        if study.is_dir()
    },
}


def filled(page: str, text: str) -> str:
    """``text`` of ``page`` with each of its tables as the figures have it now.

    Raises:
        ValueError: a table of the page has no place in the text.
    """
    for name, make in PAGES[page].items():
        place = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end of table -->)", re.DOTALL)
        found = place.findall(text)
        if len(found) != 1:
            raise ValueError(f"{page}: expected one table named {name}, found {len(found)}")
        text = place.sub("".join((r"\1", make().replace("\\", r"\\"), r"\n\2")), text)
    return text


def write() -> None:
    """Write every table into its page."""
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        (ROOT / page).write_text(filled(page, text), encoding="utf-8")


def main() -> None:
    """Write the tables, or say whether they are up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    if not given.check:
        write()
        return
    texts = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
    if stale := [page for page, text in texts.items() if filled(page, text) != text]:
        sys.exit(f"{', '.join(stale)}: tables that are not those of benchmarks/results")


if __name__ == "__main__":
    main()
