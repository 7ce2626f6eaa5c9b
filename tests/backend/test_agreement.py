"""Processes that exchange rows: they skip alike, or all of them run dense, or all of them say what is wrong."""

from __future__ import annotations

import os
import warnings
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed._functional_collectives as functional
from torch import Tensor, distributed

import opskip_compile as opskip
from opskip_compile.backend import agreement
from opskip_compile.backend.row_tokens import InputTokens
from opskip_compile.passes.analysis.scored import SPLIT
from opskip_compile.passes.ops.collectives import HANDED
from tests.helpers.own_decoder import EAGER, Decoder, visual
from tests.helpers.processes import several

pytestmark = pytest.mark.usefixtures("fresh")
HIDDEN = torch.randn(2, 12, 16, generator=torch.Generator().manual_seed(1))


class Split(Decoder):
    """Each of two processes has one half of the FFN's features, in plain tensors, and they are summed."""

    def decode(self, hidden: Tensor, visual: Tensor, skip: str = "") -> Tensor:
        drop = visual[..., None]
        half = slice(8 * distributed.get_rank(), 8 * distributed.get_rank() + 8)
        for i, (attention, ffn) in enumerate(zip(self.attention, self.ffn, strict=True)):
            q, k, v, _ = (x.unflatten(-1, (2, -1)).transpose(1, 2) for x in attention(self.norm(hidden)).chunk(4, -1))
            update = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            hidden = hidden + update.transpose(1, 2).flatten(2)
            inner = torch.nn.functional.silu(self.norm(hidden)[..., half])
            update = torch.nn.functional.linear(inner, ffn.weight[:, half])
            distributed.all_reduce(update)
            hidden = hidden + (update.masked_fill(drop, 0) if f"{i}f" in skip else update)
        return self.last(hidden)


class Sequence(Split):
    """Each process has its own rows between the operators; an FFN reads those of all of them."""

    def decode(self, hidden: Tensor, visual: Tensor, skip: str = "") -> Tensor:
        drop, world = visual[..., None], distributed.group.WORLD
        half = slice(8 * distributed.get_rank(), 8 * distributed.get_rank() + 8)
        for i, (attention, ffn) in enumerate(zip(self.attention, self.ffn, strict=True)):
            q, k, v, _ = (x.unflatten(-1, (2, -1)).transpose(1, 2) for x in attention(self.norm(hidden)).chunk(4, -1))
            update = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            hidden = hidden + update.transpose(1, 2).flatten(2)
            rows = functional.all_gather_tensor(self.norm(hidden), 1, world)
            update = torch.nn.functional.linear(torch.nn.functional.silu(rows[..., half]), ffn.weight[:, half])
            update = functional.reduce_scatter_tensor(update, "sum", 1, world)
            hidden = hidden + (update.masked_fill(drop, 0) if f"{i}f" in skip else update)
        return self.last(hidden)


def run(
    rank: int,
    specs: tuple[str, ...],
    starts: tuple[int, int] = (2, 2),
    broken: int = -1,
    by_variable: bool = False,
    kind: type[Split] = Split,
    batch: int = 2,
) -> dict[str, Any]:
    """One process: its result, those of its eager model, dense and skipped, and what was said."""
    hidden = HIDDEN[:batch]
    spec = specs[rank % len(specs)]
    if by_variable:
        os.environ["OPSKIP_SCHEDULE"] = spec
    options = EAGER if by_variable else {"schedule": spec, **EAGER}
    model = kind()
    mask = visual(batch, 12, starts[rank], 9)
    fails = mock.patch("opskip_compile.passes.steps.insert_skips", side_effect=ValueError("on purpose"))
    with warnings.catch_warnings(record=True) as said, fails if rank == broken else mock.MagicMock():
        warnings.simplefilter("always")
        got = torch.compile(model, backend="opskip", options=options)(hidden, mask)
    report = opskip.last_report()
    return {
        "got": got,
        "dense": model(hidden, mask),
        "skipped": model(hidden, mask, skip="1f"),
        "said": [str(each.message) for each in said if each.category is opskip.NothingSkippedWarning],
        "left out": report.skipped,
        "kept": (report.flops_before or 0) > (report.flops_after or 0),
        "stops": [stop.reason for stop in report.stops],
        "misses": [miss.reason for miss in report.misses],
    }


def test_plain_collectives_take_kept_rows() -> None:
    for each in several(run, 2, ("attend:1",)):
        torch.testing.assert_close(each["got"], each["skipped"], rtol=1e-4, atol=1e-5)
        assert (each["skipped"] - each["dense"]).abs().max() > 1e-2
        assert (each["left out"], each["kept"], each["said"]) == (("1.ffn",), True, [])


@pytest.mark.parametrize("batch", [1, 2])
def test_rows_that_are_handed_from_process_to_process_stay(batch: int) -> None:
    """Sequence parallel: each process has other visual rows, and what is exchanged stays whole."""
    for each in several(run, 2, ("attend:1",), (2, 5), -1, False, Sequence, batch):
        torch.testing.assert_close(each["got"], each["skipped"], rtol=1e-4, atol=1e-5)
        assert (each["skipped"] - each["dense"]).abs().max() > 1e-2
        assert (each["left out"], each["kept"], each["said"]) == (("1.ffn",), False, [])
        assert any(HANDED in stop for stop in each["stops"])


def test_heads_in_plain_tensors_give_no_scores() -> None:
    for each in several(run, 2, ("attend@keep=0.5:1",)):
        torch.testing.assert_close(each["got"], each["dense"], rtol=1e-4, atol=1e-5)
        assert each["misses"] == [SPLIT]


