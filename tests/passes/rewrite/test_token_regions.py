"""Regions of flattened tokens: mixtures of experts under one selection, in the spellings of transformers, with the
negative twin of every step of the proof."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import transformers.integrations.moe  # noqa: F401  registers the grouped product
from torch import Tensor

from tests.helpers.graphs import assert_rows, push
from tests.passes.ops.test_rules import VISUAL, make

EXPERTS, WIDTH, K = 4, 8, 2
BATCHES = pytest.mark.parametrize("batch", [1, 3])
grouped_mm = torch.ops.transformers.grouped_mm_fallback


def parameters() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(EXPERTS, WIDTH), torch.randn(EXPERTS, WIDTH, 10), torch.randn(EXPERTS, 5, WIDTH)]


def route(tokens: Tensor, router: Tensor, k: int = K) -> tuple[Tensor, Tensor]:
    weights, ids = torch.topk(F.linear(tokens, router).softmax(-1), k, dim=-1)
    weights /= weights.sum(-1, keepdim=True)
    return weights, ids


def grouped(
    x: Tensor,
    router: Tensor,
    up: Tensor,
    down: Tensor,
    *,
    k: int = K,
    offsets: Callable[[Tensor, Tensor], Tensor] | None = None,
    sort: Callable[[Tensor], tuple[Tensor, Tensor]] = torch.sort,
    divide: int = 0,
    undo: Callable[[Tensor, Tensor], Tensor] | None = None,
    lowest: int = 0,
) -> Tensor:
    """Sorted by expert, one product for each group, sorted back."""
    tokens = x.view(-1, WIDTH)
    weights, ids = route(tokens, router, k)
    values, order = sort(ids.reshape(-1))
    counts = torch.histc(values.float(), bins=EXPERTS, min=lowest, max=EXPERTS - 1)
    ends = torch.cumsum(counts, dim=0, dtype=torch.int32) if offsets is None else offsets(ids, values)
    chosen = tokens[order // (divide or k)]
    gate, value = grouped_mm(chosen, up, offs=ends).chunk(2, dim=-1)
    out = grouped_mm(F.silu(gate) * value, down, offs=ends) * weights.reshape(-1)[order].unsqueeze(-1)
    if undo is None:
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(order.size(0))
        out = out[inverse]
    else:
        out = undo(out, order)
    return out.view(tokens.shape[0], k, WIDTH).sum(1).reshape(x.shape)


def one_expert(x: Tensor, router: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return grouped(x, router, up, down, k=1)


def batched(x: Tensor, router: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """One product for each copy of a token."""
    tokens = x.view(-1, WIDTH)
    weights, ids = route(tokens, router)
    experts = ids.reshape(-1)
    copies = tokens.repeat_interleave(K, dim=0)
    gate, value = torch.bmm(copies.unsqueeze(1), up[experts]).squeeze(1).chunk(2, dim=-1)
    out = torch.bmm(down[experts].transpose(1, 2), (F.silu(gate) * value).unsqueeze(-1)).squeeze(-1)
    out = out * weights.reshape(-1).unsqueeze(-1)
    return out.view(tokens.shape[0], K, WIDTH).sum(dim=1).reshape(x.shape)


def heads(x: Tensor, router: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """A norm for each head, with batch, sequence and heads in one dimension."""
    return F.rms_norm(x.unflatten(-1, (2, 4)).reshape(-1, 4), (4,)).reshape(x.shape)


def every_expert(x: Tensor, router: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Two sorts in one region, a shared expert, and a bias that is looked up."""
    tokens = x.view(-1, WIDTH)
    bias = router[route(tokens, router, 1)[1].reshape(-1)]
    return (grouped(tokens, router, up, down) + F.silu(tokens) + bias).view(x.shape)


def scaled_experts(x: Tensor, router: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """A scale of each expert is looked up for all choices of a token at once."""
    weights, ids = route(x.view(-1, WIDTH), router)
    scale = (weights * router[:, 0][ids]).sum(-1, keepdim=True)
    return grouped(x, router, up, down) * scale.view(*x.shape[:2], 1)


@BATCHES
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    "fn",
    [grouped, one_expert, batched, every_expert, scaled_experts],
    ids=["grouped", "one expert", "batched", "two", "scaled"],
)
def test_region_runs_on_kept_rows(fn: Callable[..., Tensor], dynamic: bool, batch: int) -> None:
    if fn is every_expert and dynamic:
        pytest.skip("the size of an inner view is read, which keeps it in full")
    visual, x = VISUAL[:batch].clone(), make("BSW", batch)
    with torch.no_grad():
        done = push(fn, visual, x, *parameters(), out_of_place=True, dynamic=dynamic)
        full = fn(x, *parameters())
    assert done.stops == []
    assert set(done.selected) == {"input"}, done.after
    assert done.after.count("sort") == done.before.count("sort"), "the original is erased"
    assert_rows(done.result, full, visual, tolerance=1e-5)


