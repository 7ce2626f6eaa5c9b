"""Real decoders against the oracle: every family, a grid of schedules, every way to call the compiler."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import StaticCache

import opskip_compile as opskip
from opskip_compile.timing.decoders import Decoder
from tests.helpers.caches import CACHE, OLD_CACHE
from tests.helpers.families import FAMILIES, ONE_IMAGE, UNEVEN, visual_mask
from tests.helpers.random_decoders import Switch

pytestmark = pytest.mark.usefixtures("fresh")
LAYERS = 4
ONE_ELEMENT, BATCH = ONE_IMAGE, UNEVEN
# spec -> skipped operators
GRID = {
    "none": 0,
    "attend:1": 1,
    "transform:0-3": 4,
    "attend:0-3": 4,
    "silent:0-3": 8,
    "silent:2 transform:1 attend:3": 4,
    "silent@through_visual:2-3 transform:0 attend:1": 6,
}
ALL_FAMILIES = pytest.mark.parametrize("family", list(FAMILIES))


def by_oracle(model: nn.Module, spec: str, inputs: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Logits and every cached key and value, by definition."""
    with opskip.oracle(model, opskip.Schedule.from_spec(spec), visual_mask(inputs)):
        return unpack(model(**inputs))


def unpack(outputs: object) -> tuple[Tensor, list[Tensor]]:
    cache = [t for layer in outputs[CACHE].layers for t in (layer.keys, layer.values)]
    return outputs.logits, cache


