"""Random decoders that write in place: every spelling of a write, through views, beside second readers.

A decoder is drawn step by step as in `random_programs`. What a step writes to is memory that its branch has just made;
what it reads afterwards, it reads through views that were made before the write, after it, or both.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

import opskip_compile as opskip
from tests.helpers import decoders
from tests.helpers.decoders import Join, norm
from tests.helpers.random_decoders import Checked, Program, Switch, check, compiled, make_case, room
from tests.helpers.random_programs import WIDTH, Branch, heads, unheads, weight

STRIDE = 10**6  # decoders of one seed
View = Callable[[Tensor], Tensor]
# Of ``(batch, sequence, width)``; the first group leaves every row whole.
VIEWS: dict[str, View] = {
    "itself": lambda y: y,
    "heads": lambda y: y.view(*y.shape[:2], 2, -1),
    "heads first": lambda y: y.view(*y.shape[:2], 2, -1).transpose(1, 2),
    "width first": lambda y: y.mT,
    "permuted": lambda y: torch.permute(y, (1, 0, 2)),
    "flat": lambda y: y.flatten(0, 1),
    "flat view": lambda y: y.view(-1, y.shape[-1]),
    "half": lambda y: y[..., :8],
    "every second": lambda y: y[:, :, ::2],
    "first of two": lambda y: y.chunk(2, -1)[0],
    "second of two": lambda y: torch.split(y, [4, 12], dim=-1)[1],
    "third": lambda y: y.tensor_split(3, dim=2)[2],
    "narrow": lambda y: y.narrow(-1, 2, 5),
    "one feature": lambda y: y.select(-1, 3),
    "unbound": lambda y: y.unflatten(-1, (2, 8)).unbind(2)[1],
    "unsqueezed": lambda y: y.unsqueeze(1),
    "expanded": lambda y: y[:, None].expand(-1, 1, -1, -1),
    "detached": lambda y: y.detach(),
    "cast to its own type": lambda y: y.to(y.dtype),
    "contiguous": lambda y: y.contiguous(),
    "reshaped": lambda y: torch.reshape(y, (y.shape[0], y.shape[1], 4, 4)),
    "viewed as": lambda y: y.view_as(y),
    "squeezed": lambda y: y.unsqueeze(0).squeeze(0),
    "moved": lambda y: y.movedim(-1, 0),
    # Only some rows.
    "later rows": lambda y: y[:, 1:],
    "one row": lambda y: y[:, 0],
    "first rows": lambda y: y.narrow(1, 0, 2),
}


def _out_add(v: Tensor) -> Tensor:
    return torch.add(v, 0.5, out=v) if v.is_contiguous() else v.add_(0.5)


def _assign(v: Tensor) -> Tensor:
    v[...] = v.sin() * 0.5
    return v


def _assign_part(v: Tensor) -> Tensor:
    v[..., 0] = 0.25
    return v


def _index_put(v: Tensor) -> Tensor:
    return v.index_put_((torch.tensor([0]),), v[:1] * 0.5 + 1)


def _by_index(v: Tensor) -> Tensor:
    v[torch.tensor([0])] = v[:1] * 0.5 + 1
    return v


def _plus_equals(v: Tensor) -> Tensor:
    v += v.cos()
    return v


WRITES: dict[str, View] = {
    "add_": lambda v: v.add_(0.5),
    "iadd": lambda v: operator.iadd(v, 0.5),
    "imul": lambda v: operator.imul(v, v.sigmoid()),
    "+=": _plus_equals,
    "out": _out_add,
    "relu inplace": lambda v: F.relu(v, True),
    "leaky_relu by position": lambda v: F.leaky_relu(v, 0.1, True),
    "silu by name": lambda v: F.silu(v, inplace=True),
    "hardtanh by position": lambda v: F.hardtanh(v, -0.5, 0.5, True),
    "dropout inplace": lambda v: F.dropout(v, 0.5, False, True).mul_(0.7),
    "relu_": lambda v: v.relu_(),
    "torch.sigmoid_": torch.sigmoid_,
    "[...] =": _assign,
    "[..., 0] =": _assign_part,
    "index_put_": _index_put,
    "[index] =": _by_index,
    "copy_": lambda v: v.copy_(v.flip(-1)),
    "masked_fill_": lambda v: v.masked_fill_(v > 0.5, 0.1),
    "clamp_": lambda v: torch.clamp_(v, -0.5, 0.5),
    "mul_ of rows": lambda v: v.mul_(v.mean(-1, keepdim=True)),
    "div_": lambda v: v.div_(1 + v.abs().amax(-1, keepdim=True)),
    "index_fill_": lambda v: v.index_fill_(-1, torch.tensor([0]), 0.3),
    "index_add_": lambda v: v.index_add_(-1, torch.tensor([0]), v[..., :1] * 0.5),
    "scatter_": lambda v: v.scatter_(-1, torch.zeros_like(v, dtype=torch.int64)[..., :1], v[..., :1] * 2),
    "zero_": lambda v: v.zero_(),
    "addcmul_": lambda v: v.addcmul_(v, v, value=0.3),
    "lerp_": lambda v: v.lerp_(v.flip(-1), 0.5),
    "cumsum_": lambda v: v.cumsum_(-1).mul_(0.2),
    "tanh_ of exp_": lambda v: v.exp_().tanh_(),
    "__iadd__": lambda v: v.__iadd__(0.5),
    "__setitem__": lambda v: v.__setitem__(Ellipsis, 0.3) or v,
    "copy_ of broadcast": lambda v: v.copy_(v[..., :1].clone()),
}
SOURCES: dict[str, View] = {
    "scaled": lambda x: x * 1.5,
    "cloned": lambda x: x.clone(),
    "normed": norm,
    "product": lambda x: x @ decoders.W[0, 7],
    "joined": lambda x: torch.cat((x[..., 8:], -x[..., :8]), -1),
    "rooted": lambda x: x.abs().sqrt(),
}


@dataclass(frozen=True)
class Step:
    """Make a value, read it, write to it through a view, read it again in several ways."""

    source: str
    view: str
    write: str
    early: str
    late: str
    reads: tuple[bool, ...]

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What was written to, and what was read of it."""
        y = SOURCES[self.source](x)
        before, early, result, after = self.reads
        terms = [y.sin()] if before else []
        kept = VIEWS[self.early](y) if early else None
        written = WRITES[self.write](VIEWS[self.view](y))
        if result:
            terms.append(y + written.flatten()[:1])
        if kept is not None:
            terms.append(_shaped(kept, y))
        if after:
            terms.append(_shaped(VIEWS[self.late](y), y))
        total = y
        for term in terms:
            total = total + 0.5 * term
        return y, total

    def __str__(self) -> str:
        names = ("before", "early", "result", "after")
        reads = "+".join(name for name, on in zip(names, self.reads, strict=True) if on)
        return f"{self.source}: {self.write} to {self.view}, early {self.early}, late {self.late}, {reads}"


