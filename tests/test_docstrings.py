"""Every public function, class, method and property of the package has a docstring; the site is made of them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import FunctionType

import opskip_compile as opskip


def undocumented(names: dict[str, object]) -> Iterator[str]:
    """Names without a docstring of their own; what is inherited counts as documented where it is."""
    for name, value in names.items():
        if not (value.__doc__ or "").strip():
            yield name
        if isinstance(value, type) and value.__module__.startswith("opskip_compile"):
            own = {f"{name}.{each}": part for each, part in vars(value).items() if not each.startswith("_")}
            for place, part in own.items():
                part = part.__func__ if isinstance(part, classmethod | staticmethod) else part
                code = part.fget if isinstance(part, property) else part
                if isinstance(code, FunctionType) and not inspect.cleandoc(code.__doc__ or ""):
                    yield place


def test_public_names_have_docstrings() -> None:
    assert not list(undocumented({name: getattr(opskip, name) for name in opskip.__all__}))


def test_one_that_is_missing_is_seen() -> None:
    class Bare:
        """With a method that says nothing."""

        def silent(self) -> None: ...

        @property
        def mute(self) -> int:
            return 1

        @classmethod
        def told(cls) -> None:
            """Says."""

    Bare.__module__ = "opskip_compile.here"

    def nothing() -> None: ...

    assert list(undocumented({"Bare": Bare, "nothing": nothing})) == ["Bare.silent", "Bare.mute", "nothing"]
