"""The other half of `rule_cases`: functions where a rule has to decline, with the reason."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from opskip_compile.passes.collectives import all_gather, all_reduce, reduce_scatter
from tests.helpers.rule_cases import (
    ALONE,
    ATTENTION,
    NO_BATCH,
    NOTHING,
    ONE,
    POINTWISE,
    REDUCTIONS,
    SDPA,
    THREE,
    VIEW,
    Case,
    flat,
    scattered,
    sdpa,
)

DECLINED = (
    Case(
        "view renorm",
        lambda x: torch.renorm(x.reshape(-1, 8), 2, 0, 1.0).view(3, -1, 8),
        reason="no rule for renorm",
        batches=THREE,
    ),
    Case("view", lambda x: x.view(x.shape[0], -1), reason=VIEW, batches=ONE),
    Case(
        "view",
        lambda x: x.view(-1, 7, 4).view(3, 2, 7, 4),
        "BHSD",
        2,
        THREE,
        f"elements of the batch: {VIEW}",
    ),
    Case("view", lambda x: x.view(torch.int32), reason="it reinterprets the data type"),
    Case("reshape", lambda x: x.transpose(1, 2).reshape(x.shape[0], 7, 8), reason=VIEW),
    Case("unflatten", lambda x: x.unflatten(1, (7, 1)), reason="the rows are split"),
    Case("flatten", lambda x: x.flatten(1, 2), reason="the rows are merged with another dimension", batches=ONE),
    Case("transpose", lambda x: x.transpose(0, 1), "SBW", reason=NO_BATCH, batches=THREE),
    Case("swapaxes", lambda x: x.swapaxes(axis0=0, axis1=1), "SBW", reason=NO_BATCH, batches=THREE),
    Case("permute", lambda x: x.permute(1, 0, 2), "SBW", reason=NO_BATCH, batches=THREE),
    Case("t", lambda x: x.t(), "SB", reason=NO_BATCH, batches=THREE),
    Case("mT", lambda x: x.relu().mT, "SB", reason=NO_BATCH, batches=THREE),
    Case("getitem", lambda x: x[None], "SW", reason="rows are the new dimension", batches=THREE),
    Case("unsqueeze", lambda x: x.unsqueeze(0), "SW", reason="rows are the new dimension", batches=THREE),
    Case("squeeze", lambda x: x.squeeze(1), reason="it squeezes the rows"),
    Case("squeeze", lambda x: x.unsqueeze(2).squeeze(), reason="it does not name one dimension", batches=THREE),
    Case(
        "squeeze",
        lambda x: x[None].squeeze(0, 1),
        dim=0,
        reason="it does not name one dimension",
        batches=ONE,
    ),
    Case("expand", lambda x: x.expand(-1, 7, -1), "B1W", reason="all rows are copies of one"),
    Case("broadcast_to", lambda x: x.broadcast_to(3, 7, 8), "SW", reason="all rows are copies", batches=THREE),
    Case("getitem", lambda x: x[:, 1:], "BWW", reason="it slices the rows"),
    Case("getitem", lambda x, i: x[:, i], "BSW i:S", reason="it indexes with a tensor or a computed number"),
    Case("getitem", lambda x: x[True], dim=2, reason="it indexes with a tensor", batches=ONE),
    Case("getitem", lambda x: x.median(-1)[0], reason="it takes a part of median, which has no rule"),
    Case("getitem", lambda x: x[:3], reason="elements of the batch: it slices the rows", batches=THREE),
    Case("chunk getitem", lambda x: x.chunk(1, 1)[0], reason="it cuts along the rows"),
    Case("split getitem", lambda x: x.split(7, dim=1)[0], reason="it cuts along the rows"),
    Case("tensor_split getitem", lambda x: x.tensor_split(1, 1)[0], reason="it cuts along the rows"),
    Case("unbind getitem", lambda x: x.unbind(0)[0], "HBSW", reason=NO_BATCH, batches=THREE),
    Case("cat", lambda x: torch.cat((x[:, 3:], x[:, :3]), 1), reason="it joins along the rows"),
    Case("stack", lambda *x: torch.stack(x, 1), " ".join(["BW"] * 7), reason="it joins along the rows"),
    *(
        Case(
            n,
            partial(getattr(torch, n), dim=0, keepdim=True),
            reason="it reduces over the rows",
            batches=THREE,
        )
        for n in ("all", "any", *REDUCTIONS)
    ),
    *(
        Case(n, partial(getattr(torch, n), dim=1), reason="it works along the rows")
        for n in ("softmax", "log_softmax", "cumsum", "cumprod")
    ),
    Case("layer_norm", lambda x: F.layer_norm(x, (7, 8)), reason="it normalises over the rows"),
    Case("einsum", lambda x: torch.einsum("bsw,btw->bst", x, x), reason="two operands are the same tensor"),
    Case(
        "einsum", lambda x, w: torch.einsum("bs...,...k->bsk", x, w), "BSW WK", reason="does not name every dimension"
    ),
    Case("einsum", lambda x, m: torch.einsum("bsw,ss->bsw", x, m), "BSW SS", reason="has the rows twice"),
    Case("slice", lambda x: torch.ops.aten.slice(x, 1, 0, 7), reason="it slices the rows"),
    Case("rms_norm", lambda x: F.rms_norm(x, (7, 8)), reason="it normalises over the rows"),
    Case("linear", lambda x, w: F.linear(x, w), "BWW SW", dim=2, reason="the rows are the output features"),
    Case("matmul", lambda x, y: x @ y, "BWW BWS", dim=2, reason="the rows are columns of the right operand"),
    Case("matmul", lambda x: x @ x, "BSS", reason="both operands are the same tensor"),
    Case("matmul", lambda x, y: x @ y, "BSW W", reason="an operand is a vector"),
    Case("matmul", lambda x, y: x @ y, "SW BWK", reason=NO_BATCH, batches=THREE),
    Case(
        "addmm",
        lambda x, w, b: torch.addmm(b, flat(x), w),
        "BSW WK SK",
        dim=0,
        reason="one vector",
        batches=ONE,
    ),
    Case("embedding", lambda x, w: F.embedding(x, w), "i:B SS", reason="the rows are embedding features"),
    *(
        Case(
            f"{n} getitem",
            lambda x, n=n: getattr(x, n)(*((7, 1) if n == "topk" else (1,)))[0],
            reason="works along the",
        )
        for n in ("topk", "sort")
    ),
    Case("max getitem", lambda x: x.max(0, keepdim=True)[0], reason="it reduces over the rows", batches=THREE),
    Case("min getitem", lambda x: x.min(0)[0], "HBSW", reason=NO_BATCH, batches=THREE),
    Case("max mul", lambda x, y: x.max() * y, "BSW 1SW", reason=NOTHING, batches=THREE),
    Case("min", lambda x, y: torch.min(x, y), "BSW SW", reason=NO_BATCH, batches=THREE),
    Case("argsort", lambda x: x.argsort(1), reason="it works along the rows"),
    Case("argmax", lambda x: x.argmax(0), "HBSW", reason=NO_BATCH, batches=THREE),
    Case("gather", lambda x, i: x.gather(1, i), "BSW i:BSK", reason="it works along the rows"),
    Case("gather", lambda x, i: x.gather(2, i), "BWW i:BSK", reason="an operand has fewer rows"),
    Case("scatter", lambda x, i, y: x.scatter(1, i, y), "BSW i:BSK BSW", reason="it works along the rows"),
    Case("one_hot", lambda x: F.one_hot(x, 7), "i:BD", 2, reason="the rows are the classes"),
    Case("getitem", lambda i, table: table[i], "i:B VS", reason="the rows are entries of the table"),
    Case("repeat_interleave", lambda x: x.repeat_interleave(7, 1), "B1W", reason="it repeats the rows"),
    Case("zeros_like", lambda x: torch.zeros_like(x), "1SW", reason=NOTHING, batches=THREE),
    Case("ones_like", lambda x: torch.ones_like(x), "1SW", reason=NOTHING, batches=THREE),
    Case("full_like", lambda x: torch.full_like(x, 2.0), "1SW", reason=NOTHING, batches=THREE),
    Case(
        "view_as_real",
        lambda x, y: torch.view_as_real(torch.complex(x, y)),
        "1SW 1SW",
        reason=NOTHING,
        batches=THREE,
    ),
    Case("view_as_complex", lambda x: torch.view_as_complex(x), "1SD2", reason=NOTHING, batches=THREE),
    Case("dropout", lambda x: F.dropout(x, 1.0), reason="dropout is active"),
    Case("movedim", lambda x: x.movedim(0, 1), "SBW", reason=NO_BATCH, batches=THREE),
    Case("adjoint", lambda x: x.relu().adjoint(), "SB", reason=NO_BATCH, batches=THREE),
    Case("narrow", lambda x: x.narrow(1, 0, 7), reason="it slices the rows"),
    Case("select", lambda x: x.select(0, 1), "HBSW", reason=NO_BATCH, batches=THREE),
    Case("flip", lambda x: x.flip(1), reason="it turns the rows round"),
    Case("roll", lambda x: x.roll(1, 1), reason="it moves the rows"),
    Case("softmin", lambda x: F.softmin(x, dim=1), reason="it works along the rows"),
    Case("logcumsumexp", lambda x: x.logcumsumexp(1), reason="it works along the rows"),
    *(
        Case(f"{n} getitem", lambda x, n=n: getattr(x, n)(1)[0], reason="it works along the rows")
        for n in ("cummax", "cummin")
    ),
    Case("kthvalue getitem", lambda x: x.kthvalue(1, 0, True)[0], reason="it works along the rows", batches=THREE),
    *(
        Case(n, lambda x, n=n: getattr(torch, n)(x, 0), "HBSW", reason=NO_BATCH, batches=THREE)
        for n in ("nansum", "nanmean", "count_nonzero", "argmin")
    ),
    Case("norm", lambda x: x.norm(dim=0), "HBSW", reason=NO_BATCH, batches=THREE),
    Case("vector_norm", lambda x: torch.linalg.vector_norm(x, 2, 0), "HBSW", reason=NO_BATCH, batches=THREE),
    Case("normalize", lambda x: F.normalize(x, dim=1), reason="it normalises over the rows"),
    Case("index_select", lambda x, i: x.index_select(1, i), "BWW i:7", reason="it chooses among the rows"),
    Case("scatter_add", lambda x, i, y: x.scatter_add(1, i, y), "BSW i:BSK BSW", reason="it works along the rows"),
    Case("take_along_dim", lambda x: x.take_along_dim(x.argsort(1), 1), reason="it works along the rows"),
    Case(SDPA, partial(sdpa, dropout_p=1.0), ATTENTION, 2, reason="attention dropout is active"),
    Case(SDPA, lambda x, v: sdpa(x, x, v), "BHSD BHSD", 2, reason="queries and keys are the same tensor"),
    Case(SDPA, sdpa, "BHWD BHKD BHKS", 3, reason="the rows are value features"),
    Case(SDPA, sdpa, f"{ATTENTION} b:SK", 2, THREE, reason=NO_BATCH),
    Case(SDPA, partial(sdpa, is_causal=True), "BSW BSW BSW", reason="is_causal without a dimension of heads"),
    Case("add", lambda x, y: x + y, "BSW SW", reason=NO_BATCH, batches=THREE),
    Case("opskip::all_reduce", lambda x: all_reduce(x, "sum", ALONE), "1SW", reason=NOTHING, batches=THREE),
    *(
        Case(name, exchange, shapes, dim, batches, "the processes exchange rows")
        for name, exchange in {
            "opskip::reduce_scatter": partial(scattered, dim=-1),
            "opskip::all_gather": lambda x: all_gather(x, 1, ALONE),
        }.items()
        for shapes, dim, batches in (("BSW", 1, THREE), ("SW", 0, ONE))
    ),
    Case("opskip::reduce_scatter", partial(scattered, dim=1), reason="the processes exchange rows"),
    Case("opskip::reduce_scatter", lambda x: reduce_scatter(x, "sum", 1, ALONE), reason="the processes exchange rows"),
    *(Case(n, f, " ".join(["1SW"] * k), reason=NOTHING, batches=THREE) for n, (k, f) in POINTWISE.items()),
)