def assert_oracle(
    got: object, want: tuple[Tensor, list[Tensor]], tolerance: float = 1e-4, layers: int = LAYERS
) -> None:
    """Within ``tolerance`` of the largest logit, and the KV cache likewise."""
    logits, cache = unpack(got)
    assert (logits - want[0]).abs().max() <= tolerance * want[0].abs().max()
    assert len(cache) == len(want[1]) == 2 * layers
    for a, b in zip(cache, want[1], strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= tolerance * b.abs().max()


def skipping() -> list[opskip.Report]:
    return [report for report in opskip.reports() if report.rewritten]


@ALL_FAMILIES
def test_bare_compile_equals_the_oracle(family: str) -> None:
    """What Dynamo captures of a model does not depend on the schedule, so it is captured once for all of them."""
    model, inputs, switch = FAMILIES[family].build(LAYERS), FAMILIES[family].inputs(ONE_ELEMENT), Switch()
    dense, fast = model(**inputs).logits, torch.compile(model, backend=switch)
    for spec, count in GRID.items():
        want = by_oracle(model, spec, inputs)
        switch.schedule, switch.reports = opskip.Schedule.from_spec(spec), []
        assert_oracle(fast(**inputs), want)
        reports = [report for report in switch.reports if report.rewritten]
        assert sum(len(report.skipped) for report in reports) == count, spec
        if count:
            (report,) = reports
            assert report.schedule == spec
            assert report.num_layers == LAYERS
            assert not report.misses
            assert not report.stops
            assert not report.remaining(), f"{spec}: a skipped operator still works on visual rows"
            # The schedule has to show, or the comparison says nothing.
            assert (dense - want[0]).abs().max() > 1e-2 * want[0].abs().max()


@pytest.mark.parametrize(
    ("family", "spec"),
    [
        *((family, "silent:2 transform:0 attend:1") for family in FAMILIES),
        ("qwen3_vl", "silent@through_visual:1-2"),
        ("llava", "silent@through_visual:1-2"),
    ],
)
def test_batch_with_padding_and_several_images(family: str, spec: str) -> None:
    model, inputs = FAMILIES[family].build(3), FAMILIES[family].inputs(BATCH)
    want = by_oracle(model, spec, inputs)
    opskip.compile(model, spec, options={"lower": "eager"})
    got = model(**inputs)
    padding = inputs["attention_mask"] == 0
    assert padding.any()
    logits, _ = unpack(got)
    shown = ~padding
    assert (logits - want[0])[shown].abs().max() <= 1e-4 * want[0][shown].abs().max()
    (report,) = skipping()
    assert not report.stops
    assert not report.remaining()


@pytest.mark.parametrize(
    ("family", "how"),
    [
        ("qwen3_vl", "opskip.compile"),
        ("llava", "opskip.compile"),
        ("qwen2_5_vl", "model.compile"),  # merge and decoder are two graphs
        ("llava", "model.compile"),
    ],
)
def test_generate_really_skips(family: str, how: str) -> None:
    model, inputs = FAMILIES[family].build(2), FAMILIES[family].inputs(ONE_ELEMENT)
    spec, arguments = "silent:0-1", {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True}
    arguments["output_logits"] = True
    with opskip.oracle(model, opskip.Schedule.from_spec(spec), visual_mask(inputs)):
        want = model.generate(**inputs, **arguments)
    dense = model.generate(**inputs, **arguments)
    options = {"schedule": spec, "lower": "eager"}
    if how == "model.compile":
        model.compile(backend="opskip", options=options)
    else:
        opskip.compile(model, options=options)
    got = model.generate(**inputs, **arguments)
    assert torch.equal(got.sequences, want.sequences)
    for a, b in zip(got.logits, want.logits, strict=True):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max()
    assert (dense.logits[0] - want.logits[0]).abs().max() > 1e-2 * want.logits[0].abs().max()
    (report,) = skipping()
    assert len(report.skipped) == 4


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava"])
def test_text_only_is_unchanged_and_says_why(family: str) -> None:
    model = FAMILIES[family].build(2)
    inputs = FAMILIES[family].inputs(((9,),))
    want = model(**inputs).logits
    fast = torch.compile(model, backend="opskip", options={"schedule": "silent:0-1", "lower": "eager"})
    assert torch.equal(fast(**inputs).logits, want)
    assert not skipping()
    assert all("no visual rows" in report.reason for report in opskip.reports())


@pytest.mark.parametrize("family", ["qwen3_vl", "llava"])
def test_text_and_image_prompts_take_turns(family: str) -> None:
    """A prompt without images never reuses rows of one before it, whatever came first."""
    chosen, spec = FAMILIES[family], "silent:0-1"
    model = chosen.build(2)
    picture, other, text = (
        chosen.inputs(ONE_ELEMENT),
        chosen.inputs(((6, 8),), seed=1),
        chosen.inputs(((24,),)),
    )
    wants = {id(i): by_oracle(model, spec, i) for i in (picture, other, text)}
    opskip.compile(model, spec, options={"lower": "eager"})
    for inputs in (text, picture, other, text, picture):
        assert_oracle(model(**inputs), wants[id(inputs)], layers=2)


@pytest.mark.parametrize("argument", sorted({CACHE, OLD_CACHE}))
@pytest.mark.parametrize("family", ["qwen3_vl", "llava"])
def test_static_cache(family: str, argument: str) -> None:
    """A cache that is written in place; the sizes of its second use are dynamic."""
    model, inputs = FAMILIES[family].build(LAYERS), FAMILIES[family].inputs(ONE_ELEMENT)
    spec = "silent:2-3 transform:0 attend:1"

    def cache() -> StaticCache:
        return StaticCache(config=model.config.get_text_config(), max_cache_len=48)

    with opskip.oracle(model, opskip.Schedule.from_spec(spec), visual_mask(inputs)):
        want = unpack(model(**inputs, **{argument: cache()}))
    opskip.compile(model, spec, options={"lower": "eager"})
    for _ in range(2):
        assert_oracle(model(**inputs, **{argument: cache()}), want)
    assert all(len(report.skipped) == 6 for report in skipping())
    # The cache keeps every row, so keys and values are not left over.
    assert not any(report.remaining() for report in skipping())


def test_many_models_in_one_process() -> None:
    """More models and schedules than Dynamo's recompile limit."""
    family, inputs = FAMILIES["qwen3_vl"], FAMILIES["qwen3_vl"].inputs(ONE_ELEMENT)
    for i in range(5):
        model, spec = family.build(2), ("silent:0", "attend:1", "transform:0-1")[i % 3]
        with opskip.oracle(model, opskip.Schedule.from_spec(spec), visual_mask(inputs)):
            want = model(**inputs).logits
        with torch._dynamo.config.patch(recompile_limit=3):
            got = opskip.compile(model, spec, options={"lower": "eager"})(**inputs).logits
        assert (got - want).abs().max() <= 1e-4 * want.abs().max()
        assert len(skipping()) == i + 1


@pytest.mark.inductor
@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
def test_inductor_equals_the_oracle(family: str) -> None:
    """The decoder of InternVL is Qwen2.5-VL's; that of LLaVA is lowered in `test_all_families`."""
    model, inputs = FAMILIES[family].build(2), FAMILIES[family].inputs(ONE_ELEMENT)
    spec = "silent:1 transform:0"
    want = by_oracle(model, spec, inputs)
    opskip.compile(model, spec)
    assert_oracle(model(**inputs), want, layers=2)
    assert len(skipping()) == 1


@pytest.mark.inductor
def test_schedule_none_is_bitwise_plain_inductor() -> None:
    decoder = Decoder("", "Llama", opskip.Geometry(2, 64, 96, 4, 2, 16)).build()
    hidden, image = torch.randn(1, 24, 64), torch.randn(16, 64)
    visual = (torch.arange(24)[None] >= 3) & (torch.arange(24)[None] < 19)

    def forward(hidden: Tensor, image: Tensor, visual: Tensor) -> Tensor:
        merged = hidden.masked_scatter(visual[..., None].expand_as(hidden), image)
        return decoder(inputs_embeds=merged, use_cache=False).last_hidden_state

    want = torch.compile(forward)(hidden, image, visual)
    torch._dynamo.reset()
    got = torch.compile(forward, backend="opskip", options={"schedule": "none"})(hidden, image, visual)
    assert torch.equal(got, want)
    assert opskip.last_report().num_layers == 2
    assert not opskip.last_report().rewritten


def test_gradients_equal_the_oracles() -> None:
    """Backward through a rewritten decoder: a batch whose elements keep different numbers of rows."""
    family, spec = FAMILIES["llava"], "silent:1 transform:0"
    inputs = family.inputs(BATCH)

    def gradients(model: nn.Module) -> dict[str, Tensor]:
        with torch.enable_grad():
            logits = model(**inputs, use_cache=False).logits
            ((logits * inputs["attention_mask"][..., None]) ** 2).mean().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    model = family.build(2)
    with opskip.oracle(model, opskip.Schedule.from_spec(spec), visual_mask(inputs)):
        want = gradients(model)
    got = gradients(opskip.compile(family.build(2), spec, options={"lower": "eager"}))
    assert len(skipping()) == 1
    assert got.keys() == want.keys()
    largest = max(gradient.abs().max() for gradient in want.values())
    for name, gradient in want.items():
        assert (got[name] - gradient).abs().max() <= 1e-5 * largest, name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@ALL_FAMILIES
def test_cuda_equals_the_oracle(family: str) -> None:
    model = FAMILIES[family].build(LAYERS).cuda()
    inputs = {k: v.cuda() for k, v in FAMILIES[family].inputs(BATCH).items()}
    want = by_oracle(model, "silent:2-3 transform:0 attend:1", inputs)[0]
    opskip.compile(model, "silent:2-3 transform:0 attend:1")
    shown = inputs["attention_mask"] == 1
    assert (model(**inputs).logits - want)[shown].abs().max() <= 1e-4 * want[shown].abs().max()
    assert len(skipping()) == 1


@pytest.mark.parametrize(
    ("family", "dtype"),
    [*((family, torch.bfloat16) for family in FAMILIES), ("qwen3_vl", torch.float16), ("llava", torch.float16)],
    ids=str,
)
def test_16_bit_is_as_close_as_dense(family: str, dtype: torch.dtype) -> None:
    """The error against the float32 oracle is at most that of the dense 16-bit model against dense float32."""
    chosen, spec = FAMILIES[family], "silent:2-3 transform:0 attend:1"
    inputs = chosen.inputs(ONE_ELEMENT)
    low = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    exact, model = chosen.build(LAYERS), chosen.build(LAYERS, dtype)
    dense = (model(**low).logits.float() - exact(**inputs).logits).abs().mean()
    want = by_oracle(exact, spec, inputs)[0]
    opskip.compile(model, spec, options={"lower": "eager"})
    error = (model(**low).logits.float() - want).abs().mean()
    assert error <= dense
    assert len(skipping()) == 1
