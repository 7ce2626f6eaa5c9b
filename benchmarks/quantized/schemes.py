"""Ways to quantise a decoder: each makes a model of the packaged checkpoint, as its library or transformers does.

A way that does not run on this machine raises, and the table says with which words. Packages besides torch are imported
where they are needed.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from opskip_compile.models.packaged.model import MODEL_DIR, load_model

GROUP = 64
KEPT = ["lm_head", "visual"]  # in full precision, as usual


@dataclass(frozen=True)
class Scheme:
    """One way.

    Attributes:
        package: that quantises.
        what: weights, and activations where they are quantised.
        make: gives the model, in evaluation mode.
    """

    package: str
    what: str
    make: Callable[[], Any]


def by_torchao(config: str, dtype: torch.dtype = torch.float32, **options: Any) -> Callable[[], Any]:
    """``quantize_`` with one of torchao's configurations, on the decoder; names of granularities stand for them."""

    def make() -> Any:
        from torchao import quantization

        def given(value: Any) -> Any:
            if isinstance(value, list):
                return [given(each) for each in value]
            named = value if isinstance(value, tuple) else (value,)
            kind = getattr(quantization, named[0], None) if isinstance(named[0], str) else None
            return value if kind is None else kind(*named[1:])

        model = load_model(dtype=dtype)
        made = getattr(quantization, config)(**{name: given(value) for name, value in options.items()})
        quantization.quantize_(model.get_decoder(), made)
        return model

    return make


def in_float8(granularity: str) -> Callable[[], Any]:
    """The weights that torchao's float8 configuration makes on a GPU, made by their class: it refuses a CPU."""

    def make() -> Any:
        from torchao import quantization
        from torchao.float8.inference import Float8MMConfig
        from torchao.quantization.quantize_.workflows import Float8Tensor, QuantizeTensorToFloat8Kwargs

        how = getattr(quantization, granularity)()
        model = load_model(dtype=torch.bfloat16)
        for module in linear_layers(model):
            weight = Float8Tensor.from_hp(
                module.weight.data,
                granularity=how,
                mm_config=Float8MMConfig(use_fast_accum=False),
                act_quant_kwargs=QuantizeTensorToFloat8Kwargs(granularity=how),
            )
            module.weight = nn.Parameter(weight, requires_grad=False)
        return model

    return make


def by_transformers(config: str, dtype: torch.dtype = torch.float32, **options: Any) -> Callable[[], Any]:
    """``from_pretrained(folder, quantization_config=...)``."""

    def make() -> Any:
        how = getattr(transformers, config)(**options)
        kind = transformers.Qwen3VLForConditionalGeneration
        return kind.from_pretrained(MODEL_DIR, quantization_config=how, dtype=dtype).eval()

    return make


def by_torch() -> Any:
    """Packed int8 weights; activations get one scale for all rows."""
    model = load_model()
    torch.ao.quantization.quantize_dynamic(model.get_decoder(), {nn.Linear}, dtype=torch.qint8, inplace=True)
    return model


