"""`python -m mlxzo` is the command `mlxzo`."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
