"""One way to say no: what is left as it was, why, and at which node.

Rules, proofs, the plan and the pipeline all answer with a `Refusal`. Code branches on its `Why`; the text is for
people.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from torch import fx

from opskip_compile.passes.graph.origin import source_line


class Why(StrEnum):
    """The kind of a refusal."""

    # Nothing to do in this graph.
    NO_ROWS = "no visual rows"
    PART_WITHOUT_ROWS = "a part of a decoder without visual rows"
    DECODER_WITHOUT_ROWS = "a decoder without visual rows"
    OTHER_ROWS = "rows of other modalities"
    UNTOLD_ROWS = "rows of a modality that can't be told"
    NO_OPERATOR = "no operator"
    NOTHING_TO_SKIP = "the schedule skips nothing"
    # The rows are known, but not where the operators are.
    ENCODER = "the rows are an encoder's"
    CROSS_ATTENTION = "the image is read by cross-attention"
    NESTED = "the layers are in subgraphs"
    SPREAD = "the layers compute with DTensors"
    PART = "a part of the decoder only"
    UNCERTAIN_LAYERS = "the layers can't be counted"
    # No graph: Dynamo compiles nothing, or not this prompt.
    NOT_COMPILED = "not compiled"
    # An operator stays full.
    NOT_RESIDUAL = "no residual addition"
    UNSAFE = "not safe to skip"
    # An operation is not computed on kept rows alone.
    NO_RULE = "no rule"
    ARGUMENTS = "its arguments are not understood"
    UNKNOWN_SHAPE = "its shape is not known"
    MIXES_ROWS = "it does not work row by row"
    NO_OPERAND = "no operand carries the rows"
    BATCH = "the elements of the batch are not apart"
    RANDOM = "it draws random numbers"
    SUBCLASS = "an operand computes in a way of its own"
    MUTATED = "memory is written in place"
    TOO_EARLY = "it runs before the rows are known"
    SURPRISE = "a rule failed"
    # A pass, or what comes after the passes, failed.
    FAILED = "a pass failed"


@dataclass(frozen=True)
class Refusal:
    """What stays as it was, and why. Plain data: it holds no part of the graph.

    Attributes:
        why: the kind, for code to branch on.
        reason: the whole story, for people.
        node, operation, source: the node, what it computes, and the line of the model that it stands for.
        operator: the operator that it belongs to, such as ``"17.ffn"``.
        nearest: what came nearest to a match.
    """

    why: Why
    reason: str
    node: str = ""
    operation: str = ""
    source: str = ""
    operator: str = ""
    nearest: str = ""

    @property
    def layer(self) -> int:
        """The layer of the operator; -1 without one."""
        return int(self.operator.split(".")[0]) if self.operator else -1

    @property
    def kind(self) -> str:
        """``"attention"`` or ``"ffn"``; empty without an operator."""
        return self.operator.partition(".")[2].split("/")[0]

    def at(self, node: fx.Node, operation: str = "", operator: str = "") -> Refusal:
        """The same refusal with its place, unless it has one already."""
        if self.node:
            return replace(self, operator=self.operator or operator)
        return replace(self, node=node.name, operation=operation, source=source_line(node), operator=operator)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "why": self.why.name,
            "node": self.node,
            "operation": self.operation,
            "source": self.source,
            "reason": self.reason,
            "operator": self.operator,
            "nearest": self.nearest,
        }

    def __str__(self) -> str:
        return self.reason


class Refused(Exception):
    """Carries a refusal, and the node if it is another one, out of the helper that noticed it to who asked."""

    def __init__(self, refusal: Refusal, node: fx.Node | None = None) -> None:
        super().__init__(refusal.reason)
        self.refusal, self.node = refusal, node
