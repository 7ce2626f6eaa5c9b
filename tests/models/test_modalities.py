"""Rows of audio beside those of images: every way to name them, against the oracle."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import opskip_compile as opskip
from opskip_compile.errors import NothingSkippedWarning, ScheduleError
from opskip_compile.models.rows import visual_tokens
from opskip_compile.passes.refusal import Why
from tests.helpers.audio import AUDIO, build_family, omni_inputs
from tests.helpers.families import FAMILIES, IMAGE, UNEVEN
from tests.helpers.support.zoo import MORE_OF_AUDIO, ZOO

pytestmark = pytest.mark.usefixtures("fresh")
SPEC = "silent:2-3 transform:0 attend:1"
KEEP = "silent@keep=0.5:2-3 transform@keep=0.3:0 attend@keep=0.25:1"
OF_AUDIO = {name: ZOO[name] for name in ("qwen2_audio", "voxtral", "granite_speech")}
OF_AUDIO |= {entry.name: entry for entry in MORE_OF_AUDIO}
OMNI = {"qwen2_5_omni_thinker": 8, "qwen3_omni_moe_thinker": 4}  # family -> rows of a sound
BOTH = ((3, "image", 2, "audio", 4), (2, "audio", 3), (7,))
MEANT: dict[str, tuple[int, ...]] = {"audio": (AUDIO,), "image": (IMAGE,), "all": (IMAGE, AUDIO)}
Compile = Callable[[nn.Module, str], Any]


def in_place(model: nn.Module, spec: str) -> Any:
    return opskip.compile(model, spec, options={"lower": "eager"})


def bare(model: nn.Module, spec: str) -> Any:
    return torch.compile(model, backend="opskip", options={"schedule": spec, "lower": "eager"})


def rows_of(inputs: Mapping[str, Tensor], *tokens: int) -> Tensor:
    return torch.isin(inputs["input_ids"], torch.tensor(tokens))


def assert_oracle(model: nn.Module, inputs: dict[str, Tensor], mask: Tensor, spec: str, how: Compile) -> opskip.Report:
    """The compiled logits are the oracle's, which are not the dense ones; what the newest report says."""
    shown = inputs["attention_mask"].bool()
    with torch.no_grad():
        dense = model(**inputs).logits[shown]
        with opskip.oracle(model, opskip.Schedule.from_spec(spec), mask):
            want = model(**inputs).logits[shown]
        got = how(model, spec)(**inputs).logits[shown]
    assert (dense - want).abs().max() > 1e-2 * want.abs().max(), "the schedule does not show"
    assert (got - want).abs().max() <= 1e-4 * want.abs().max()
    report = opskip.last_report()
    assert report.prompt is not None
    assert report.prompt.visual == tuple(mask.sum(1).tolist())
    assert len(report.skipped) == 6
    return report


@pytest.mark.parametrize("spec", [SPEC, KEEP, "silent@through_visual:2-3 transform:0 attend:1"])
@pytest.mark.parametrize("family", OF_AUDIO)
def test_models_of_audio(family: str, spec: str) -> None:
    """A batch with padding, of one sound and of two."""
    inputs = OF_AUDIO[family].inputs(UNEVEN)
    assert_oracle(OF_AUDIO[family].build(), inputs, rows_of(inputs, IMAGE), f"{spec} modalities=audio", in_place)


@pytest.mark.parametrize("family", ["qwen2_audio", "voxtral", "granite_speech"])
def test_models_of_audio_bare(family: str) -> None:
    inputs = ZOO[family].inputs(UNEVEN)
    assert_oracle(ZOO[family].build(), inputs, rows_of(inputs, IMAGE), f"{SPEC} modalities=audio", bare)


@pytest.mark.parametrize("how", [in_place, bare])
@pytest.mark.parametrize("modalities", MEANT)
@pytest.mark.parametrize("family", OMNI)
def test_images_and_audio_in_one_prompt(family: str, modalities: str, how: Compile) -> None:
    inputs = omni_inputs(OMNI[family], BOTH)
    mask = rows_of(inputs, *MEANT[modalities])
    assert_oracle(build_family(family), inputs, mask, f"{SPEC} modalities={modalities}", how)