@pytest.mark.parametrize("broken", [-1, 1], ids=["other schedules", "a pass fails on one"])
def test_a_difference_makes_all_of_them_dense(broken: int) -> None:
    specs = ("attend:1", "attend:0") if broken < 0 else ("attend:1",)
    for each in several(run, 2, specs, (2, 2), broken):
        torch.testing.assert_close(each["got"], each["dense"], rtol=1e-4, atol=1e-5)
        assert agreement.DIFFERENT in each["said"][-1]
        assert each["left out"] == ()


def test_one_skips_and_one_does_not() -> None:
    for each in several(run, 2, ("attend:1", "none"), (2, 2), -1, True):
        torch.testing.assert_close(each["got"], each["dense"], rtol=1e-4, atol=1e-5)
        assert agreement.DIFFERENT in each["said"][-1]


def other_rows(rank: int) -> str:
    with pytest.raises(Exception, match="the processes of a group have different visual rows") as failed:
        run(rank, ("attend:1",), (2, 3))
    return type(failed.value).__name__


def test_other_rows_in_one_process_end_all_of_them() -> None:
    assert several(other_rows, 2) == ["RuntimeError", "RuntimeError"]


def compiled_by_one(rank: int) -> str:
    if rank == 1:  # alive, and not a part of it
        return ""
    with (
        mock.patch.object(agreement, "TIMEOUT", timedelta(seconds=1)),
        pytest.raises(Exception, match=r"process 1 of \[0, 1\] has not compiled the same") as failed,
    ):
        run(rank, ("attend:1",))
    return str(failed.value)


def test_a_process_that_does_not_compile_is_named() -> None:
    assert "compile the model alike" in several(compiled_by_one, 2)[0]


def strict_on_one(rank: int) -> str:
    """The second process can't skip what it is told to, and raises; the first one would wait for it."""
    spec = "attend@keep=0.5:1" if rank else "attend:1"
    with pytest.raises(Exception, match=r"opskip|stays full") as failed:
        torch.compile(Split(), backend="opskip", options={"schedule": spec, "strict": True, **EAGER})(
            HIDDEN, visual(2, 12, 2, 9)
        )
    return str(failed.value)


def test_an_error_in_one_process_reaches_the_others() -> None:
    first, second = several(strict_on_one, 2)
    assert "another process can't compile this graph" in first
    assert "1.ffn stays full" in second


class Told(Split):
    """Names rows for a prompt with an image only, as a multimodal model does."""

    def forward(self, hidden: Tensor, visual: Tensor | None, skip: str = "") -> Tensor:
        if visual is None:
            return self.decode(hidden, torch.zeros(hidden.shape[:2], dtype=torch.bool), skip)
        return super().forward(hidden, visual, skip)


def without_image(rank: int, before: bool, length: int, twice: bool) -> tuple[str, bool]:
    """The second process gets no image: before anything is compiled, or after all is; then both get one again."""
    torch.compiler.reset()
    compiled, mask = (
        torch.compile(Told(), backend="opskip", options={"schedule": "attend:1", **EAGER}),
        visual(2, 12, 2, 9),
    )
    if not before:
        compiled(HIDDEN, mask)
    if twice:
        compiled(HIDDEN, None)
    try:
        compiled(HIDDEN[:, :length], None) if rank else compiled(HIDDEN, mask)
    except Exception as error:
        said = str(error)
    else:
        said = ""
    got = compiled(HIDDEN, mask)
    return said, torch.allclose(got, Told()(HIDDEN, mask, skip="1f"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("twice", [False, True], ids=["it compiles", "it has compiled"])
@pytest.mark.parametrize("length", [12, 7])
def test_one_process_gets_no_image(length: int, twice: bool) -> None:
    """It would run, or compile, other code than the others: all of them raise, and can go on."""
    for said, right in several(without_image, 2, False, length, twice, patience=60):
        assert agreement.OTHER_CODE in said
        assert right


def test_one_process_gets_no_image_first() -> None:
    for said, right in several(without_image, 2, True, 7, False, patience=60):
        assert agreement.OTHER_CODE in said
        assert right


def otherwise(rank: int) -> str:
    """To the second process a mask is of other tokens than its graph was compiled for: it runs the dense one."""

    def checking(self: InputTokens, run: Any, dense: Any) -> Any:
        return dense()

    compiled = torch.compile(Split(), backend="opskip", options={"schedule": "attend:1", **EAGER})
    other = mock.patch.object(InputTokens, "checking", checking) if rank else mock.MagicMock()
    with other, pytest.raises(RuntimeError, match="do not run the same code") as failed:
        compiled(HIDDEN, visual(2, 12, 2, 9))
    return type(failed.value).__name__


def test_other_tokens_in_one_process_end_all_of_them() -> None:
    assert several(otherwise, 2, patience=60) == ["RuntimeError", "RuntimeError"]


def by_itself(rank: int) -> str:
    """The second process has forgotten its code, and compiles it again."""
    model, mask = Split(), visual(2, 12, 2, 9)
    compiled = torch.compile(model, backend="opskip", options={"schedule": "attend:1", **EAGER})
    for _ in range(2):  # the graph marks its input, for which it is compiled again
        compiled(HIDDEN, mask)
    if rank:
        torch.compiler.reset()
    with pytest.raises(Exception, match="do not run the same code") as failed:
        compiled(HIDDEN, mask)
    return type(failed.value).__name__


def test_one_process_compiles_again() -> None:
    assert several(by_itself, 2, patience=60)[0] == "RuntimeError"
