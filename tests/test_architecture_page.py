"""The code of ``docs/architecture.md`` runs, block after block, in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
CHECK = """
from torch import fx
import torch
from opskip_compile.passes.ops import rows_of
graph = fx.Graph()
x = graph.placeholder("x")
x.meta["example_value"] = torch.zeros(2, 3, 4)
node = graph.call_method("renorm", (x, 2, 1, 1.0))
node.meta["example_value"] = torch.zeros(2, 3, 4)
assert rows_of(node, 1) == {x: 1}, rows_of(node, 1)
assert "norms over the rows" in rows_of(node, 0).reason
assert [each.name for each in pipeline][-2:] == ["regions", "count_products"]
print("fine")
"""


def test_code_blocks_run() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 3
    command = [sys.executable, "-c", "\n".join(["from __future__ import annotations", *blocks, CHECK])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=ROOT)
    assert done.stdout.strip() == "fine", done.stderr
