"""How much to cut: a share of the FLOPs, FLOPs or milliseconds that a prefill may cost, or the quality to keep."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from opskip_compile.calibration.costs import Costs
from opskip_compile.calibration.operator_sets import Skipped
from opskip_compile.errors import OptionError

_NUMBER = r"([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)"
_UNITS = {"flops": 1.0, "gflops": 1e9, "tflops": 1e12}


@dataclass(frozen=True)
class Budget:
    """One of four things; the others are None.

    Attributes:
        cut: share of the prefill FLOPs to save at least, over 0 and below 1.
        flops: of one prefill, at most (the mean over the prompts).
        milliseconds: of the compiled decoder on the first batch, at most.
        divergence: the most cut whose joint KL(dense || skipped) is below this, nats.
    """

    cut: float | None = None
    flops: float | None = None
    milliseconds: float | None = None
    divergence: float | None = None

    @classmethod
    def of(cls, value: object) -> Budget:
        """Read ``0.337``, ``"33.7%"``, ``"5.3 TFLOPs"``, ``"120ms"`` or ``"kl<0.01"``.

        Raises:
            OptionError: anything else.
        """
        if isinstance(value, cls):
            return value
        text = "".join(str(value).lower().split())
        if isinstance(value, int | float) and not isinstance(value, bool):
            text = repr(float(value))
        if match := re.fullmatch(_NUMBER, text):
            return cls._checked(cut=float(match[1]))
        if match := re.fullmatch(_NUMBER + "%", text):
            return cls._checked(cut=float(match[1]) / 100)
        if match := re.fullmatch(_NUMBER + "(flops|gflops|tflops)", text):
            return cls._checked(flops=float(match[1]) * _UNITS[match[2]])
        if match := re.fullmatch(_NUMBER + "ms", text):
            return cls._checked(milliseconds=float(match[1]))
        if match := re.fullmatch("kl<=?" + _NUMBER, text):
            return cls._checked(divergence=float(match[1]))
        raise OptionError(
            f"budget: expected a share such as 0.337 or 33.7%, '5.3 TFLOPs', '120ms' or 'kl<0.01', got {value!r}"
        )

    @classmethod
    def _checked(cls, **value: float) -> Budget:
        ((name, number),) = value.items()
        if not math.isfinite(number) or number <= 0 or (name == "cut" and number >= 1):
            raise OptionError(
                f"budget: expected a {name} over 0{' and below 1' if name == 'cut' else ''}, got {number}"
            )
        return cls(**value)

    @property
    def is_latency(self) -> bool:
        """True if it needs the table of milliseconds."""
        return self.milliseconds is not None

    def cost(self, costs: Costs) -> float | None:
        """The most that a prefill may cost, in the unit of ``costs``; None for a quality floor."""
        if self.cut is not None:
            return costs.dense * (1 - self.cut)
        return self.flops if self.flops is not None else self.milliseconds

    def check(self, costs: Costs, candidates: Skipped) -> None:
        """Check that it can be met.

        Args:
            candidates: all operators that can be skipped.

        Raises:
            OptionError: it can't, or it is met by the dense model.
        """
        most, least = self.cost(costs), costs.of(candidates)
        if most is None:
            return
        if most < least:
            raise OptionError(
                f"budget: {self} can't be met: with every operator skipped that can be, "
                f"{amount(least, costs.unit)} of {amount(costs.dense, costs.unit)} are left"
            )
        if most >= costs.dense:
            raise OptionError(
                f"budget: {self} is met by the dense model, which takes {amount(costs.dense, costs.unit)}"
            )

    def __str__(self) -> str:
        if self.cut is not None:
            return f"{self.cut:.1%} fewer FLOPs"
        if self.flops is not None:
            return amount(self.flops, "FLOPs")
        if self.milliseconds is not None:
            return amount(self.milliseconds, "ms")
        return f"KL below {self.divergence:g}"


def amount(value: float, unit: str) -> str:
    """A cost for people: ``5.3 TFLOPs``, ``120 ms``."""
    if unit != "FLOPs":
        return f"{value:.4g} {unit}"
    name, size = next(
        ((n, s) for n, s in (("TFLOPs", 1e12), ("GFLOPs", 1e9), ("MFLOPs", 1e6)) if value >= s), ("FLOPs", 1)
    )
    return f"{value / size:.4g} {name}"
