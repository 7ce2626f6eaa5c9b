"""The published schedules, ready to use: `presets`, and which of them fits a model."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cache

from opskip_compile.schedule.flops import count_flops
from opskip_compile.schedule.published import REFERENCE_ROWS, Published, published
from opskip_compile.schedule.schedule import Schedule


@dataclass(frozen=True)
class Preset(Published):
    """One published schedule and the decoder that it was made for."""

    schedule: Schedule = field(repr=False)

    def cut(self, visual_tokens: int = REFERENCE_ROWS[0], text_tokens: int = REFERENCE_ROWS[1]) -> float:
        """Share of the decoder's prefill FLOPs that the schedule saves."""
        report = count_flops(
            self.geometry, visual_tokens=visual_tokens, text_tokens=text_tokens, schedule=self.schedule
        )
        return report.cut


@cache
def presets() -> tuple[Preset, ...]:
    """All published schedules: Op-Skip's by model and label, then ShortV's."""
    names = [each.name for each in fields(Published)]
    return tuple(
        Preset(**{name: getattr(each, name) for name in names}, schedule=Schedule.preset(each.name))
        for each in published().values()
    )


def match_preset(
    model_type: str, num_layers: int, hidden_size: int, intermediate_size: int | None = None
) -> Preset | None:
    """The default preset of the model with this architecture, layer count and width, or None.

    `model_type` is the multimodal config's (``qwen3_vl``); its decoder's (``qwen3_vl_text``) is understood.
    Pass `intermediate_size` too: LLaVA-NeXT on Mistral-7B or Llama-3-8B has the layer count and width of the
    Vicuna-7B that was calibrated, and only the FFN tells them apart.
    """
    for preset in presets():
        size = preset.geometry
        if (
            preset.default
            and preset.model_type == model_type.removesuffix("_text")
            and (size.num_layers, size.hidden_size) == (num_layers, hidden_size)
            and intermediate_size in (None, size.intermediate_size)
        ):
            return preset
    return None