def packed(method: str) -> Callable[[], Any]:
    """A checkpoint of 4 bits in the format of GPTQ or AWQ, rounded to nearest, loaded by transformers.

    The calibration of these methods chooses other numbers for the same tensors, so that what runs is the same.
    """

    def make() -> Any:
        from gptqmodel.nn_modules.qlinear.torch import TorchLinear
        from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear

        model = load_model(dtype=torch.float16)
        for name, module in list(model.named_modules()):
            if not isinstance(module, nn.Linear) or not name.startswith("model.language_model"):
                continue
            sizes = {"in_features": module.in_features, "out_features": module.out_features}
            shared = {"bits": 4, "group_size": GROUP, "desc_act": False, "bias": module.bias is not None}
            if method == "gptq":
                layer = TorchLinear(**shared, **sizes, sym=True, register_buffers=True)
            else:
                layer = AwqTorchLinear(**shared, **sizes, sym=False, register_buffers=True)
            scales, zeros = _rounded(module.weight.data, symmetric=method == "gptq")
            layer.pack(module.cpu(), scales, zeros, torch.arange(module.in_features) // GROUP)
            model.set_submodule(name, layer)
        how: dict[str, Any] = {"quant_method": method, "bits": 4, "group_size": GROUP, "desc_act": False}
        if method == "gptq":
            how |= {"sym": True, "checkpoint_format": "gptq_v2", "format": "gptq_v2"}
        else:
            how |= {"zero_point": True, "version": "gemm", "modules_to_not_convert": ["lm_head", "model.visual"]}
        with tempfile.TemporaryDirectory() as folder:
            _save(model, Path(folder), how)
            kind = transformers.Qwen3VLForConditionalGeneration
            return kind.from_pretrained(folder, dtype=torch.float16, device_map="cpu").eval()

    return make


def _rounded(weight: torch.Tensor, symmetric: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zero points ``(out, groups)`` of 4 bits."""
    groups = weight.float().unflatten(1, (-1, GROUP))
    if symmetric:
        scales = groups.abs().amax(-1) / 7
        return scales.half(), torch.full_like(scales, 8)
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scales = (high - low) / 15
    return scales.half(), (-low / scales).round().clamp(0, 15)


def _save(model: Any, folder: Path, how: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((MODEL_DIR / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": how}), encoding="utf-8")
    (folder / "generation_config.json").write_bytes((MODEL_DIR / "generation_config.json").read_bytes())


def linear_layers(model: Any) -> list[nn.Linear]:
    """The linear layers of the decoder."""
    return [module for module in model.get_decoder().modules() if isinstance(module, nn.Linear)]


INT8 = "Int8DynamicActivationInt8WeightConfig"
SCHEMES = {
    "float32": Scheme("", "nothing", load_model),
    "int8": Scheme("torchao", "weights int8", by_torchao("Int8WeightOnlyConfig")),
    "int8 groups": Scheme(
        "torchao", "weights int8 in groups", by_torchao("Int8WeightOnlyConfig", granularity=("PerGroup", GROUP))
    ),
    "int4": Scheme(
        "torchao",
        "weights int4 in groups",
        by_torchao("IntxWeightOnlyConfig", weight_dtype=torch.int4, granularity=("PerGroup", GROUP)),
    ),
    "int4 plain": Scheme(
        "torchao",
        "weights int4, packed for a GPU",
        by_torchao("Int4WeightOnlyConfig", torch.bfloat16, group_size=GROUP),
    ),
    "float8": Scheme("torchao", "weights float8", by_torchao("Float8WeightOnlyConfig")),
    "int8 by row": Scheme("torchao", "weights int8, activations int8 by row", by_torchao(INT8)),
    "int8 by tensor": Scheme(
        "torchao",
        "weights int8, activations int8 by tensor",
        by_torchao(INT8, granularity=["PerTensor", "PerRow"]),
    ),
    "int4 and int8": Scheme(
        "torchao",
        "weights int4 in groups, activations int8 by row",
        by_torchao(
            "Int8DynamicActivationIntxWeightConfig",
            weight_dtype=torch.int4,
            weight_granularity=("PerGroup", GROUP),
        ),
    ),
    "float8 config": Scheme(
        "torchao",
        "weights and activations float8, by its configuration",
        by_torchao("Float8DynamicActivationFloat8WeightConfig", torch.bfloat16),
    ),
    "float8 by row": Scheme("torchao", "weights and activations float8 by row", in_float8("PerRow")),
    "float8 by tensor": Scheme("torchao", "weights and activations float8 by tensor", in_float8("PerTensor")),
    "packed int8": Scheme("torch.ao", "weights int8, activations int8 by tensor", by_torch),
    "nf4": Scheme(
        "bitsandbytes",
        "weights nf4",
        by_transformers("BitsAndBytesConfig", load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=KEPT),
    ),
    "llm.int8, no outliers": Scheme(
        "bitsandbytes",
        "weights int8, activations int8 by row",
        by_transformers("BitsAndBytesConfig", load_in_8bit=True, llm_int8_threshold=0.0, llm_int8_skip_modules=KEPT),
    ),
    "llm.int8": Scheme(
        "bitsandbytes",
        "weights int8, activations int8 by row, outliers of all rows in 16 bits",
        by_transformers("BitsAndBytesConfig", load_in_8bit=True, llm_int8_skip_modules=KEPT),
    ),
    "hqq": Scheme(
        "hqq", "weights int4 in groups", by_transformers("HqqConfig", nbits=4, group_size=GROUP, skip_modules=KEPT)
    ),
    "quanto": Scheme(
        "optimum-quanto",
        "weights int8",
        by_transformers("QuantoConfig", weights="int8", modules_to_not_convert=KEPT),
    ),
    "gptq": Scheme("gptqmodel", "GPTQ checkpoint, int4 in groups", packed("gptq")),
    "awq": Scheme("gptqmodel", "AWQ checkpoint, int4 in groups", packed("awq")),
}