@pytest.mark.parametrize("family", ["voxtral", "qwen2_5_omni_thinker"])
def test_generate(family: str) -> None:
    spec, arguments = f"{SPEC} modalities=audio", {"max_new_tokens": 4, "do_sample": False, "output_logits": True}
    omni = family in OMNI
    model = build_family(family) if omni else ZOO[family].build()
    inputs = omni_inputs(OMNI[family], BOTH) if omni else ZOO[family].inputs(UNEVEN)
    mask = rows_of(inputs, AUDIO if omni else IMAGE)
    with opskip.oracle(model, opskip.Schedule.from_spec(spec), mask):
        want = model.generate(**inputs, **arguments, return_dict_in_generate=True)
    in_place(model, spec)
    got = model.generate(**inputs, **arguments, return_dict_in_generate=True)
    assert torch.equal(got.sequences, want.sequences)
    for a, b in zip(got.logits, want.logits, strict=True):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max()
    assert len(opskip.last_report().skipped) == 6


@pytest.mark.parametrize("how", [in_place, bare])
@pytest.mark.parametrize("family", OMNI)
def test_prompts_in_turns(family: str, how: Compile) -> None:
    """A prompt with images alone is dense under a schedule for audio, and the other way round, whatever came before."""
    model, rows = build_family(family), OMNI[family]
    prompts = [omni_inputs(rows, [parts]) for parts in ((3, "image", 5), (3, "audio", 4), (2, "image", 3, "audio", 1))]
    spec = f"{SPEC} modalities=audio"
    with torch.no_grad():
        wants = []
        for inputs in prompts:
            with opskip.oracle(model, opskip.Schedule.from_spec(spec), rows_of(inputs, AUDIO)):
                wants.append(model(**inputs).logits)
        fast = how(model, spec)
        for i in (0, 1, 2, 0):
            got = fast(**prompts[i]).logits
            assert (got - wants[i]).abs().max() <= 1e-4 * wants[i].abs().max(), i


@pytest.mark.parametrize("how", [in_place, bare])
def test_a_schedule_that_says_nothing_means_no_audio(how: Compile) -> None:
    model, inputs = ZOO["voxtral"].build(2), ZOO["voxtral"].inputs(UNEVEN)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingSkippedWarning)
        want, got = model(**inputs).logits, how(model, "silent:0-1")(**inputs).logits
    assert torch.equal(got, want)
    assert not any(report.rewritten for report in opskip.reports())
    assert Why.OTHER_ROWS in [report.refusal.why for report in opskip.reports() if report.refusal is not None]


def test_compile_says_that_the_model_has_other_rows() -> None:
    model = ZOO["voxtral"].build(2)
    with pytest.warns(NothingSkippedWarning, match="means rows of image and video, and Voxtral.* has rows of audio"):
        opskip.compile(model, "silent:0-1")
    with pytest.warns(NothingSkippedWarning, match="Put modalities=image into the schedule"):
        opskip.compile(FAMILIES["llava"].build(2), "silent:0-1 modalities=audio")


def test_explain_and_flops() -> None:
    model, inputs = build_family("qwen2_5_omni_thinker"), omni_inputs(8, BOTH)
    report = opskip.explain(model, inputs, "silent:2-3 modalities=all")
    assert report.prompt is not None
    assert report.prompt.visual == (24, 8, 0)
    assert report.prompt.modalities == {"image": (16, 0, 0), "audio": (8, 8, 0)}
    assert "16 image, 8 audio" in str(report)


def test_qwen2_audio_that_expands_single_tokens_stays_dense() -> None:
    """Its forward makes eight rows of one token, so that the token ids don't tell where they stand."""
    family = ZOO["qwen2_audio"]
    ids = torch.full((2, 12), 7)
    ids[1, :7], ids[1, 8] = 0, IMAGE  # padding, a word, one audio token, words
    mask = (ids != 0).long()
    inputs = {**family.inputs(((0, 0),)), "input_ids": ids, "attention_mask": mask}
    model = family.build(2)
    with torch.no_grad():
        want = model(**inputs).logits
        assert want.shape[1] == ids.shape[1] + 7
        in_place(model, "silent:0-1 modalities=audio")
        with pytest.warns(NothingSkippedWarning, match="expands single audio tokens"):
            got = model(**inputs).logits
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()


