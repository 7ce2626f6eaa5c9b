"""The command ``opskip``: each subcommand calls one function of the package and prints what it returns.

Bad input ends with exit code 2 and one line on stderr. With ``--json``, stdout holds JSON and nothing else.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from opskip_compile import __version__
from opskip_compile.cli.bench import bench
from opskip_compile.cli.calibrate import calibrate
from opskip_compile.cli.demo import demo
from opskip_compile.cli.diagnose import diagnose
from opskip_compile.cli.doctor import doctor
from opskip_compile.cli.eval import evaluate
from opskip_compile.cli.flops import flops
from opskip_compile.cli.inspect import inspect
from opskip_compile.cli.late_imports import import_torchao_late
from opskip_compile.cli.presets import presets
from opskip_compile.errors import OpSkipError
from opskip_compile.output.console import note


class _Commands(TyperGroup):
    """Turns what the package refuses into one line and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except OpSkipError as error:
            note(str(error))
            raise typer.Exit(2) from None


app = typer.Typer(
    cls=_Commands,
    help="A torch.compile backend that lets multimodal LLMs skip visual rows, per layer and operator.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"opskip {__version__}")
        raise typer.Exit


@app.callback()
def opskip(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """What stands before a subcommand."""


app.command()(demo)
app.command()(inspect)
app.command()(calibrate)
app.command()(diagnose)
app.command("eval")(evaluate)
app.command()(presets)
app.command()(flops)
app.command()(doctor)
app.add_typer(bench, name="bench")


def main() -> None:
    """Entry point of ``opskip`` and ``python -m opskip_compile``."""
    import_torchao_late()
    app(prog_name="opskip")
