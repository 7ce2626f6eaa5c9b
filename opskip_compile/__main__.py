"""``python -m opskip_compile`` is ``opskip``."""

from opskip_compile.cli.main import main

if __name__ == "__main__":
    main()
