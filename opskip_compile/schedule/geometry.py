"""The sizes of a decoder: read from a config, and what an operator of these sizes costs (DESIGN section 6)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from opskip_compile.errors import OpSkipError, OptionError

_FFN_WIDTHS = ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_PLAIN_FFN = frozenset({"bloom", "falcon", "gpt2", "gpt_neox", "opt", "persimmon", "phi", "starcoder2"})


@dataclass(frozen=True)
class Geometry:
    """The sizes of a decoder that its FLOPs depend on. `gated`: the FFN has three projections, not two."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    gated: bool = True

    def __post_init__(self) -> None:
        for item in fields(self)[:-1]:
            check_count(getattr(self, item.name), f"geometry.{item.name}", least=1)

    @classmethod
    def from_config(cls, source: Any) -> Geometry:
        """Read a `Geometry`, a transformers config (multimodal or not) or a model that has one.

        Raises `OpSkipError` for a size that the config does not give, and for a mixture of experts, which the
        formula does not describe.
        """
        if isinstance(source, cls):
            return source
        config = getattr(source, "config", source)
        if hasattr(config, "get_text_config"):
            try:
                config = config.get_text_config(decoder=True)
            except ValueError as error:
                raise OpSkipError(f"config: no single text decoder: {error}") from error
        if any((getattr(config, name, None) or 0) != 0 for name in _EXPERTS):
            raise OpSkipError("config: a mixture of experts is not counted; pass a Geometry of its active sizes")
        kind = getattr(config, "model_type", "")
        hidden, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
        plain_width = 4 * hidden if hidden and kind in _PLAIN_FFN else None
        sizes = {
            "num_layers": _size(config, "num_hidden_layers"),
            "hidden_size": hidden,
            "intermediate_size": _size(config, *_FFN_WIDTHS) or plain_width,
            "num_heads": heads,
            "num_kv_heads": _size(config, "num_key_value_heads") or heads,
            "head_dim": _size(config, "head_dim") or (hidden // heads if hidden and heads else None),
        }
        missing = [name for name, value in sizes.items() if value is None]
        if missing:
            raise OpSkipError(f"config: {type(config).__name__} does not give {', '.join(missing)}")
        known = {name: value for name, value in sizes.items() if value is not None}
        return cls(**known, gated=kind not in _PLAIN_FFN)

    def attention(self, query_rows: int, key_rows: int) -> int:
        """FLOPs of one attention (DESIGN section 6): keys and values of ``key_rows``, and what `queries` counts."""
        kv = self.num_kv_heads * self.head_dim
        return 4 * self.hidden_size * key_rows * kv + self.queries(query_rows, query_rows * key_rows)

    def queries(self, query_rows: int, pairs: int) -> int:
        """Of an attention what a skipped row does without: its query and output, and its part of the ``pairs`` of query
        and key."""
        return 4 * self.num_heads * self.head_dim * (query_rows * self.hidden_size + pairs)

    def scores(self, asked: int, key_rows: int, *, queries: bool) -> int:
        """What it costs to ask ``asked`` rows for their attention to every key; with ``queries``, these as well."""
        heads = self.num_heads * self.head_dim
        return 2 * asked * heads * (key_rows + (self.hidden_size if queries else 0))

    def ffn(self, rows: int) -> int:
        """FLOPs of one FFN on ``rows`` rows: its two or three projections, two a weight and row."""
        return (6 if self.gated else 4) * rows * self.hidden_size * self.intermediate_size


def check_count(value: object, name: str, least: int) -> None:
    """Raises `OptionError` unless ``value`` is an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise OptionError(f"{name}: expected an integer of at least {least}, got {value!r}")


def _size(config: Any, *names: str) -> int | None:
    """The first of these attributes that is set."""
    for name in names:
        try:
            value = getattr(config, name, None)
        except Exception as error:  # transformers' own, where the layers differ in it
            raise OpSkipError(f"config: {name} is not the same in all layers") from error
        if value is not None:
            check_count(value, f"config.{name}", least=1)
            return int(value)
    return None
