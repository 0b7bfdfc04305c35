"""Make a run's best state into something to use or to give away.

  mlxzo export RUN --to adapter   a folder for `mlx_lm.generate --adapter-path`
  mlxzo export RUN --to fused     a whole model folder, for everything that reads mlx-lm's models
  mlxzo export RUN --to journal   one file of kilobytes, from which `mlxzo replay` rebuilds the weights to the bit

LoRA pairs that are fused with quantised weights are rounded to the quantisation; --dequantize keeps them exact and
makes the model as large as an unquantised one.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import EXIT_DONE
from .options import add_json, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run directory, or the id of a run in the folder `runs`")
    parser.add_argument("--to", choices=("adapter", "fused", "journal"), required=True, help="the form to make")
    parser.add_argument("--out", metavar="PATH", help="folder or file to make (default: <run id>-<form>, here)")
    add_dequantize(parser)
    add_json(parser)


def add_dequantize(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dequantize", action="store_true", help="with --to fused: store a quantised model as a floating one"
    )


def run(arguments: argparse.Namespace) -> int:
    from ..runs import RunDirectory

    found = RunDirectory.open(arguments.run)
    suffix = ".mlxzo" if arguments.to == "journal" else f"-{arguments.to}"
    out = Path(arguments.out or f"{found.id}{suffix}").expanduser().absolute()
    from ..blas import load_fast_blas

    load_fast_blas()
    from ..console import RunView
    from ..exporting import export_job

    with RunView() as view:
        done = export_job(found, form=arguments.to, out=out, dequantise=arguments.dequantize, on_event=view.show)
    show(done, arguments.json)
    return EXIT_DONE


def show(done: dict[str, Any], as_json: bool) -> None:
    """Prints what was written, and how to use it."""
    if as_json:
        print_json(done)
        return
    from ..console import key_values, output
    from ..files import format_bytes

    rows = [("written", done["out"])]
    if "bytes" in done:
        rows.append(("size", format_bytes(done["bytes"])))
    if "step" in done:
        rows.append(("state", f"of step {done['step']}"))
    if "verified" in done:
        checked = "those of the run, to the bit" if done["verified"] else "the journal has no fingerprint to check by"
        rows.append(("weights", f"{done['steps']} steps replayed; {checked}"))
    if done.get("requantised"):
        rows.append(
            ("rounded", f"{done['requantised']} LoRA pairs, to the quantisation of the base; --dequantize avoids it")
        )
    uses = {
        "adapter": 'mlx_lm.generate --model BASE --adapter-path {0} --prompt "..."',
        "fused": 'mlxzo generate --model {0} "..."',
        "journal": "mlxzo replay {0} --out FOLDER",
    }
    rows.append(("use", uses[done["form"]].format(done["out"])))
    output().print(key_values(rows))
