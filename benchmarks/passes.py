"""Time of our passes and of three matchers against depth: the command ``opskip bench passes``.

python -m benchmarks.passes [--layers 36 --layers 280] [--out FILE --plot FILE]
python -m benchmarks.passes --help
"""

from __future__ import annotations

import sys

from opskip_compile.__main__ import main

if __name__ == "__main__":
    sys.argv[1:1] = ["bench", "passes"]
    main()
