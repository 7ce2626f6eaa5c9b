"""The command line of ``python -m benchmarks.cuda_code``."""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import benchmarks.cuda_code
from benchmarks.cuda_code import card
from benchmarks.cuda_code.contenders import Contender, contenders, make
from benchmarks.cuda_code.reading import Code
from opskip_compile.output.environment import environment
from opskip_compile.schedule.validation import write_json

HEADS = ("contender", "kernels, launches", f"for {card.TARGET}", "calls", "sizes found", "host waits for", "recorded")


def row_of(found: Mapping[str, Any]) -> tuple[str, ...]:
    """One line of the table."""
    if "error" in found:
        return found["contender"], "-", "-", found["error"], "-", "-", "-"
    compiled = "all" if found["cubins"] == found["kernels"] else f"{found['cubins']} only"
    recorded = f"in parts: {found['recorded_parts']}" if found["recorded_parts"] else "no"
    bad = f", impossible: {_counted(found['unrecordable'])}" if found["unrecordable"] else ""
    kernels, calls = f"{found['kernels']}, {found['launches']}", _counted(found["extern"])
    waits = _counted(found["host_waits"]) or "nothing"
    return found["contender"], kernels, compiled, calls, str(found["sizes_found"]), waits, recorded + bad


def _counted(calls: Mapping[str, int]) -> str:
    short = {key.removeprefix("aten._scaled_dot_product_").removeprefix("opskip."): n for key, n in calls.items()}
    return ", ".join(f"{key} {n}" for key, n in short.items())


def measure(contender: Contender, code_folder: Path | None) -> dict[str, Any]:
    """What becomes of one contender."""
    known = {"model": contender.model, "contender": contender.name}
    try:
        made = make(contender)
    except Exception as error:
        return {**known, "error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
    if code_folder:
        code_folder.mkdir(parents=True, exist_ok=True)
        name = "_".join(re.findall(r"\w+", f"{contender.model} {contender.name}"))
        (code_folder / f"{name}.py").write_text("\n".join(made.sources), encoding="utf-8")
    code = Code.of(made.sources)
    cubins = sum(made.cubins.get(kernel, 0) > 0 for kernel in code.kernels)
    return {**known, **code.to_dict(), "cubins": cubins, "partings": sorted(set(made.partings))}


def is_bad(found: Mapping[str, Any]) -> bool:
    """True if something was not lowered or not compiled, or would be recorded and can't."""
    return "error" in found or not found["kernels"] or found["cubins"] < found["kernels"] or bool(found["unrecordable"])


def main() -> None:
    """Compile every contender, and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cuda_code",
        description=benchmarks.cuda_code.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", help="contenders whose model or name holds this text")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--code", type=Path, help="folder for the modules that Inductor writes")
    parser.add_argument("--capability", choices=("8.0", "8.9", "9.0", "10.0"), default="9.0", help="of the GPU")
    given = parser.parse_args()
    lacking = card.missing()
    if lacking:
        parser.error(lacking)
    card.again(given.capability)
    warnings.filterwarnings("ignore", "uncheckedSetDevice|dynamo_pgo")  # the card has no driver; no cache is asked for
    rows: list[dict[str, Any]] = []
    tables: dict[str, Table] = {}
    for contender in contenders():
        if given.only and given.only not in f"{contender.model}: {contender.name}":
            continue
        rows.append(measure(contender, given.code))
        print(f"{contender.model}: {contender.name}: {'BAD' if is_bad(rows[-1]) else 'done'}", flush=True)
        table = tables.setdefault(contender.model, Table(*HEADS, title=contender.model))
        table.add_row(*row_of(rows[-1]))
    for table in tables.values():
        Console(width=180).print(table)
    if given.json:
        write_json({"environment": environment(f"none; code for {card.TARGET}", "bfloat16"), "found": rows}, given.json)
    raise SystemExit(any(map(is_bad, rows)))


if __name__ == "__main__":
    main()
