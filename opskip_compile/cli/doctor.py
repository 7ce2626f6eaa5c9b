"""``opskip doctor``: what to paste into a report of a fault."""

from __future__ import annotations

from itertools import groupby
from typing import Annotated

import typer

from opskip_compile.cli.options import AsJson
from opskip_compile.output.console import print_json

Device = Annotated[str | None, typer.Option(help="Device of the trials; default: a GPU where there is one.")]
Quick = Annotated[bool, typer.Option("--no-trials", help="Read facts only: nothing is compiled.")]


def doctor(device: Device = None, without_trials: Quick = False, as_json: AsJson = False) -> None:
    """Versions, devices, plug-ins, settings, and whether a small model skips here. Exit code 1: something is wrong."""
    from opskip_compile.doctor.facts import facts

    found = list(facts())  # before the imports of the trials: torch adds variables of its own
    if not without_trials:
        from opskip_compile.doctor.trials import trials

        found += trials(device)
    wrong = [each for each in found if each.fine is False]
    if as_json:
        print_json([each.to_dict() for each in found])
    else:
        for topic, group in groupby(found, lambda each: each.topic):
            print(f"{topic}:")
            for each in group:
                print("\n".join(f"  {line}" for line in str(each).splitlines()))
        print("nothing wrong was found" if not wrong else f"{len(wrong)} marked with !!")
    if wrong:
        raise typer.Exit(1)
