"""Prefill time and peak memory against plain Inductor: the command ``opskip bench prefill``.

python -m benchmarks.prefill [--model qwen3-vl-8b --layers 4 --visual 1024] [--out FILE --plot FILE]
python -m benchmarks.prefill --help
"""

from __future__ import annotations

import sys

from opskip_compile.__main__ import main

if __name__ == "__main__":
    sys.argv[1:1] = ["bench", "prefill"]
    main()
