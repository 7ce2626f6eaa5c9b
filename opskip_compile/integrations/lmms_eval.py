"""A model for lmms-eval: ``lmms-eval --model opskip`` asks a checkpoint that skips its visual rows.

The package lmms-eval finds `manifest` by the entry point group ``lmms_eval.models``, and then builds `OpSkip` of
``--model_args``. Nothing else in opskip knows of lmms-eval.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from rich.console import Console
from torch import Tensor

from opskip_compile import api
from opskip_compile.backend.reports import REPORTS
from opskip_compile.errors import OptionError
from opskip_compile.models.checkpoint import load_checkpoint
from opskip_compile.models.devices import usable_device
from opskip_compile.models.generation import placed
from opskip_compile.models.hub import hub_folder
from opskip_compile.models.images import open_image
from opskip_compile.models.packaged import model as packaged
from opskip_compile.models.prompts import by_chat_template, processed
from opskip_compile.output.console import note
from opskip_compile.output.progress import progress
from opskip_compile.schedule.schedule import Schedule

MODEL = "opskip"
MOST_TOKENS = 1024  # of an answer, where the task names no limit
AUTO = "auto"
ADDED_STOP = "\n\n"  # lmms-eval gives it to every task without a stop of its own; its own chat models ignore it too
_SAMPLING = ("temperature", "top_p", "top_k")
_SEARCH = ("num_beams", "repetition_penalty", "length_penalty")
Chat = list[dict[str, Any]]


def manifest() -> Any:
    """What lmms-eval registers: the name of the model and the class behind it."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=MODEL, chat_class_path=f"{OpSkip.__module__}.{OpSkip.__name__}")


