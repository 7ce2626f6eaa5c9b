"""Operations by kind."""

from __future__ import annotations

import pytest

from opskip_compile.timing.time_by_kind import kind_of


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::addmm", "products"),
        ("aten::bmm", "products"),
        ("mkldnn::_linear_pointwise", "products"),
        ("opskip::linear", "products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("opskip::attend", "attention"),
        ("aten::layer_norm", "other"),
        ("aten::copy_", "other"),
        ("Torch-Compiled Region: 0/0", "other"),
    ],
)
def test_kinds_of_operations(name: str, kind: str) -> None:
    assert kind_of(name) == kind
