"""List the models known by name. A Hugging Face id, an mlx-lm model folder and a .gguf file work as well."""

from __future__ import annotations

import argparse

from ...core.errors import EXIT_DONE
from ...core.formatting import format_bytes, format_count
from ..options import add_json
from ..printing import print_json, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    from ...models.registry import load_registry
    from ...models.resolve import shape_of_entry

    entries = [(entry, shape_of_entry(entry).weight_bytes()) for entry in load_registry().values()]
    if arguments.json:
        print_json([{**entry.as_dict(), "weight_bytes": size} for entry, size in entries])
        return EXIT_DONE
    from ..console import listing, output

    table = [
        [
            entry.name,
            format_count(entry.parameters),
            entry.shape.number_format(),
            format_bytes(size),
            "hub, mirror" if entry.mirror else "hub",
            entry.licence,
        ]
        for entry, size in entries
    ]
    columns = ["model", "parameters", "weights", "size", "from", "licence"]
    output().print(listing(columns, table, right=("parameters", "size")))
    say("\nmirror: also available from the Python package index, for when the hub cannot be reached")
    return EXIT_DONE
