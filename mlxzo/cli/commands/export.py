"""Write the best state of a run in a format to use or to share.

  mlxzo export RUN --to adapter   a folder for `mlx_lm.generate --adapter-path`
  mlxzo export RUN --to fused     a complete model folder, for everything that reads mlx-lm's models
  mlxzo export RUN --to journal   one file of kilobytes, from which `mlxzo replay` rebuilds the weights bit for bit

LoRA adapters that are fused with quantised weights are rounded to the quantisation; --dequantize keeps them exact, in
a model as large as an unquantised one.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from ...core.errors import EXIT_DONE
from ...core.events import Emit, Event, Finished, to_json
from ...core.files import user_path
from ...core.formatting import default_out, result_rows
from ...memory.mlx_limits import start_mlx
from ..options import add_json
from ..printing import print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run directory, or the id of a run in the folder `runs`")
    parser.add_argument("--to", choices=("adapter", "fused", "journal"), required=True, help="the format to write")
    parser.add_argument(
        "--out", metavar="PATH", help="folder or file to write (default: <run id>-<format> in the current folder)"
    )
    add_dequantize(parser)
    add_json(parser)
    parser.add_argument(
        "--stream",
        action="store_true",
        help="with --json, for other programs: print progress as the events of a run, one JSON object a line; the "
        "last, `finished`, holds the result",
    )


def add_dequantize(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dequantize",
        action="store_true",
        help="with --to fused: store the weights of a quantised model as floating point",
    )


def run(arguments: argparse.Namespace) -> int:
    from ...core.run_directory import RunDirectory

    found = RunDirectory.open(arguments.run)
    out = user_path(arguments.out or default_out(found.id, arguments.to)).absolute()
    start_mlx()
    from ...engine.export import export_job

    def job(on_event: Emit) -> dict[str, Any]:
        return export_job(found, form=arguments.to, out=out, dequantise=arguments.dequantize, on_event=on_event)

    if arguments.json and arguments.stream:
        _print_event(Finished(job(_print_event)))
        return EXIT_DONE
    from ..console import RunView

    with RunView() as view:
        done = job(view.show)
    show(done, arguments.json)
    return EXIT_DONE


def _print_event(event: Event) -> None:
    print(to_json(event, time.time()), flush=True)


def show(done: dict[str, Any], as_json: bool) -> None:
    """Prints the files that were written, and how to use them."""
    if as_json:
        print_json(done)
        return
    from ..console import key_values, output

    output().print(key_values(result_rows(done)))
