"""`python -m tui`: the same as `mlxzo tui`."""

import sys

from mlxzo.cli.main import main

sys.exit(main(["tui", *sys.argv[1:]]))
