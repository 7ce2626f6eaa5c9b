"""Graphs around one operation of PyTorch's, with rows selected behind it, before and after the passes.

Around the operation stand what makes a rewrite wrong: a second reader of each operand before it and after it, a view of
the operand beside it, and writes to the operand before, after and through the view. The graph as it was says what is
right.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from opskip_compile.passes.graph.origin import captured_place
from opskip_compile.passes.normalize.cleanup import copy_graph, remove_dead
from opskip_compile.passes.normalize.functionalize import write_out_of_place
from opskip_compile.passes.refusal import Refusal, Why
from opskip_compile.passes.rewrite.cancel import cancel
from opskip_compile.passes.rewrite.pushdown import Pushdown
from opskip_compile.passes.rewrite.selection import RowSet, is_selection
from opskip_compile.passes.runtime import select_rows
from tests.helpers.samples import Called, Observed, call, calls, copied, entries, observe, same, samples_of, types_of
from tests.helpers.samples import with_out as written_to_memory

FURTHER = 4  # samples of each type but the first
PARTS = 2  # of a result of several values
SUBJECT = "subject"


@dataclass(frozen=True)
class Surroundings:
    """What stands around the operation.

    Attributes:
        fresh: its operands are made in the graph; else they are the graph's inputs.
        view: a view of the first operand is made before it and read after it.
        late: the operands are read after it, too.
        write: ``before`` or ``after`` it the first operand is written to, or ``view``: before it through a view.
        at_end: the rows are selected at the end, else at once.
    """

    fresh: bool = True
    view: bool = False
    late: bool = True
    write: str = ""
    at_end: bool = True


READ = Surroundings()
EVERY = (
    READ,
    Surroundings(fresh=False, view=True),
    Surroundings(late=False),
    Surroundings(view=True),
    Surroundings(late=False, write="after"),
    Surroundings(late=False, write="after", at_end=False),
    Surroundings(write="view"),
    Surroundings(write="before"),
)
# What writes nothing itself is no other with fewer readers.
OF_PURE = tuple(each for each in EVERY if each not in EVERY[2:4])


@dataclass
class Tally:
    """What became of the graphs of one operation.

    Attributes:
        samples: of PyTorch's, each of which was drawn once.
        calls: spellings of them that PyTorch took.
        refused: spellings that it did not take.
        graphs: graphs that were rewritten and compared.
        pushed: of these, where the selection moved above the operation.
        kept: where it was left, since the whole result is read as well.
        declined: where it stayed, by kind of reason.
        skipped: graphs that do not run as they were.
        wrong: graphs that give something else, and how.
    """

    samples: int = 0
    calls: int = 0
    refused: int = 0
    graphs: int = 0
    pushed: int = 0
    kept: int = 0
    declined: Counter[str] = field(default_factory=Counter)
    skipped: int = 0
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Template:
    """The graph without a selection.

    Attributes:
        graph: returns the subject's result first, then what the readers read.
        inputs: examples of its inputs.
        results: nodes whose rows may be selected, with examples.
    """

    graph: fx.Graph
    inputs: tuple[Tensor, ...]
    results: tuple[tuple[fx.Node, Tensor], ...]


class _Builder:
    """A graph that runs while it is written, so that every node has an example."""

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.values: dict[fx.Node, Any] = {}

    def input(self, value: Tensor) -> fx.Node:
        node = self.graph.placeholder(f"t{len(self.values)}")
        return self._note(node, value)

    def call(self, kind: str, target: Any, args: Any, kwargs: Any = None, name: str | None = None) -> fx.Node:
        node = self.graph.create_node(kind, target, args, kwargs or {}, name=name)
        real = fx.node.map_arg((node.args, node.kwargs), self.values.__getitem__)
        torch.default_generator.manual_seed(0)
        return self._note(node, call(kind, target, *real))

    def _note(self, node: fx.Node, value: Any) -> fx.Node:
        self.values[node] = value
        # A snapshot: later writes may change the shape of the value itself.
        node.meta["example_value"] = _snapshot(value)
        return node

    def read(self, node: fx.Node, number: int) -> fx.Node:
        """A reader of all of a value."""
        return self.call("call_function", torch.add, (node, number))

    def write(self, node: fx.Node) -> None:
        """A write to all of a value."""
        logical = self.values[node].dtype == torch.bool
        self.call("call_method", "logical_not_" if logical else "mul_", (node,) if logical else (node, 2))


def _snapshot(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach() if value.layout == torch.strided else value
    if isinstance(value, tuple | list) and type(value) in (tuple, list):
        return tuple(_snapshot(part) for part in value)
    return value


def template(called: Called, around: Surroundings) -> Template:
    """Write the graph; raises what its operations raise."""
    build = _Builder()
    tensors = called.tensors()
    inputs = [build.input(copied(x)) for x in tensors]
    examples = tuple(copied(x) for x in tensors)
    operands = list(inputs)
    if around.fresh:
        for i, node in enumerate(inputs):
            plain = tensors[i].dtype == torch.bool
            args = (node,) if plain else (node, 1)
            operands[i] = build.call("call_function", torch.clone if plain else torch.mul, args)
    reads = [build.read(node, 1) for node in operands]
    view = None
    if operands and (around.view or around.write == "view"):
        view = build.call("call_function", operator.getitem, (operands[0], None))
    if operands and around.write in ("before", "view"):
        build.write(operands[0] if around.write == "before" or view is None else view)
    args, kwargs = called.mapped({id(x): node for x, node in zip(tensors, operands, strict=True)})
    subject = build.call(called.kind, called.target, args, kwargs, name=SUBJECT)
    value = build.values[subject]
    if value is None and operands:  # as with an assignment
        results = [operands[0]]
    elif isinstance(value, tuple | list):
        places = [i for i, part in enumerate(value) if isinstance(part, Tensor)][:PARTS]
        results = [build.call("call_function", operator.getitem, (subject, i)) for i in places]
    else:
        results = [subject]
    if operands and around.write == "after":
        build.write(operands[0])
    if around.late:
        reads += [build.read(node, 2) for node in operands]
        if operands:
            late = build.call("call_function", operator.getitem, (operands[0], None))
            reads.append(build.read(late, 3))
    if view is not None:
        reads.append(build.read(view, 4))
    build.graph.output((tuple(results), tuple(reads)))
    build.graph.output_node().meta["example_value"] = None
    selectable = [(node, _snapshot(build.values[node])) for node in results if isinstance(build.values[node], Tensor)]
    return Template(build.graph, examples, tuple(selectable))


@dataclass(frozen=True)
class Chosen:
    """Rows of the result number ``which``: its dimension ``dim``, in a batch of one element or of its first size."""

    which: int
    dim: int
    rows: Tensor
    stream: Tensor


def choices(template: Template, every_dim: bool, turn: int) -> Iterator[Chosen]:
    """Every dimension as that of the rows, or one of them in turn."""
    for which, (_, value) in enumerate(template.results):
        dims = [(dim, 1) for dim in range(value.dim())]
        dims += [(dim, value.shape[0]) for dim in range(1, value.dim()) if value.shape[0] > 1]
        dims = [(dim, batch) for dim, batch in dims if value.shape[dim]]
        for dim, batch in dims if every_dim or not dims else [dims[turn % len(dims)]]:
            size = value.shape[dim]
            kept = min(size, max(2, size // 2))
            generator = torch.Generator().manual_seed(size * 100 + dim)
            orders = [torch.randperm(size, generator=generator)[:kept] for _ in range(batch)]
            yield Chosen(which, dim, torch.stack(orders), torch.empty(batch, size, 1))


def check_graph(called: Called, around: Surroundings, built: Template, chosen: Chosen, tally: Tally) -> None:
    """Rewrite the graph and lay it beside the graph as it was."""
    where = f"{called.label}, dimension {chosen.dim}, batch {len(chosen.rows)}, {around}"
    plain = selecting(built, chosen, around)
    try:
        expected = _run(plain, built, chosen)
    except Exception:
        tally.skipped += 1
        return
    tally.graphs += 1
    try:
        graph, stops = rewritten(plain, chosen)
        actual = _run(graph, built, chosen)
    except Exception as error:
        tally.wrong.append(f"{where}: {type(error).__name__}: {error}"[:600])
        return
    difference = _difference(expected, actual)
    if difference:
        tally.wrong.append(f"{where}: {difference}")
    _count(graph, stops, tally, where)


def selecting(built: Template, chosen: Chosen, around: Surroundings) -> fx.Graph:
    """The graph with rows of a result in place of the result."""
    graph = copy_graph(built.graph)
    output = graph.output_node()
    results, reads = output.args[0]  # type: ignore[misc]
    results = list(results)  # type: ignore[arg-type]
    with graph.inserting_before(next(iter(graph.nodes))):
        rows = graph.placeholder("rows")
    rows.meta["example_value"] = chosen.rows
    result = results[chosen.which]
    inputs = list(graph.find_nodes(op="placeholder"))
    with graph.inserting_after(output.prev if around.at_end else inputs[-1] if result.op == "placeholder" else result):
        results[chosen.which] = graph.call_function(select_rows, (result, rows, chosen.dim))
    output.args = ((tuple(results), reads),)
    return graph


def rewritten(plain: fx.Graph, chosen: Chosen) -> tuple[fx.Graph, list[Refusal]]:
    """The graph after the passes, and where selections stopped."""
    graph = copy_graph(plain)
    write_out_of_place(graph)
    remove_dead(graph)
    inputs = list(graph.find_nodes(op="placeholder"))
    with graph.inserting_after(inputs[-1]):
        n = graph.call_method("size", (inputs[0], 1))
    n.meta["example_value"] = chosen.rows.shape[1]
    stops = Pushdown(graph, {"visual": RowSet("visual", inputs[0], inputs[0], n)}, chosen.stream).run()
    cancel(graph)
    remove_dead(graph)
    graph.lint()
    return graph, stops


def _run(graph: fx.Graph, built: Template, chosen: Chosen) -> list[Any]:
    """What the graph returns, and what it left in its inputs."""
    inputs = [copied(x) for x in built.inputs]
    torch.default_generator.manual_seed(0)
    results = fx.Interpreter(nn.Module(), graph=graph).run(chosen.rows, *inputs)
    return [*results[0], *results[1], *inputs]


def _difference(expected: list[Any], actual: list[Any]) -> str:
    for i, (one, other) in enumerate(zip(expected, actual, strict=True)):
        if not isinstance(one, Tensor):
            continue
        if one.shape != other.shape or one.dtype != other.dtype:
            return f"value {i} is {other.dtype}{list(other.shape)}, not {one.dtype}{list(one.shape)}"
        if not same(one, other) and not _close(one, other):
            return f"value {i} differs: {one.flatten()[:4].tolist()} became {other.flatten()[:4].tolist()}"
    return ""


def _close(one: Tensor, other: Tensor) -> bool:
    """Vector instructions round the last bit in another way than the rest of a row does."""
    if not (one.is_floating_point() or one.is_complex()):
        return False
    return torch.allclose(one, other, rtol=1e-9, atol=1e-9, equal_nan=True)


def _count(graph: fx.Graph, stops: list[Refusal], tally: Tally, where: str) -> None:
    tally.wrong += [f"{where}: {stop.operation}: {stop.reason}" for stop in stops if stop.why is Why.SURPRISE]
    staying = [source for source in _sources(graph) if _is_subject(source)]
    if not staying:
        tally.pushed += 1
        return
    at_subject = {source.name for source in staying} | {SUBJECT}
    # A region of flattened tokens may have been tried instead; it names the node that made it impossible.
    reasons = sorted(stops, key=lambda stop: stop.node not in at_subject)
    tally.declined.update(stop.why.value for stop in reasons[:1])
    if not reasons:
        if all(any(not is_selection(user) for user in source.users) for source in staying):
            tally.kept += 1
        else:
            tally.wrong.append(f"{where}: declined without a reason")


def _sources(graph: fx.Graph) -> list[fx.Node]:
    return [node.args[0] for node in graph.nodes if is_selection(node)]  # type: ignore[misc]


def _is_subject(node: fx.Node) -> bool:
    if captured_place(node) == SUBJECT and not node.name.endswith("_kept"):
        return True
    whole = node.args[0] if node.target is operator.getitem else None
    return isinstance(whole, fx.Node) and captured_place(whole) == SUBJECT and not whole.name.endswith("_kept")


def check_operation(
    name: str, most: int | None = None, *, every_type: bool = False, every_dim: bool = True, aten_too: bool = True
) -> Tally:
    """All graphs of the entry ``name``, or of ``most`` samples of each of its operations.

    With ``every_type`` some samples of the further types that it takes, whose promotion is another.
    """
    tally = Tally()
    for info in entries()[name]:
        for at, dtype in enumerate(types_of(info, every_type)):
            samples = samples_of(info, dtype, min(most or FURTHER, FURTHER) if at else most, name)
            tally.samples += len(samples)
            for args, kwargs in samples:
                for called in calls(name, args, kwargs, aten_too=aten_too):
                    _check_call(called, tally, every_dim and not at)
    return tally


def _check_call(called: Called, tally: Tally, every_dim: bool) -> None:
    seen = observe(called)
    if seen is None:
        tally.refused += 1
        return
    _check_surroundings(called, seen, tally, every_dim)
    for with_memory in written_to_memory(called, seen):
        writing = observe(with_memory)
        if writing is not None:
            _check_surroundings(with_memory, writing, tally, every_dim)


def _check_surroundings(called: Called, seen: Observed, tally: Tally, every_dim: bool) -> None:
    tally.calls += 1
    for around in EVERY if seen.changed else OF_PURE:
        try:
            built = template(called, around)
        except Exception:
            tally.skipped += 1
            continue
        whole = every_dim and around in EVERY[:3]
        for chosen in choices(built, whole, tally.calls + tally.graphs):
            check_graph(called, around, built, chosen, tally)
