"""The house keeps its order (the layers themselves are checked by `lint-imports`, see pyproject.toml)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import mlxzo
from bench import reference

ROOT = Path(mlxzo.__file__).parent
PAGES = [path for folder in ("", "docs") for path in sorted((ROOT.parent / folder).glob("*.md"))]
IMPORT_ALL = """
import importlib, pkgutil, sys
*packages, heavy = sys.argv[1:]
for name in packages:
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        importlib.import_module(module.name)
sys.exit(", ".join(sorted(set(heavy.split(",")) & set(sys.modules))) or 0)
"""


def test_the_root_of_the_package_holds_packages_alone():
    assert {path.name for path in ROOT.glob("*.py")} == {"__init__.py", "__main__.py"}, "a module belongs in a package"


@pytest.mark.parametrize(
    ("packages", "heavy"),
    [
        ("mlxzo.core mlxzo.tasks mlxzo.memory mlxzo.experiments mlxzo.cli tui", "mlx,mlx.core,mlx_lm"),
        ("mlxzo.cli", "mlx,textual,matplotlib"),
    ],
)
def test_importing_a_package_imports_nothing_heavy(packages, heavy):
    command = [sys.executable, "-c", IMPORT_ALL, *packages.split(), heavy]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_that_a_page_names_exists(page):
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:mlxzo|tui|tests|bench|docs|\.ci)/[^\s`]*)`", text))
    missing = [path for path in named if not (ROOT.parent / path).exists()]
    links = set(re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text))
    assert missing + [path for path in links if not (page.parent / path).exists()] == []


@pytest.mark.parametrize("name", reference.pages())
def test_the_generated_pages_say_what_the_code_says(name):
    page = (reference.DOCS / name).read_text(encoding="utf-8")
    assert page == reference.pages()[name], "stale: renew it with `python -m bench.reference`"
