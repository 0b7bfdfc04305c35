"""Report on this machine: device, memory, BLAS and its measured speed, versions, cache, hub, and what to improve."""

from __future__ import annotations

import argparse
from typing import Any

from ...core.errors import EXIT_DONE
from ...core.formatting import format_bytes
from ..options import add_json
from ..printing import print_json, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    from ...runtime import doctor
    from ..console import key_values, output, waiting

    with waiting("examining this machine"):
        report = doctor.examine()
    if arguments.json:
        print_json(report)
        return EXIT_DONE
    console = output()
    console.print(key_values(rows(report)))
    say()
    for line in report["advice"] or ["Nothing to improve."]:
        console.print(f"- {line}" if report["advice"] else line)
    return EXIT_DONE


def rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    """The report as (label, text) pairs; a check that failed shows its error."""
    system, mlx, cache, hub = (report[name] for name in ("system", "mlx", "cache", "hub"))
    lines: list[tuple[str, str]] = []
    if "error" in system:
        lines.append(("system", f"unknown: {system['error']}"))
    else:
        lines.append(
            ("system", f"{system['os']}, {system['cores']} cores (load {system['load']}), Python {system['python']}")
        )
        memory = (format_bytes(system[name]) for name in ("memory_bytes", "memory_available_bytes"))
        lines.append(("memory", "{}, of which {} free".format(*memory)))
        if "caffeinate" in system:
            awake = f"runs keep it off by {system['caffeinate']}" if system["caffeinate"] else "runs cannot keep it off"
            lines.append(("sleep", awake))
    if "error" in mlx:
        lines.append(("MLX", f"not working: {mlx['error']}"))
    else:
        name = " ".join(filter(None, (mlx["device_name"], mlx["architecture"] and f"({mlx['architecture']})")))
        lines.append(("device", f"{mlx['device']} {name}".strip()))
        if mlx["recommended_working_set_bytes"]:
            lines.append(("working set", f"{format_bytes(mlx['recommended_working_set_bytes'])} recommended at most"))
        lines.append(("BLAS", mlx["blas"] or "MLX's own"))
        lines.append(("variables", ", ".join(f"{name}={value}" for name, value in mlx["variables"].items())))
        speed = f"float32 {mlx['gemm_float32_gflops']} GFLOP/s, bfloat16 {mlx['gemm_bfloat16_gflops']} GFLOP/s"
        lines.append(("matrix product", speed))
    versions = [f"{name} {version or 'missing'}" for name, version in report["versions"].items()]
    lines.append(("versions", ", ".join(versions)))
    lines.append(("C++ compiler", report["compiler"].get("path") or "none"))
    if "error" in cache:
        lines.append(("cache", f"not readable: {cache['error']}"))
    else:
        lines.append(("cache", f"{cache['path']}, {format_bytes(cache['bytes'])}"))
    reach = "reachable" if hub.get("reachable") else f"not reachable: {hub.get('why') or hub.get('error')}"
    lines.append(("hub", reach))
    return lines
