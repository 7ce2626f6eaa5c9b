"""Each pass as a function of the state: what it reads of it and adds to it. The work is done in the folders beside."""

from __future__ import annotations

from torch import fx

from opskip_compile import _compat
from opskip_compile.errors import RewriteError
from opskip_compile.passes.analysis.cross_attention import ENCODER, crossing_without_rows
from opskip_compile.passes.analysis.exchanges import exchanging_groups
from opskip_compile.passes.analysis.locate import RowSource, locate_rows
from opskip_compile.passes.analysis.match import as_layer, match_operators, matches_without_rows
from opskip_compile.passes.analysis.merges import RowTokens
from opskip_compile.passes.analysis.operators import Match
from opskip_compile.passes.analysis.plan import make_plan
from opskip_compile.passes.analysis.remaining import Leftover
from opskip_compile.passes.analysis.split_heads import why_spread
from opskip_compile.passes.normalize.cleanup import remove_dead
from opskip_compile.passes.normalize.collectives import drop_idle_checks, lift_collectives
from opskip_compile.passes.normalize.flex import lift_flex
from opskip_compile.passes.normalize.functionalize import write_out_of_place
from opskip_compile.passes.normalize.packages import lift_packages
from opskip_compile.passes.normalize.unflatten import add_unflattened
from opskip_compile.passes.ops import tensor
from opskip_compile.passes.refusal import Refusal, Refused, Why
from opskip_compile.passes.rewrite.cancel import cancel as cancel_pairs
from opskip_compile.passes.rewrite.cancel import cancel_around
from opskip_compile.passes.rewrite.insert import insert_skips
from opskip_compile.passes.rewrite.pushdown import Pushdown
from opskip_compile.passes.state import State
from opskip_compile.passes.tune.causal import ask_for_causal_masks
from opskip_compile.passes.tune.onednn import use_onednn
from opskip_compile.passes.tune.regions import Layers, share_regions
from opskip_compile.passes.tune.rotary import share_rotary_tables
from opskip_compile.passes.tune.shared_heads import share_heads

PART_WITHOUT_ROWS = Refusal(
    Why.PART_WITHOUT_ROWS,
    "the graph starts and ends in a decoder's residual stream, as with a layer that was compiled alone, and no graph "
    "before it named visual rows; opskip_compile.compile(model, regional=True) compiles layer by layer and names them",
)
DECODER_WITHOUT_ROWS = Refusal(
    Why.DECODER_WITHOUT_ROWS,
    "the graph starts at the embedded input of a decoder, and no graph before it named visual rows of it: a text-only "
    "prompt, or images were merged by code that is not compiled",
)
NO_ROWS = Refusal(
    Why.NO_ROWS,
    "no visual rows in this graph (text-only prompt, decode step or vision tower; "
    "or a decoder compiled alone, without mark_visual)",
)
NO_OPERATOR = Refusal(Why.NO_OPERATOR, "visual rows are known, but no operator returns to their stream")
NOTHING_TO_SKIP = Refusal(Why.NOTHING_TO_SKIP, "the schedule skips nothing here")


def normalize(state: State) -> int:
    """One form for what models write in several ways."""
    graph = state.graph
    changed = write_out_of_place(graph) + add_unflattened(graph) + lift_packages(graph) + lift_collectives(graph)
    return changed + lift_flex(state.module, graph) + remove_dead(graph)


def locate(state: State) -> int:
    """Where the visual rows of the graph are named: by itself, or by an earlier graph of the same forward."""
    graph, mark_input, tokens = state.graph, state.options.mark_input, state.options.tokens
    source = _located(graph, None, tokens)
    if mark_input is not None and (not isinstance(source, RowSource) or source.kind == "masked_scatter"):
        marked = mark_input(graph)
        source = _located(graph, marked, tokens)
        if marked is not None and (not isinstance(source, RowSource) or source.marked is None):
            graph.erase_node(marked[1])
    if isinstance(source, RowSource):
        state.source = source
    else:
        state.refusal = source or crossing_without_rows(graph) or _without_rows(state) or NO_ROWS
        state.groups = exchanging_groups(graph, state.match)
    return 0


def _located(
    graph: fx.Graph, marked: tuple[fx.Node, fx.Node] | None, tokens: RowTokens | None
) -> RowSource | Refusal | None:
    try:
        return locate_rows(graph, marked, tokens)
    except Refused as refused:
        return refused.refusal if refused.node is None else refused.refusal.at(refused.node)


