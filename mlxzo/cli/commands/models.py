"""List the models known by name. A Hugging Face id, a folder of mlx-lm's and a .gguf file serve as well."""

from __future__ import annotations

import argparse

from ...core.errors import EXIT_DONE
from ..options import add_json, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    from ...models.registry import load_registry

    entries = list(load_registry().values())
    if arguments.json:
        import dataclasses

        print_json([{**dataclasses.asdict(entry), "weight_bytes": weight_bytes(entry)} for entry in entries])
        return EXIT_DONE
    from ...core.formatting import format_bytes, format_count
    from ..console import listing, output

    table = [
        [
            entry.name,
            format_count(entry.parameters),
            f"{entry.quantization.bits}-bit" if entry.quantization else entry.dtype,
            format_bytes(weight_bytes(entry)),
            "hub, mirror" if entry.mirror else "hub",
            entry.licence,
        ]
        for entry in entries
    ]
    columns = ["model", "parameters", "weights", "size", "from", "licence"]
    output().print(listing(columns, table, right=("parameters", "size")))
    print("\nmirror: also to be had from the Python package index, where the hub cannot be reached")
    return EXIT_DONE


def weight_bytes(entry) -> int:
    """About the size of a model's weights at rest, in bytes: a quantised weight counts its share of scale and bias."""
    if entry.quantization is None:
        return entry.parameters * {"float32": 4}.get(entry.dtype, 2)
    # One 16-bit scale and one 16-bit bias for each group.
    bits = entry.quantization.bits + 32 / entry.quantization.group_size
    return round(entry.parameters * bits / 8)
