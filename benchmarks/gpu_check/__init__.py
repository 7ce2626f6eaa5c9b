"""What a GPU is asked in the few minutes that there is one: is it right, and how fast.

    python -m benchmarks.gpu_check                    # ends within 9 minutes
    python -m benchmarks.gpu_check --quick            # within 3
    python -m benchmarks.gpu_check --device cpu --quick --lower eager    # the same way on a CPU, at small size

Needs torch, transformers and this package; no network, no pretrained weights. Each step runs in a process of its own
with a limit of its own, prints as it goes, and writes what it found at once into a file of ``--out``: whatever ends it,
nothing is lost. The exit code is 1 if an answer was wrong, a step failed, or one had found nothing at its limit.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path


def _find_passes() -> None:
    """In a clone that is not installed ``passes`` stands beside its package, and no entry point names the backend."""
    try:
        distribution("opskip-compile")
    except PackageNotFoundError:
        folder, name = Path(__file__).parents[2] / "passes", "opskip_compile.passes"
        spec = spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])
        assert spec is not None and spec.loader is not None
        sys.modules[name] = module = module_from_spec(spec)
        spec.loader.exec_module(module)
        import_module("opskip_compile.backend.by_name").opskip  # noqa: B018  # reading it registers the backend


_find_passes()
