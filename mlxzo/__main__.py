"""`python -m mlxzo` is the command `mlxzo`."""

from .cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