def _shaped(view: Tensor, y: Tensor) -> Tensor:
    """A view of ``y`` where it has as many elements, else what can be added to it: a number of each row or of all."""
    if view.numel() != y.numel():
        return view.mean(-1, keepdim=True) if view.shape[:2] == y.shape[:2] and view.dim() == 3 else view.mean()
    if view.shape[-3:] == (y.shape[1], 2, WIDTH // 2) or view.dim() == 2:
        return view.reshape(y.shape)
    if view.dim() == 4 and view.shape[1] == 2:
        return unheads(view)
    return view.mT if view.shape == y.mT.shape and view.shape != y.shape else view.reshape(y.shape)


def random_step(rng: Random) -> Step:
    names = [rng.choice(sorted(table)) for table in (SOURCES, VIEWS, WRITES, VIEWS, VIEWS)]
    return Step(*names, tuple(rng.random() < p for p in (0.5, 0.4, 0.3, 0.4)))


def random_in_place_program(rng: Random) -> tuple[Callable[[Tensor, Join, Tensor], Tensor], str]:
    """A decoder of one or two layers, and a line that says what is in it."""
    layers: list[tuple[Branch, Branch]] = []
    words: list[str] = []
    for _ in range(rng.randint(1, 2)):
        steps = [random_step(rng) for _ in range(3)]
        layers.append((_attention(rng, steps[:2]), _ffn(rng, steps[2])))
        words += map(str, steps)

    def program(h: Tensor, join: Join, features: Tensor) -> Tensor:
        for i, (attention, ffn) in enumerate(layers):
            h = join(h, i, attention=attention(h))
            h = join(h, i, ffn=ffn(h))
        return norm(h)

    return program, "; ".join(words)


def _attention(rng: Random, steps: list[Step]) -> Branch:
    wq, wk, wv, wo = (weight(rng, WIDTH, WIDTH) for _ in range(4))
    way = rng.randint(0, 3)

    def branch(h: Tensor) -> Tensor:
        x = norm(h)
        q, k, v = F.linear(x, wq), F.linear(x, wk), F.linear(x, wv)
        if way == 0:  # keys are made of the memory of queries
            q, k = steps[0](q)
        elif way == 1:
            q = steps[0](q)[1]
            k = steps[1](k)[1]
        elif way == 2:  # values and keys share memory
            k, v = steps[0](v)
            q = steps[1](q)[0]
        else:
            x = steps[0](x)[1]
            q = F.linear(x, wq)
            v = steps[1](v)[0]
        out = F.scaled_dot_product_attention(heads(q), heads(k), heads(v), is_causal=True)
        return F.linear(unheads(out), wo)

    return branch


def _ffn(rng: Random, step: Step) -> Branch:
    up, gate, down = (weight(rng, WIDTH, WIDTH) for _ in range(3))
    way = rng.randint(0, 2)

    def branch(h: Tensor) -> Tensor:
        x = norm(h)
        if way == 0:
            written, read = step(F.linear(x, up))
            return F.linear(written * F.linear(x, gate) + read, down)
        if way == 1:
            return F.linear(step(F.linear(x, up) * F.linear(x, gate).sigmoid())[1], down)
        return step(F.linear(F.silu(F.linear(x, up)), down))[1]

    return branch


class InPlaceProgram(Program):
    """A decoder of the kind above; the sums of its stream are in place or not."""

    def __init__(self, rng: Random) -> None:
        self.program, text = random_in_place_program(rng)
        join = decoders.add_in_place if rng.random() < 0.4 else decoders.add
        self.single = rng.random() < 0.3
        self.name = "in place"
        self.traits = {"what": text, "cache": "none", "batch": "1" if self.single else "2-6", "join": join.__name__}
        self.layers, self.switch = 0, Switch()
        self.run_compiled = compiled(
            lambda h, visual, features: self.program(opskip.mark_visual(h, visual), join, features), self.switch
        )
        self.program(torch.randn(1, 3, WIDTH), self._count, torch.zeros(1, 3, WIDTH))


@dataclass
class Ran:
    """What became of random decoders: operators that were skipped, of those asked for; and what came out wrong."""

    cases: int = 0
    wanted: int = 0
    skipped: int = 0
    whole: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.cases} cases, {self.skipped} of {self.wanted} operators skipped, "
            f"{self.whole} cases pushed down wholly, {len(self.wrong)} wrong"
        )

    def add(self, done: Checked) -> None:
        self.wanted += done.wanted
        self.skipped += len(done.skipped)
        self.whole += bool(done.skipped) and done.whole
        self.reasons.update(done.reasons)


def run_programs(numbers: Iterable[int], seed: int = 0, cases: int = 2) -> Ran:
    """Decoders of these numbers, each with some schedules and layouts."""
    ran = Ran()
    for number in numbers:
        with room():
            subject = InPlaceProgram(Random(f"in place {seed * STRIDE + number}"))
            for i in range(cases):
                case = make_case(subject, seed * STRIDE + number, 3 * i)
                ran.cases += 1
                try:
                    ran.add(check(subject, case))
                except Exception as error:
                    ran.wrong.append(f"{number}:{i} {case.schedule} {subject.traits}: {type(error).__name__}: {error}")
    return ran
