"""What was asked for, and whether vLLM is set up so that it can be done."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from opskip_compile._compat import serving
from opskip_compile.errors import OptionError
from opskip_compile.integrations.vllm import LOG
from opskip_compile.schedule.modalities import VISUAL
from opskip_compile.schedule.schedule import Schedule

KEY, ENVIRONMENT = "opskip", "OPSKIP_SCHEDULE"
OPTIONS = ("schedule", "strict", "lower", "dump")


@cache
def warn_once(text: str) -> None:
    """Once in a process: the configuration is read before and after a model's weights are processed."""
    LOG.warning("opskip: %s", text)


@dataclass(frozen=True)
class Asked:
    """What ``additional_config={"opskip": {...}}`` says.

    Attributes:
        schedule: which operator of which layer leaves out its visual rows.
        options: of the backend: ``strict``, ``lower``, ``dump``.
    """

    schedule: Schedule
    options: Mapping[str, Any]


def asked(vllm_config: Any) -> Asked | None:
    """The settings, or None where nobody asked for skipping.

    Raises:
        OptionError: a field that is none, or the release of vLLM or a setting of it that skipping does not work with.
        ScheduleError: no schedule.
    """
    given = (vllm_config.additional_config or {}).get(KEY)
    if given is None:
        text = os.environ.get(ENVIRONMENT)
        if not text:
            return None
        if not vllm_config.model_config.is_multimodal_model:
            warn_once(f"{ENVIRONMENT} is set, but this model has no images: nothing is skipped in it")
            return None
        given = {"schedule": text}
    if isinstance(given, str):
        given = {"schedule": given}
    if not isinstance(given, Mapping):
        raise OptionError(f"additional_config.{KEY}: must be a dict or a schedule, not {given!r}")
    for name in given:
        if name not in OPTIONS:
            raise OptionError(f"additional_config.{KEY}.{name}: no such field; there are {', '.join(OPTIONS)}")
    if given.get("schedule") is None:
        raise OptionError(f"additional_config.{KEY}.schedule: is missing")
    schedule = Schedule.of(given["schedule"])
    if schedule.is_empty:
        warn_once("the schedule leaves out nothing ('none'): this server runs vLLM's own dense model")
        return None
    refuse(vllm_config, schedule)
    if serving.caches_prefixes(vllm_config):
        schedule = _of_visual_rows(schedule)
    return Asked(schedule, {name: value for name, value in given.items() if name != "schedule"})


def refuse(config: Any, schedule: Schedule) -> None:
    """Raise for what skipping does not work with.

    Raises:
        OptionError: names the setting.
    """
    release = serving.installed()
    if not serving.is_known(release):  # nothing below is known of another one
        raise OptionError(f"opskip can't skip with vLLM {release}: opskip knows {', '.join(serving.WINDOW)}")
    model, parallel = config.model_config, config.parallel_config
    chooses = bool(schedule.levels) or _keeps(schedule)
    problems = {
        "modalities other than image and video; leave modalities= out of the schedule": (schedule.modalities != VISUAL),
        "keep shares or levels and shared prefixes, which would depend on the text behind them; use "
        "--no-enable-prefix-caching": chooses and serving.caches_prefixes(config),
        "keep shares or levels and tensor_parallel_size: each rank has a part of the heads that tell critical rows": (
            chooses and parallel.tensor_parallel_size > 1
        ),
        "keep shares or levels in vLLM's second model runner; use VLLM_USE_V2_MODEL_RUNNER=0": (
            chooses and serving.is_second_runner(config)
        ),
        "pipeline_parallel_size: visual rows are known on the first rank only; use 1": parallel.pipeline_parallel_size
        > 1,
        "enforce_eager: vLLM's own kernels can't be rewritten; leave it out": model.enforce_eager,
        "enable_lora: adapters change single rows of a product": config.lora_config is not None,
        "kv_transfer_config: another server would read keys and values of skipped layers as its own": (
            config.kv_transfer_config is not None
        ),
        "prefill_context_parallel_size or decode_context_parallel_size: ranks share the rows of a prompt": (
            max(parallel.prefill_context_parallel_size, parallel.decode_context_parallel_size) > 1
        ),
        "enable_return_routed_experts: rows that are left out ask no experts": (
            config.aux_output_config.enable_return_routed_experts
        ),
        "enable_dbo: a step is cut into two": parallel.enable_dbo,
        "enable_expert_parallel or data_parallel_size: experts of one rank wait for rows of the others": (
            parallel.enable_expert_parallel or (model.is_moe and parallel.data_parallel_size > 1)
        ),
        "speculative_config.method: a drafting model embeds rows of its own; use ngram": _drafts(config),
        "compilation_config.cudagraph_mode: a graph of a whole step replays the dense model; use PIECEWISE": (
            serving.replays_whole_steps(config)
        ),
        "an encoder-decoder": bool(model.is_encoder_decoder),
        "a model without images": not model.is_multimodal_model,
        "attention of images in both directions": bool(model.is_mm_prefix_lm),
    }
    for problem, holds in problems.items():
        if holds:
            raise OptionError(f"opskip can't skip with {problem}")


def _drafts(config: Any) -> bool:
    return config.speculative_config is not None and config.speculative_config.method != "ngram"


def _keeps(schedule: Schedule) -> bool:
    return any(rule.keep for rule in schedule.rules) or (schedule.late is not None and schedule.late.keep > 0)


def _of_visual_rows(schedule: Schedule) -> Schedule:
    """The schedule with ``rows: visual`` throughout.

    A row that another prompt may find in the cache must not depend on what comes after it.
    """
    late = schedule.late
    if all(rule.rows == "visual" for rule in schedule.rules) and (late is None or late.rows == "visual"):
        return schedule
    warn_once(
        "the schedule leaves out text before the last image in some layers (through_visual); it is kept, as prompts "
        "may share a prefix in the cache: --no-enable-prefix-caching leaves it out"
    )
    rules = tuple(replace(rule, rows="visual") for rule in schedule.rules)
    return replace(schedule, rules=rules, late=late and replace(late, rows="visual"))
