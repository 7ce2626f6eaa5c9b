"""A model that `compile` has compiled goes when its user lets it go, with all its weights."""

from __future__ import annotations

import copy
import gc
import logging
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from torch import nn

import opskip_compile as opskip
from tests.helpers.families import FAMILIES
from tests.helpers.own_decoder import EAGER

pytestmark = pytest.mark.usefixtures("fresh")
SPEC = "silent:1"
Inputs = dict[str, Any]


def called(model: nn.Module, inputs: Inputs) -> nn.Module:
    opskip.compile(model, SPEC, options=EAGER)(**inputs)
    return model


def by_layer(model: nn.Module, inputs: Inputs) -> nn.Module:
    opskip.compile(model, SPEC, regional=True, options=EAGER)(**inputs)
    return model


def removed(model: nn.Module, inputs: Inputs) -> nn.Module:
    return opskip.remove(called(model, inputs))


def explained(model: nn.Module, inputs: Inputs) -> nn.Module:
    opskip.explain(model, inputs, SPEC)
    return model


def copied(model: nn.Module, inputs: Inputs) -> nn.Module:
    twin = copy.deepcopy(called(model, inputs))
    twin(**inputs)
    return twin


def alone(model: nn.Module, inputs: Inputs) -> nn.Module:
    opskip.compile(model.get_decoder(), SPEC, options=EAGER)
    model(**inputs)
    return model


@pytest.fixture
def no_records() -> Iterator[None]:
    """pytest keeps every record of a test, and what torch 2.11 writes down while it compiles holds the weights."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("no_records")
@pytest.mark.parametrize("use", [called, by_layer, removed, explained, copied, alone])
def test_no_weight_is_kept(use: Callable[[nn.Module, Inputs], nn.Module]) -> None:
    """Dynamo keeps compiled code where the collector does not see it: nothing that hangs on it may lead back."""
    family = FAMILIES["qwen3_vl"]
    model = family.build(2)
    twin = use(model, family.inputs())
    gone = [weakref.ref(weight) for each in (model, twin) for weight in each.parameters()]
    del model, twin
    gc.collect()
    assert not any(weight() is not None for weight in gone)
