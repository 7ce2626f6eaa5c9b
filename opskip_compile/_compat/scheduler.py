"""The order in which Inductor's scheduler runs what reads a buffer and what changes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opskip_compile._compat.patches import Patch, torch_is_older_than


def _ordered(change_loops: Callable[..., None]) -> Callable[..., None]:
    from torch._inductor.dependencies import StarDep, WeakDep
    from torch.utils._ordered_set import OrderedSet

    def recompute_size_and_body(self: Any, *args: Any, **kwargs: Any) -> None:
        if not order_of_mutations.is_used_here:  # another thread lowers a graph that is not ours
            change_loops(self, *args, **kwargs)
            return
        order = [dep for dep in self.read_writes.reads if isinstance(dep, WeakDep | StarDep)]
        change_loops(self, *args, **kwargs)
        reads = self.read_writes.with_read(OrderedSet(order)) if order else self.read_writes
        self.set_read_writes(reads.rename(self.mutation_renames))

    return recompute_size_and_body


def _place() -> tuple[Any, Any]:
    from torch._inductor.scheduler import SchedulerNode

    return SchedulerNode, "recompute_size_and_body"


order_of_mutations = Patch(_place, _ordered, needed=torch_is_older_than(2, 14))
"""Mend Inductor for the CPU, which may run a reader before the scatter whose result it reads.

Where its scheduler changes the loops of a node, it takes the node's dependencies from the new body. There a mutated
buffer has its first name, so the reader no longer waits for the mutation; torch 2.11 also drops the order between an
earlier reader and a mutation, which https://github.com/pytorch/pytorch/pull/177816 mended. Gradients of a selection are
scatters: without this some came out wrong. Nothing else of the scheduler is changed. torch 2.14 renames by itself.
"""
