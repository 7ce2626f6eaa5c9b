"""The backend as users meet it: options, schedules by default, warnings, shapes, isolation, own models."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import opskip_compile as opskip
from tests.helpers.families import FAMILIES, visual_mask
from tests.helpers.own_decoder import EAGER, Decoder, explain_qwen3_vl, visual

pytestmark = pytest.mark.usefixtures("fresh")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"shedule": "none"}, opskip.OptionError, ["options.shedule", "'schedule'"]),
        ({"strickt": True}, opskip.OptionError, ["options.strickt", "'strict'"]),
        ({"max_autotun": True}, opskip.OptionError, ["'max_autotune'"]),
        ({"strict": 1}, opskip.OptionError, ["options.strict"]),
        ({"lower": "cuda"}, opskip.OptionError, ["options.lower", "inductor, eager"]),
        ({"dump": 3}, opskip.OptionError, ["options.dump"]),
        ({"mode": "fastest"}, opskip.OptionError, ["options.mode", "fastest"]),
        ({"schedule": "silent:x"}, opskip.ScheduleError, ["silent:x"]),
        ({"schedule": 3}, opskip.ScheduleError, []),
    ],
)
def test_bad_options(options: dict[str, object], error: type[Exception], words: list[str]) -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(error) as caught:
        opskip.compile(model, options=options)
    assert isinstance(caught.value, ValueError)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)
    assert model._compiled_call_impl is None, "nothing is changed by a refused call"
    with pytest.raises(Exception, match=error.__name__):
        torch.compile(model, backend="opskip", options=options)(torch.ones(1, 2))


def test_inductor_options_and_mode_are_accepted() -> None:
    settings = opskip.Settings.parse({"max_autotune": True, "mode": "reduce-overhead"})
    assert settings.inductor["max_autotune"] is True
    assert settings.inductor["triton.cudagraphs"] is True


@pytest.mark.parametrize("spec", ["silent:0-1", "transform:1", "attend:0 transform:1"])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_model_of_ones_own(spec: str, batch: int) -> None:
    model = Decoder()
    hidden, mask = torch.randn(batch, 12, 16), visual(batch, 12, 2, 8)
    mask[-1, 2:4] = False
    skip = {"silent:0-1": "0a0f1a1f", "transform:1": "1a", "attend:0 transform:1": "0f1a"}[spec]
    want = model(hidden, mask, skip)
    got = torch.compile(model, backend="opskip", options={"schedule": spec, **EAGER})(hidden, mask)
    assert (got - want).abs().max() <= 1e-5
    assert (model(hidden, mask) - want).abs().max() > 1e-3
    assert not opskip.last_report().remaining()


def test_a_schedule_that_can_not_be_followed_is_warned_of() -> None:
    model, arguments = Decoder(), (torch.randn(1, 12, 16), visual(1, 12, 2, 8))
    model.last = nn.Identity()  # the residual stream itself, as a part of a decoder hands it on
    fast = torch.compile(model, backend="opskip", options={"schedule": "silent:0", **EAGER})
    with pytest.warns(opskip.NothingSkippedWarning, match="no final norm"):
        got = fast(*arguments)
    assert torch.equal(got, model(*arguments))


def test_every_row_visual_and_no_row_visual() -> None:
    """A batch in which one element keeps no row and one keeps all."""
    model = Decoder()
    hidden, mask = torch.randn(2, 6, 16), visual(2, 6, 0, 6)
    mask[1] = False
    want = model(hidden, mask, "0a0f1a1f")
    fast = torch.compile(model, backend="opskip", options={"schedule": "silent:0-1", **EAGER})
    assert (fast(hidden, mask) - want).abs().max() <= 1e-5
    assert torch.allclose(fast(hidden, mask)[0], model.norm(hidden[0]), atol=1e-6), "nothing is left but the residual"


def test_two_schedules_never_share_a_result() -> None:
    model, hidden, mask = Decoder(), torch.randn(1, 12, 16), visual(1, 12, 2, 8)
    wants = {"silent:0": "0a0f", "silent:1": "1a1f", "none": ""}
    compiled = {spec: torch.compile(model, backend="opskip", options={"schedule": spec, **EAGER}) for spec in wants}
    for spec in [*wants, *reversed(wants)]:
        assert (compiled[spec](hidden, mask) - model(hidden, mask, wants[spec])).abs().max() <= 1e-5


@pytest.mark.inductor
def test_two_schedules_never_share_an_inductor_result() -> None:
    model, hidden, mask = Decoder(1), torch.randn(1, 12, 16), visual(1, 12, 2, 8)
    for spec, skip in {"transform:0": "0a", "attend:0": "0f"}.items():
        torch._dynamo.reset()  # only Inductor's own caches stay
        got = torch.compile(model, backend="opskip", options={"schedule": spec})(hidden, mask)
        assert (got - model(hidden, mask, skip)).abs().max() <= 1e-5


def test_wrong_layer_count_is_refused() -> None:
    schedule = opskip.Schedule.from_dict(
        {
            "format": "opskip-schedule",
            "version": 1,
            "model": {"num_layers": 36},
            "rules": [{"layers": "30-35", "skip": ["ffn"]}],
        }
    )
    fast = torch.compile(Decoder(), backend="opskip", options={"schedule": schedule, **EAGER})
    with pytest.raises(Exception, match=r"(?s)ScheduleError.*36.*2"):
        fast(torch.randn(1, 12, 16), visual(1, 12, 2, 8))


class TestDefaultSchedule:
    """Without a schedule: environment, then preset, then the fallback with its warning."""

    def test_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPSKIP_SCHEDULE", "attend:1")
        torch.compile(Decoder(), backend="opskip", options=EAGER)(torch.randn(1, 12, 16), visual(1, 12, 2, 8))
        assert opskip.last_report().skipped == ("1.ffn",)
        assert "OPSKIP_SCHEDULE" in opskip.last_report().schedule_origin

    def test_bad_environment_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPSKIP_SCHEDULE", "silent:oops")
        with pytest.raises(Exception, match=r"ScheduleError: environment variable OPSKIP_SCHEDULE: .*oops"):
            torch.compile(Decoder(), backend="opskip", options=EAGER)(torch.randn(1, 12, 16), visual(1, 12, 2, 8))

    def test_fallback_warns_once_and_says_what_to_do(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("OPSKIP_SCHEDULE", raising=False)
        with pytest.warns(opskip.UncalibratedScheduleWarning, match=r"late:0\.33.*options=") as caught:
            torch.compile(Decoder(3), backend="opskip", options=EAGER)(torch.randn(1, 12, 16), visual(1, 12, 2, 8))
        assert len([w for w in caught if w.category is opskip.UncalibratedScheduleWarning]) == 1
        assert opskip.last_report().skipped == ("2.attention", "2.ffn")

    def test_preset_that_fits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The decoder of Qwen3-VL-8B, with no memory behind its weights."""
        monkeypatch.delenv("OPSKIP_SCHEDULE", raising=False)
        (report,) = explain_qwen3_vl(36, 4096, 12288, 32, 8, 128, schedule=None)
        assert report.schedule_origin == "preset qwen3-vl-8b/20"
        states = report.layer_states()
        assert states[24:] == ("silent",) * 12
        assert [i for i, state in enumerate(states) if state == "transform"] == [2, 4, 17, 18, 20, 21, 22, 23]


