"""Muon (Jordan et al. 2024): momentum, made orthogonal by Newton-Schulz steps, for the inner matrices.

`torch.optim.Muon` does those steps in bfloat16 and one matrix at a time; here matrices of one shape go together, and
the steps are in float32 unless the CPU has fast bfloat16.
The update has a root mean square of 0.2, as with AdamW, so that one learning rate fits both (Liu et al. 2025).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def orthogonal(matrices: Tensor, steps: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """The nearest orthogonal matrices of a stack `(count, rows, columns)`, roughly; rows must not exceed columns."""
    x = (matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(dtype)
    for _ in range(steps):
        square = x @ x.mT
        x = 3.4445 * x + torch.baddbmm(square, square, square, beta=-4.7750, alpha=2.0315) @ x
    return x.to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum with an orthogonal update; matrices of one shape are handled together."""

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype  # of the Newton-Schulz steps

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes[parameter.shape].append(parameter)
            for (rows, columns), matrices in shapes.items():
                for matrix in matrices:
                    if "momentum" not in self.state[matrix]:
                        self.state[matrix]["momentum"] = torch.zeros_like(matrix)
                buffers = [self.state[matrix]["momentum"] for matrix in matrices]
                gradients = [matrix.grad for matrix in matrices]
                torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
                stack = torch.stack(gradients).lerp(torch.stack(buffers), group["momentum"])
                tall = rows > columns
                update = orthogonal(stack.mT if tall else stack, dtype=self.dtype)
                update = update.mT if tall else update
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
                scale = -group["lr"] * 0.2 * max(rows, columns) ** 0.5
                torch._foreach_add_(matrices, list(update.unbind(0)), alpha=scale)
