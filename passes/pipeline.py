"""The passes in their order, and the one loop that runs them on a Dynamo graph.

Analysis ends with the plan; from ``insert`` on every pass leaves a graph that computes the oracle's result. Order,
timing, counting, options, ``until`` and what a dump wants to see are the loop's matter, never a pass's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import fx

from opskip_compile.errors import RewriteError
from opskip_compile.passes import steps
from opskip_compile.passes.normalize.cleanup import copy_graph
from opskip_compile.passes.state import Fact, Options, Pass, PassReport, Resolved, State

_NORMALIZED, _ROWS, _OPERATORS, _PLAN = map(frozenset, ([Fact.NORMALIZED], [Fact.ROWS], [Fact.OPERATORS], [Fact.PLAN]))
_DEFINITION, _PUSHED, _CLEAN = map(frozenset, ([Fact.DEFINITION], [Fact.PUSHED], [Fact.CLEAN]))

PIPELINE: tuple[Pass, ...] = (
    Pass("normalize", steps.normalize, ensures=_NORMALIZED),
    Pass("locate", steps.locate, _NORMALIZED, _ROWS),
    Pass("match", steps.match, _ROWS, _OPERATORS),
    Pass("plan", steps.plan, _OPERATORS, _PLAN),
    Pass("insert", steps.insert, _PLAN, _DEFINITION),
    Pass("push_down", steps.push_down, _DEFINITION, _PUSHED),
    Pass("cancel", steps.cancel, _PUSHED),
    Pass("share_rotary", steps.share_rotary, _DEFINITION, option="share_rotary"),
    Pass("clean_up", steps.clean_up, _DEFINITION, _CLEAN),
    Pass("account", steps.account, _CLEAN),
    Pass("heads", steps.heads, _CLEAN, option="causal"),
    Pass("causal", steps.causal, _CLEAN, option="causal"),
    Pass("onednn", steps.onednn, _CLEAN, option="onednn"),
    Pass("regions", steps.regions, _CLEAN, option="regions"),
)
PASSES = tuple(each.name for each in PIPELINE)
Observer = Callable[[Pass, State, PassReport], None]


@dataclass(frozen=True)
class Rewritten:
    """What a run of the passes gives.

    Attributes:
        state: everything that the passes found out.
        passes: time and changes of every pass that ran.
        again: the same passes on the same graph once more, without those that only the machine asks for.
    """

    state: State
    passes: tuple[PassReport, ...]
    again: Callable[[], Rewritten]

    @property
    def graph(self) -> fx.Graph | None:
        """The new graph; None where the captured one stays."""
        return self.state.graph if self.state.refusal is None and Fact.DEFINITION in self.state.facts else None


def rewrite(
    gm: fx.GraphModule,
    options: Options,
    *,
    until: str = PASSES[-1],
    observe: Observer | None = None,
    passes: Sequence[Pass] = PIPELINE,
) -> Rewritten:
    """Run the passes on a copy of ``gm.graph``.

    Args:
        gm: a graph that Dynamo captured, with example values.
        options: what to do.
        until: the last pass to run; from ``"insert"`` on the graph is runnable after each.
        observe: called after each pass.
        passes: the passes in their order.

    Raises:
        RewriteError: under ``strict``, with the node, its source line and the reason; or passes in a wrong order.
        ScheduleError: the schedule does not fit the decoder.
    """
    captured, resolve = gm.graph, options.resolve
    resolved: list[Resolved] = []

    def resolve_once(*args: object) -> Resolved:
        if not resolved:
            resolved.append(resolve(*args))  # type: ignore[arg-type]
        return resolved[0]

    def run(options: Options, observe: Observer | None) -> Rewritten:
        state = State(gm, captured, copy_graph(captured), replace(options, resolve=resolve_once))
        reports = tuple(_run(state, passes, until, observe))
        if Fact.DEFINITION in state.facts:
            state.graph.lint()
        # The same passes on the same graph give the same result, so nothing has to be kept for a diff but the graph.
        # How a product is computed, and which layers share code, is a matter of the machine and of no diff.
        return Rewritten(state, reports, lambda: run(replace(options, onednn=False, regions=False), None))

    return run(options, observe)


def _run(state: State, passes: Sequence[Pass], until: str, observe: Observer | None) -> list[PassReport]:
    reports: list[PassReport] = []
    for each in passes:
        missing = each.requires - state.facts
        if missing:
            raise RewriteError(f"pass {each.name}: it requires {', '.join(sorted(fact.name for fact in missing))}")
        if not each.option or getattr(state.options, each.option):
            start = time.perf_counter()
            changed = each.run(state)
            report = PassReport(each.name, (time.perf_counter() - start) * 1e3, changed)
            reports.append(report)
            if observe is not None:
                observe(each, state, report)
        if state.refusal is not None:
            break
        state.facts |= each.ensures
        if each.name == until:
            break
    return reports