class OpSkip(lmms):  # type: ignore[misc]
    """An image-text-to-text checkpoint of transformers, compiled by `opskip_compile.compile`.

    The arguments are those of ``--model_args``; ``--batch_size`` and ``--device`` go before them.

    Args:
        pretrained: a folder, a name on the Hugging Face hub, or ``demo``. Code in a checkpoint is never executed.
        schedule: a preset, spec text or a .json file; ``none`` is the dense model by the same compiler. Without one it
            is that of `opskip_compile.compile`, and the packaged one for ``demo``. Quotes around a text with commas
            are taken off.
        dtype: float32, bfloat16 or float16; ``auto`` is the checkpoint's.
        device: cpu, cuda, ...; a CUDA device for each process where there is one if not given.
        batch_size: prompts to one ``generate``.
        max_new_tokens: of an answer, at most, where the task names no limit.

    Raises:
        OpSkipError: a checkpoint that can't be loaded, a schedule that does not fit, or a bad argument.
    """

    is_simple = False  # lmms-eval then hands over chats, with images where the task puts them

    def __init__(
        self,
        pretrained: str,
        schedule: str | None = None,
        dtype: str = AUTO,
        device: str | None = None,
        batch_size: int | str = 1,
        max_new_tokens: int = MOST_TOKENS,
    ) -> None:
        super().__init__()
        self.batch_size = _positive("batch_size", batch_size)
        self.max_new_tokens = _positive("max_new_tokens", max_new_tokens)
        self.device = torch.device(usable_device(device, None if dtype == AUTO else dtype))
        self.is_demo = pretrained == packaged.NAME
        self.processor: Any
        if self.is_demo:
            self.max_new_tokens = 1
            model, self.processor = packaged.load_model(), packaged.load_processor()
            schedule = schedule or str(packaged.SCHEDULE_FILE)
        else:
            model, self.processor = load_checkpoint(_folder(pretrained))
        tokenizer = self.processor.tokenizer
        tokenizer.padding_side = "left"  # answers come behind the prompts
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        model.to(self.device, None if dtype == AUTO else getattr(torch, dtype))
        plan = None if schedule is None else Schedule.of(schedule.strip("'\""))
        if plan is not None:
            plan.resolve(model.config.get_text_config(decoder=True).num_hidden_layers)
        self.model: Any = api.compile(model, plan)
        self._inputs_known = inspect.signature(model.forward).parameters

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        """An answer to each request, greedy unless the task or ``--gen_kwargs`` ask for samples or beams.

        Of the generation arguments ``max_new_tokens``, ``until``, ``do_sample``, ``temperature``, ``top_p``, ``top_k``,
        ``num_beams``, ``repetition_penalty`` and ``length_penalty`` are followed. What is ``until`` is cut off; a blank
        line is not taken as one.

        Args:
            requests: of lmms-eval, with a chat and generation arguments each.

        Raises:
            OpSkipError: a chat with something else than texts and images, or an image that can't be read.
        """
        alike: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            alike.setdefault(repr(sorted(request.args[2].items())), []).append(place)
        size, earlier = self.batch_size, REPORTS.count
        batches = [places[i : i + size] for places in alike.values() for i in range(0, len(places), size)]
        answers: dict[int, Any] = {}
        with progress(Console(stderr=True, quiet=self.rank > 0)) as step:
            for done, places in enumerate(batches):
                step("answering", done, len(batches))
                chats = [self._chat(*requests[place].args) for place in places]
                answers.update(zip(places, self._answer(chats, requests[places[0]].args[2]), strict=True))
        for report in [each for each in REPORTS.since(earlier) if each.operators][-1:]:
            note(f"{len(report.skipped)} of {len(report.operators)} operators skip the visual rows")
        return [answers[place] for place in range(len(requests))]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not available: lmms-eval itself asks chat models for nothing but generated answers."""
        raise NotImplementedError(f"{MODEL}: tasks that compare log-likelihoods are not supported, only generation is")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not available."""
        raise NotImplementedError(f"{MODEL}: tasks of several rounds are not supported, only single answers are")

    def _chat(self, text: str, messages: Any, options: object, place: int, task: str, split: str) -> Chat:
        """The chat of one request, as chat templates of transformers take it."""

        def part(content: Mapping[str, Any]) -> dict[str, Any]:
            if content["type"] == "text":
                return {"type": "text", "text": content["text"]}
            if content["type"] == "image":
                return {"type": "image", "image": _image(content["url"])}
            raise OptionError(f"{task}: {MODEL} reads texts and images, not {content['type']}")

        chat = messages(self.task_dict[task][split][place])
        return [{"role": turn["role"], "content": [part(content) for content in turn["content"]]} for turn in chat]

    def _answer(self, chats: Sequence[Chat], asked: Mapping[str, Any]) -> list[Any]:
        inputs = {name: value for name, value in self._inputs(chats).items() if name in self._inputs_known}
        with torch.no_grad():
            tokens = self.model.generate(
                **placed(inputs, self.model),
                **generation(asked, self.max_new_tokens, most=1 if self.is_demo else None),
                pad_token_id=self.processor.tokenizer.pad_token_id,
            )
        answers = tokens[:, inputs["input_ids"].shape[1] :]
        pad = self.processor.tokenizer.pad_token_id
        texts = self.processor.tokenizer.batch_decode(answers, skip_special_tokens=True)
        counts = (answers != pad).sum(1).tolist()
        return [
            GenerationResult(text=cut(text, asked.get("until")), token_counts=TokenCounts(output_tokens=count))
            for text, count in zip(texts, counts, strict=True)
        ]

    def _inputs(self, chats: Sequence[Chat]) -> Mapping[str, Tensor]:
        if getattr(self.processor, "chat_template", None):
            inputs = by_chat_template(self.processor, chats)
            return {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
        parts = [[part for turn in chat for part in turn["content"]] for chat in chats]
        images = [[part["image"] for part in chat if part["type"] == "image"] for chat in parts]
        texts = ["\n".join(part["text"] for part in chat if part["type"] == "text") for chat in parts]
        if not self.is_demo and not any(images):
            words: Mapping[str, Tensor] = self.processor.tokenizer(texts, padding=True, return_tensors="pt")
            return words
        if not self.is_demo:
            return processed(self.processor, images, texts)
        encoder: Any = packaged.DemoEncoder(self.processor)
        demo_inputs: Mapping[str, Tensor] = encoder.prompts(images, texts)
        return demo_inputs


def generation(asked: Mapping[str, Any], tokens: int, most: int | None = None) -> dict[str, Any]:
    """Arguments of transformers' ``generate`` for generation arguments of lmms-eval.

    Args:
        asked: by the task and ``--gen_kwargs``.
        tokens: of an answer, where ``asked`` names no limit.
        most: tokens of an answer, whatever was asked.
    """
    limit = int(asked.get("max_new_tokens") or tokens)
    temperature = asked.get("temperature")
    samples = bool(asked.get("do_sample", temperature)) and temperature != 0
    arguments = {name: asked[name] for name in _SEARCH if asked.get(name) is not None}
    # None keeps transformers from warning of what the checkpoint's own settings say about samples.
    arguments |= {name: asked[name] for name in _SAMPLING if asked.get(name) is not None} if samples else {}
    arguments |= {} if samples else dict.fromkeys(_SAMPLING)
    return {"do_sample": samples, "max_new_tokens": limit if most is None else min(limit, most), **arguments}


def cut(text: str, until: Any) -> str:
    """The text before the first of the words in ``until``: a list, one text, or None. Blank lines stay."""
    for stop in [until] if isinstance(until, str) else until or ():
        if stop and stop != ADDED_STOP:
            text = text.partition(stop)[0]
    return text


def _folder(name: str) -> Path:
    """The folder of a checkpoint, downloaded where ``name`` is one of the hub."""
    return Path(name) if Path(name).is_dir() else hub_folder(name, "pretrained")


def _image(source: Any) -> Any:
    """An RGB `PIL.Image`, from one or from its file or URL."""
    return source.convert("RGB") if hasattr(source, "convert") else open_image(source)


def _positive(name: str, value: int | str) -> int:
    if not str(value).isdecimal() or int(value) < 1:
        raise OptionError(f"{name}: expected a positive number, got {value!r}")
    return int(value)
