"""``opskip inspect``: what the compiler would do to a model, as a table, as code, and in files for other tools."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opskip_compile.cli.options import AsJson, Meant
from opskip_compile.cli.schedules import schedule_of
from opskip_compile.errors import OpSkipError
from opskip_compile.output.console import check_targets, note, print_json, print_view

if TYPE_CHECKING:
    from opskip_compile.models.explain_target import Request, Step
    from opskip_compile.report.report import Report
    from opskip_compile.schedule.schedule import Schedule


def inspect(
    model: Annotated[
        str,
        typer.Argument(
            help="demo; tiny-qwen3-vl, tiny-qwen2.5-vl, tiny-llava or tiny-internvl; or the folder or config.json of "
            "a transformers model (a folder named like one of these: ./demo)."
        ),
    ],
    image: Annotated[
        str | None, typer.Option(help="Ask about this image: a file or a URL. With a folder, its weights are loaded.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="The question (demo, and a folder with --image).")] = None,
    schedule: Annotated[
        str | None, typer.Option(help="Spec text, or a file that ends in .json; else what the backend would take.")
    ] = None,
    modalities: Meant = None,
    layers: Annotated[int | None, typer.Option(help="Decoder layers of a tiny model; 4 if not given.")] = None,
    text_before: Annotated[
        int | None, typer.Option(help="Folder without --image: text rows before the image; 0.")
    ] = None,
    visual: Annotated[int | None, typer.Option(help="Folder without --image: visual rows; 1024.")] = None,
    text: Annotated[int | None, typer.Option(help="Folder without --image: text rows after the image; 64.")] = None,
    operator: Annotated[
        str | None, typer.Option(help="Print the code of this operator before and after, such as 17.ffn.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write the graph diff as one page for a browser.")] = None,
    dot: Annotated[
        Path | None, typer.Option(help="Write it for Graphviz; with --operator, only that operator.")
    ] = None,
    graphml: Annotated[Path | None, typer.Option(help="Write it as GraphML.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what the compiler would skip in a model, what not and why; the decoder is neither lowered nor run."""
    from rich.console import Console

    from opskip_compile.backend.resolve import FALLBACK
    from opskip_compile.models.explain_target import Request
    from opskip_compile.output.files import write_whole
    from opskip_compile.output.progress import progress
    from opskip_compile.schedule.modalities import VISUAL

    check_targets(html=html, dot=dot, graphml=graphml)
    plan = None
    if schedule is not None or modalities is not None:
        plan = schedule_of(schedule or FALLBACK, modalities)
    if schedule is None and plan is not None:
        note(f"no schedule was given: {plan.to_spec()}, which is not calibrated")
    meant = VISUAL if plan is None else plan.modalities
    request = Request(model, image, prompt, layers, text_before, visual, text, meant)
    with progress(Console(stderr=True)) as bar:

        def step(what: str) -> None:
            bar(what, 0, 0)

        about, report = _explained(request, plan, step)
        step("comparing the graphs")
        diff = report.diff()
        code = None if operator is None else diff.operator(operator)
        step("writing")
        if html is not None:
            diff.to_html(html)
        if dot is not None:
            write_whole(dot, diff.to_dot(operator))
        if graphml is not None:
            diff.to_graphml(graphml)
    if as_json:
        print_json({"report": report.to_dict(), "diff": diff.to_dict()})
    elif code is not None:
        print_view(code)
    else:
        print(about)
        print_view(diff)
    for written in filter(None, (html, dot, graphml)):
        note(f"wrote {written}")


def _explained(request: Request, plan: Schedule | None, step: Step) -> tuple[str, Report]:
    """The model in one line and the report on it. Warnings become notes of one line each."""
    from opskip_compile.api import explain
    from opskip_compile.models.explain_target import find

    target = find(_with_question(request), step)
    step("capturing the graph")
    chosen: dict[str, Any] = {"schedule": target.schedule if plan is None else plan}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            report = explain(target.model, target.inputs, **chosen)
        except OpSkipError:
            raise
        except Exception as error:  # the model's own code, or Dynamo in it
            text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise OpSkipError(f"model: {target.about} can't be captured: {text}") from error
    for text in dict.fromkeys(str(item.message) for item in caught if item.category.__module__.startswith("opskip")):
        note(text.removeprefix("opskip: "))
    if plan is None and target.schedule is not None:
        report = replace(report, schedule_origin=target.origin)
    return target.about, report


def _with_question(request: Request) -> Request:
    """The demo model is asked the first test question about its image, if the user names no image."""
    from opskip_compile.demo.easy_vqa import load_questions
    from opskip_compile.models.packaged.model import NAME

    if request.model != NAME or request.image is not None:
        return request
    first = load_questions("test")[0]
    return replace(request, image=first.image_path, prompt=first.text if request.prompt is None else request.prompt)
