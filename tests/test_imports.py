"""Importing the package and asking the command for help load nothing: modules are counted, not seconds."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import opskip_compile

HEAVY = (
    "torch._dynamo",
    "torch._inductor",
    "torch.fx.experimental.symbolic_shapes",
    "transformers",
    "scipy",
    "sympy",
    "networkx",
    "rich",
    "typer",
    "matplotlib",
)
LOWERING = ("torch._inductor.scheduler", "torch._inductor.compile_fx")
NEVER = (*LOWERING, "transformers.modeling_utils", "scipy", "torchao", "sklearn", "typer", "matplotlib")


def loaded(code: str, folder: Path, **environment: str) -> list[str]:
    """The modules of a new process that has run ``code``."""
    report = "import sys, json, atexit; atexit.register(lambda: print('\\n' + json.dumps(sorted(sys.modules))))\n"
    done = subprocess.run(
        [sys.executable, "-c", report + code],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
        env={"PATH": "", "HOME": str(folder), **environment},
    )
    assert done.returncode == 0, done.stderr
    modules: list[str] = json.loads(done.stdout.splitlines()[-1])
    return modules


def test_importing_the_package_loads_the_package_alone(tmp_path: Path) -> None:
    plain, ours = (
        {name for name in loaded(code, tmp_path) if not name.startswith("_")}
        for code in ("import importlib, typing", "import opskip_compile")
    )
    assert ours - plain == {"opskip_compile"}


def test_with_torch_nothing_heavy_comes_on_top(tmp_path: Path) -> None:
    torch = loaded("import torch", tmp_path)
    ours = loaded("import torch, opskip_compile", tmp_path)
    assert not [name for name in HEAVY if name in ours and name not in torch]
    assert len(ours) <= len(torch) + 5


def test_schedules_and_errors_need_no_torch(tmp_path: Path) -> None:
    assert "torch" not in loaded("from opskip_compile import OptionError, Schedule, count_flops, presets", tmp_path)


def test_every_public_name_is_there_and_none_loads_inductor_or_models(tmp_path: Path) -> None:
    code = (
        "import opskip_compile\n"
        "assert set(opskip_compile.__all__) <= set(dir(opskip_compile))\n"
        "from opskip_compile import *\n"
        "missing = [name for name in opskip_compile.__all__ if name not in globals()]\n"
        "assert not missing, missing\n"
        "assert compile is opskip_compile.compile and compile.__module__ == 'opskip_compile.api'\n"
    )
    modules = loaded(code, tmp_path)
    assert not [name for name in NEVER if name in modules]


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'compiel'"):
        _ = opskip_compile.compiel  # type: ignore[attr-defined]


def test_type_checkers_see_the_same_names() -> None:
    """The imports that only checkers read, ``__all__``, and the table that the names are loaded by."""
    tree = ast.parse(Path(opskip_compile.__file__).read_text())
    block = next(n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    seen = {
        alias.name: str(line.module).removeprefix("opskip_compile.")
        for line in block.body
        if isinstance(line, ast.ImportFrom)
        for alias in line.names
    }
    assert seen == vars(opskip_compile)["_HOME"]
    assert opskip_compile.__all__ == sorted(seen)


COMMAND = "import sys; sys.argv[0] = 'opskip'; from opskip_compile.cli.main import main; main()"


@pytest.mark.parametrize("arguments", ["--help", "--version", "bench --help", "inspect --help"])
def test_help_loads_no_torch(arguments: str, tmp_path: Path) -> None:
    modules = loaded(f"import sys; sys.argv += {arguments.split()}\n{COMMAND}", tmp_path)
    assert "opskip_compile.cli.main" in modules
    assert not [name for name in ("torch", "transformers", "numpy", "networkx", "matplotlib") if name in modules]


def test_completion_loads_no_torch(tmp_path: Path) -> None:
    code = f"import contextlib\nwith contextlib.suppress(SystemExit):\n    {COMMAND}\n"
    asked = {"_OPSKIP_COMPLETE": "complete_bash", "COMP_WORDS": "opskip be", "COMP_CWORD": "1"}
    modules = loaded(code, tmp_path, **asked)
    assert "typer.core" in modules
    assert not [name for name in ("torch", "transformers", "rich", "numpy", "networkx") if name in modules]


def test_the_backend_by_its_name_in_a_process_that_imports_torch_alone(tmp_path: Path) -> None:
    code = (
        "import sys, torch, torch._dynamo\n"
        "assert 'opskip' in torch._dynamo.list_backends()\n"
        "assert not [name for name in sys.modules if name.startswith('opskip_compile')]\n"
        "f = torch.compile(lambda x: x + 1, backend='opskip', options={'lower': 'eager'})\n"
        "assert f(torch.ones(2)).tolist() == [2, 2]\n"
        "from opskip_compile.backend.entry import REPORTS\n"
        "assert REPORTS.count == 1\n"
    )
    assert not [name for name in LOWERING if name in loaded(code, tmp_path)]
