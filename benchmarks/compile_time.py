"""Time to compile against plain Inductor: the command ``opskip bench compile``.

python -m benchmarks.compile_time [--model small --layers 2 --layers 8] [--out FILE --plot FILE]
python -m benchmarks.compile_time --help
"""

from __future__ import annotations

import sys

from opskip_compile.__main__ import main

if __name__ == "__main__":
    sys.argv[1:1] = ["bench", "compile"]
    main()
