"""Hooks of mkdocs.yml: the results of the benchmarks become pages of the site, and links to source files plain text.

The pages of docs/ are read on the disk as well, where they link to files outside docs/ by `../`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

_ROOT = Path(__file__).parents[1]
_RESULTS = _ROOT / "bench" / "results"


def on_files(files: Files, config: Any) -> Files:
    """Adds bench/results to the site, as results/."""
    for path in sorted(_RESULTS.iterdir()):
        files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turns links out of docs/ into links within the site, or into their text."""
    markdown = re.sub(r"\]\(\.\./bench/results/([^)]+)\)", r"](results/\1)", markdown)
    markdown = re.sub(r"\]\(\.\./bench/results\)", "](benchmarks.md)", markdown)
    return re.sub(r"\[([^\]]+)\]\(\.\./[^)]+\)", r"\1", markdown)