def test_the_work_of_every_pass_is_linear_in_the_layers() -> None:
    """What each pass changes grows by the same amount for each layer (`opskip bench passes` has the times)."""

    def work(layers: int) -> dict[str, int]:
        torch._dynamo.reset()
        (report,) = explain_qwen3_vl(layers, 64, 128, 4, 2, 16, f"silent:0-{layers - 1}")
        assert len(report.skipped) == 2 * layers
        return {"nodes": report.nodes_after, **{done.name: done.changed for done in report.passes}}

    few, some, many = work(2), work(4), work(8)
    assert {name: 2 * (some[name] - few[name]) for name in few} == {name: many[name] - some[name] for name in few}
    assert some["push_down"] > few["push_down"]


def test_strict_raises_and_names_the_node() -> None:
    class Gated(Decoder):
        def forward(self, hidden: Tensor, visual: Tensor, skip: str = "") -> Tensor:
            hidden = opskip.mark_visual(hidden, visual)
            q, k, v, _ = self.attention[0](self.norm(hidden)).chunk(4, dim=-1)
            hidden = hidden * 0.5 + nn.functional.scaled_dot_product_attention(q, k, v)
            return self.norm(hidden + self.ffn[0](self.norm(hidden)))

    model, arguments = Gated(), (torch.randn(1, 12, 16), visual(1, 12, 2, 8))
    options = {"schedule": "silent:0", **EAGER}
    want = model(*arguments)
    with pytest.raises(Exception, match=r"(?s)RewriteError.*0\.attention stays full at \w+ \(test_backend\.py:\d+\)"):
        torch.compile(model, backend="opskip", options={**options, "strict": True})(*arguments)
    torch._dynamo.reset()
    fast = torch.compile(model, backend="opskip", options={**options, "schedule": "transform:0"})
    with pytest.warns(opskip.NothingSkippedWarning, match="its own input"):
        got = fast(*arguments)
    assert torch.equal(got, want), "what can't be proved stays full"
    (miss,) = opskip.last_report().misses
    assert (miss.layer, miss.kind) == (0, "attention")
    assert "does not add the operator to its own input" in miss.reason


