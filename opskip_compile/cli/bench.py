"""``opskip bench``: how much of a FLOPs cut becomes time, on the machine at hand."""

from __future__ import annotations

import typer

from opskip_compile.cli.bench_compile import compile_time
from opskip_compile.cli.bench_passes import passes
from opskip_compile.cli.bench_prefill import prefill

bench = typer.Typer(help="Measure prefill against plain Inductor.", no_args_is_help=True)
bench.command()(prefill)
bench.command("compile")(compile_time)
bench.command()(passes)