def of_other_values(ids: Tensor, values: Tensor) -> Tensor:
    return torch.histc((ids[..., 0] * 1.0).repeat(K), bins=EXPERTS, min=0, max=EXPERTS - 1).cumsum(0, dtype=torch.int32)


def twice(ids: Tensor, values: Tensor) -> Tensor:
    return torch.histc(values.float(), bins=EXPERTS, min=0, max=2 * EXPERTS).cumsum(0, dtype=torch.int32)


GROUPS = "its groups are not counted from the values that sorted its rows"
DECLINED: dict[str, tuple[Callable[..., Tensor], str, str]] = {
    "groups of other values": (partial(grouped, offsets=of_other_values), "grouped_mm", GROUPS),
    "groups of several values": (partial(grouped, offsets=twice), "grouped_mm", GROUPS),
    "groups that leave values out": (partial(grouped, lowest=1), "grouped_mm", GROUPS),
    "descending": (partial(grouped, sort=partial(torch.sort, descending=True)), "index_put", "no rule"),
    "not undone": (partial(grouped, undo=lambda out, order: out), "sort", "along the rows"),
    "undone by itself": (partial(grouped, undo=lambda out, order: out[order]), "sort", "along the rows"),
    "another token": (partial(grouped, divide=4), "floordiv", "divided by another number"),
    "heads as tokens": (heads, "reshape", "splits or merges"),
    "neighbours mixed": (
        lambda x, *ps: grouped(x.view(-1, WIDTH).roll(1, 0).view(x.shape), *ps),
        "roll",
        "it moves the rows",
    ),
    "summed over tokens": (lambda x, *ps: x.view(-1, WIDTH).cumsum(0).view(x.shape), "cumsum", "works along the rows"),
}


@BATCHES
@pytest.mark.parametrize("name", DECLINED)
def test_region_that_is_not_row_by_row_stays_in_full(name: str, batch: int) -> None:
    fn, operation, reason = DECLINED[name]
    visual, x = VISUAL[:batch], make("BSW", batch)
    with torch.no_grad():
        done = push(fn, visual, x, *parameters(), out_of_place=True)
        full = fn(x, *parameters())
    assert (operation, True) in [(s.operation, reason in s.reason) for s in done.stops], done.stops
    assert_rows(done.result, full, visual, tolerance=1e-5)


def tiles(
    x: Tensor, router: Tensor, up: Tensor, down: Tensor, *, times: int = EXPERTS, order: str = "experts first"
) -> Tensor:
    """Every expert on every token, the tokens copied once for each, as Llama 4 has it."""
    tokens = x.reshape(-1, WIDTH)
    scores = F.linear(tokens, router).sigmoid()
    weight = scores.transpose(0, 1) if order == "experts first" else scores
    copies = tokens.repeat(times, 1) if order == "experts first" else tokens.repeat(1, times).view(-1, WIDTH)
    copies = copies * weight.reshape(-1, 1)
    gate, value = torch.bmm(copies.view(EXPERTS, -1, WIDTH), up).chunk(2, dim=-1)
    out = torch.bmm(F.silu(gate) * value, down).view(-1, WIDTH)
    return out.reshape(times, -1, WIDTH).sum(dim=0).reshape(x.shape)


@BATCHES
@pytest.mark.parametrize("dynamic", [False, True])
def test_all_tokens_copied_for_every_expert(batch: int, dynamic: bool) -> None:
    visual, x = VISUAL[:batch], torch.randn(batch, VISUAL.shape[1], WIDTH)
    inputs = [x, *parameters()]
    done = push(tiles, visual, *inputs, dynamic=dynamic)
    assert_rows(done.result, tiles(*inputs), visual, tolerance=1e-5)
    assert not done.stops
    assert done.selected == ["input"]


@BATCHES
def test_tokens_that_change_places_with_experts(batch: int) -> None:
    """Copies next to each other, read as if they were one after the other: every row of the result needs others."""
    visual, x = VISUAL[:batch], torch.randn(batch, VISUAL.shape[1], WIDTH)
    inputs = [x, *parameters()]
    done = push(partial(tiles, order="tokens first"), visual, *inputs)
    assert_rows(done.result, tiles(*inputs, order="tokens first"), visual, tolerance=1e-5)
    assert done.stops