def test_one_token_for_two_modalities() -> None:
    model = nn.Module()
    model.config = SimpleNamespace(image_token_id=7, video_token_id=7, audio_token_id=9)
    assert visual_tokens(model) == (7,)
    assert visual_tokens(model, ("audio",)) == (9,)
    with pytest.raises(ScheduleError, match="modalities: Module has one token for rows of image and of video"):
        visual_tokens(model, ("image",))


def test_the_environment_may_not_change_its_mind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are looked for as the schedule said when the model was compiled."""
    model, inputs = FAMILIES["llava"].build(2), FAMILIES["llava"].inputs()
    opskip.compile(model, options={"lower": "eager"})
    monkeypatch.setenv("OPSKIP_SCHEDULE", "silent:0-1 modalities=image")
    with pytest.raises(
        Exception, match="modalities: means rows of image, the model was compiled for rows of image and"
    ):
        model(**inputs)


class Merging(nn.Module):
    """A decoder whose features one helper merges, whatever they are, with a mask that somebody else has made."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder, self.config = decoder, SimpleNamespace(image_token_id=IMAGE, audio_token_id=AUDIO)

    def forward(self, hidden: Tensor, mask: Tensor, features: Tensor) -> Tensor:
        merged = hidden.masked_scatter(mask, features)
        result: Tensor = self.decoder(inputs_embeds=merged, use_cache=False).last_hidden_state
        return result


@pytest.fixture
def merging() -> tuple[Merging, Tensor, Tensor]:
    decoder = FAMILIES["llava"].build(2).model.language_model
    return Merging(decoder).eval(), torch.randn(1, 12, 32), torch.randn(4, 32)


IDS = torch.tensor([[5, *[IMAGE] * 4, 6, *[AUDIO] * 4, 7, 8]])


@torch.compile(backend="opskip", options={"schedule": "none", "lower": "eager"})
def compared(ids: Tensor, token: int) -> Tensor:
    return (ids == token).unsqueeze(-1)


def test_a_mask_that_nobody_knows_is_not_taken(merging: tuple[Merging, Tensor, Tensor]) -> None:
    model, hidden, features = merging
    spec = "silent:0-1 modalities=audio"
    fast = bare(model, spec)
    with torch.no_grad(), pytest.warns(NothingSkippedWarning, match="no graph tells whose features are merged here"):
        got = fast(hidden, (IDS == AUDIO).unsqueeze(-1), features)
    assert torch.equal(got, model(hidden, (IDS == AUDIO).unsqueeze(-1), features))
    assert opskip.reports()[-1].refusal is not None
    assert opskip.reports()[-1].refusal.why is Why.UNTOLD_ROWS


def test_a_mask_is_known_from_the_graph_that_made_it(merging: tuple[Merging, Tensor, Tensor]) -> None:
    """One graph merges images and audio: what was found out of one mask is not believed of another."""
    model, hidden, features = merging
    spec = "silent:0-1 modalities=audio"
    fast = bare(model, spec)
    with torch.no_grad():
        masks = {token: compared(IDS, token) for token in (AUDIO, IMAGE)}
        with opskip.oracle(model.decoder, opskip.Schedule.from_spec(spec), IDS == AUDIO):
            want = model(hidden, masks[AUDIO], features)
        dense = {token: model(hidden, mask, features) for token, mask in masks.items()}
        for token, expected in ((AUDIO, want), (IMAGE, dense[IMAGE]), (AUDIO, want)):
            assert (fast(hidden, masks[token], features) - expected).abs().max() <= 1e-5
        unknown = IDS == AUDIO
        assert (fast(hidden, unknown.unsqueeze(-1), features) - dense[AUDIO]).abs().max() <= 1e-5
    assert (want - dense[AUDIO]).abs().max() > 1e-2
    assert len([report for report in opskip.reports() if report.rewritten]) == 1