def _without_rows(state: State) -> Refusal | None:
    """What a graph is that holds a decoder, or layers of one, and no rows."""
    options, matches = state.options, matches_without_rows(state.graph)
    if options.layer is None and any(m.doubt is not None and m.doubt.why is Why.PART for m in matches):
        return PART_WITHOUT_ROWS
    if options.is_decoder is not None and any(m.doubt is None and options.is_decoder(m) for m in matches):
        return DECODER_WITHOUT_ROWS
    return None


def match(state: State) -> int:
    """The operators on the stream that starts where the rows are named."""
    assert state.source is not None
    options, matched = state.options, match_operators(state.source.root)
    if options.is_encoder is not None and options.is_encoder(matched):
        matched = Match(doubt=ENCODER)
    if options.layer is not None:
        matched = as_layer(matched, *options.layer)
    elif matched.operators and matched.num_layers == options.num_layers:
        matched.doubt = None
    spread = why_spread(state.graph) if matched.doubt is not None or not matched.operators else None
    if spread is not None:
        matched = Match(doubt=spread)
    state.match = matched
    state.groups = exchanging_groups(state.graph, matched)
    if not matched.operators:
        state.refusal = matched.doubt or NO_OPERATOR
    return 0


def plan(state: State) -> int:
    """Schedule times operators."""
    assert state.source is not None
    matched, options = state.match, state.options
    resolved = options.resolve(matched, state.graph)
    if matched.doubt is not None and resolved.schedule.num_layers != matched.num_layers:
        state.refusal = matched.doubt
        return 0
    state.resolved = resolved
    state.plan = decided = make_plan(matched, resolved.schedule, state.source)
    misses = decided.misses
    if options.strict and misses:
        miss = misses[0]
        raise RewriteError(f"{miss.operator} stays full at {miss.node or '-'} ({miss.source}): {miss.reason}")
    if not decided.skips:
        state.refusal = misses[0] if misses else NOTHING_TO_SKIP
        return 0
    state.leftover = Leftover.of(matched.operators, [skip.operator for skip in decided.skips])
    return 0


def insert(state: State) -> int:
    """The definition of skipping, for each operator of the plan."""
    assert state.source is not None
    state.row_sets = insert_skips(state.graph, state.plan, state.source, state.groups)
    return len(state.plan.skips)


def push_down(state: State) -> int:
    """Every selection towards the inputs."""
    pushdown = _pushdown(state)
    state.stops = tuple(pushdown.run())
    drop_idle_checks(state.graph)
    return pushdown.pushed


def _pushdown(state: State) -> Pushdown:
    assert state.source is not None
    stream = tensor(state.source.root)
    assert stream is not None
    return Pushdown(state.graph, state.row_sets, stream, state.match.owners())


def cancel(state: State) -> int:
    """Selections and scatters of the same rows."""
    return cancel_pairs(state.graph) + cancel_around(state.graph, _pushdown(state))


def share_rotary(state: State) -> int:
    """Sines and cosines once for all layers."""
    assert state.source is not None
    return share_rotary_tables(state.graph, state.source.root)


def clean_up(state: State) -> int:
    """What no result depends on any more."""
    return remove_dead(state.graph)


def account(state: State) -> int:
    """What skipped operators still compute in full: read, not changed."""
    assert state.leftover is not None
    alive = frozenset(state.graph.nodes)
    skipped = [skip.operator for skip in state.plan.skips]
    state.remaining = {operator: state.leftover.remaining(operator, alive) for operator in skipped}
    return 0


def heads(state: State) -> int:
    """Attentions that share heads of keys instead of copies of them."""
    return share_heads(state.graph, state.captured)


def causal(state: State) -> int:
    """Attentions that find out whether their mask is the causal one."""
    return ask_for_causal_masks(state.graph)


def onednn(state: State) -> int:
    """Linear layers in oneDNN, on a processor where torch's BLAS is slow."""
    return use_onednn(state.graph, state.captured) if _compat.blas_is_slow() else 0


def regions(state: State) -> int:
    """One region for layers that are alike. It is only lowered: reports and diffs go on showing every layer."""
    shared, count = share_regions(state.module, state.graph, Layers.of(state.captured, state.match))
    state.regions = shared if count else None
    return count