def test_shapes_need_few_compiles() -> None:
    model = Decoder()
    fast = torch.compile(model, backend="opskip", options={"schedule": "silent:0-1", **EAGER})
    for length, start, stop in [(12, 2, 8), (15, 2, 8), (19, 0, 11), (30, 12, 30), (31, 5, 6), (40, 1, 39)]:
        hidden, mask = torch.randn(1, length, 16), visual(1, length, start, stop)
        assert (fast(hidden, mask) - model(hidden, mask, "0a0f1a1f")).abs().max() <= 1e-5
    assert len(opskip.reports()) <= 2, "one static and one dynamic compile"


def test_text_first_then_an_image_of_the_same_shape() -> None:
    """Bare compile where merge and decoder are two graphs: what was compiled for the text is not used for the image."""
    family = FAMILIES["qwen2_5_vl"]
    model = family.build(2)
    text, picture = family.inputs(((26,),)), family.inputs(((3, 5),))
    assert text["input_ids"].shape == picture["input_ids"].shape
    with opskip.oracle(model, opskip.Schedule.from_spec("silent:0-1"), visual_mask(picture)):
        want = model(**picture).logits
    dense = model(**text).logits
    fast = torch.compile(model, backend="opskip", options={"schedule": "silent:0-1", **EAGER})
    with warnings.catch_warnings():
        warnings.simplefilter("error", opskip.NothingSkippedWarning)
        for _ in range(2):
            assert torch.allclose(fast(**text).logits, dense, atol=1e-5)
            assert torch.allclose(fast(**picture).logits, want, atol=1e-5)


def test_bare_compile_does_not_warn_when_it_skips() -> None:
    model, inputs = FAMILIES["qwen3_vl"].build(2), FAMILIES["qwen3_vl"].inputs()
    with warnings.catch_warnings():
        warnings.simplefilter("error", opskip.NothingSkippedWarning)
        fast = torch.compile(model, backend="opskip", options={"schedule": "silent:0-1", **EAGER})
        for _ in range(2):
            fast(**inputs)
    assert opskip.last_report().rewritten


def test_without_token_ids_and_without_placeholders_one_warning_says_which_call_to_use() -> None:
    """Embeddings into which the caller has merged the features: nothing tells their rows."""
    family = FAMILIES["llava"]
    model, inputs = opskip.compile(family.build(2), "silent:0-1", options=EAGER), family.inputs()
    embeddings = model.get_input_embeddings()(inputs["input_ids"]) + 1
    with pytest.warns(opskip.NothingSkippedWarning, match="mark_visual"), contextlib.suppress(ValueError):
        model(
            inputs_embeds=embeddings,
            pixel_values=inputs["pixel_values"],
            attention_mask=inputs["attention_mask"],
        )


def test_a_decoder_that_is_called_otherwise_is_warned_of() -> None:
    class Owner(nn.Module):
        config = SimpleNamespace(image_token_id=7)

        def __init__(self) -> None:
            super().__init__()
            self.embed, self.decoder = nn.Embedding(8, 4), nn.Linear(4, 4)

        def get_decoder(self) -> nn.Module:
            return self.decoder

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.decoder(self.embed(input_ids))

    model, ids = Owner(), torch.tensor([[1, 7, 7, 2]])
    want = model(ids)
    opskip.compile(model, "silent:0", options=EAGER)
    with pytest.warns(opskip.NothingSkippedWarning, match="inputs_embeds="):
        assert torch.equal(model(ids), want)


def test_compile_again_and_remove() -> None:
    family = FAMILIES["qwen3_vl"]
    model, inputs = family.build(2), family.inputs()
    dense = model(**inputs).logits
    for spec, count in (("attend:0", 1), ("silent:0-1", 4)):
        assert opskip.compile(model, spec, options=EAGER) is model
        model(**inputs)
        assert len(opskip.last_report().skipped) == count
    assert opskip.remove(model) is model
    assert torch.equal(model(**inputs).logits, dense)
    assert "forward" not in vars(model.get_decoder())
    assert not model.model._forward_pre_hooks
    opskip.remove(model)  # nothing to do


def test_last_report_before_any_compile() -> None:
    with pytest.raises(opskip.OpSkipError, match="nothing was compiled"):
        opskip.last_report()


def test_entry_point_in_a_process_that_never_imports_us(tmp_path: Path) -> None:
    code = (
        "import torch\n"
        "assert 'opskip' in torch._dynamo.list_backends()\n"
        "f = torch.compile(lambda x: x + 1, backend='opskip', options={'lower': 'eager'})\n"
        "assert f(torch.ones(2)).tolist() == [2, 2]\n"
        "import sys; assert 'opskip_compile.backend.entry' in sys.modules; print('skipped nothing, computed right')\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OPSKIP_SCHEDULE"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert "computed right" in done.stdout
