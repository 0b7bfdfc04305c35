"""Rebuild the weights of a run from its journal and the base model, and verify that they are the same bit for bit.

mlxzo replay RUN-ID.mlxzo --out tuned                        an mlx-lm adapter folder
mlxzo replay RUN-ID.mlxzo --to fused --out tuned             a complete mlx-lm model
mlxzo replay runs/RUN/journal.bin --model DIR --out tuned    from another copy of the base model
"""

from __future__ import annotations

import argparse

from ...core.errors import EXIT_DONE
from ...core.files import user_path
from ...memory.mlx_limits import start_mlx
from ..options import add_json
from .export import add_dequantize, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("journal", metavar="JOURNAL", help="an exported journal, or a run's journal.bin")
    parser.add_argument("--model", help="the base model (default: that of the journal)")
    parser.add_argument(
        "--to", choices=("adapter", "fused"), default="adapter", help="the form to write (default: adapter)"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="folder to write (default: <journal's name>-<form> in the current folder)"
    )
    add_dequantize(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    path = user_path(arguments.journal)
    out = user_path(arguments.out or f"{path.stem}-{arguments.to}").absolute()
    start_mlx()
    from ...engine.export import replay_job
    from ..console import RunView

    with RunView() as view:
        done = replay_job(
            path,
            model=arguments.model,
            form=arguments.to,
            out=out,
            dequantise=arguments.dequantize,
            on_event=view.show,
        )
    show(done, arguments.json)
    return EXIT_DONE
