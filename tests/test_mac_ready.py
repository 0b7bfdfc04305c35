"""What a Mac lacks, or its GPU cannot do, is not used; what is to run there is what the README says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import mlxzo

ROOT = Path(mlxzo.__file__).parents[1]
# Metal has no float64, and MLX has these only on the CPU, to which they have to be sent.
_CPU_ONLY = re.compile(
    r"mx\.float64|mx\.complex128|mx\.linalg\.(?:svd|qr|inv|tri_inv|pinv|cholesky\w*|eig\w*|lu\w*|solve\w*)\((?!.*mx\.cpu)"
)


def test_nothing_computes_what_metal_cannot():
    assert _CPU_ONLY.search("x.astype(mx.float64)") and _CPU_ONLY.search("u, s, v = mx.linalg.svd(x)")
    assert not _CPU_ONLY.search("mx.linalg.svd(x, stream=mx.cpu)") and not _CPU_ONLY.search("mx.linalg.norm(x)")
    found = {
        f"{path.name}:{number}"
        for folder in ("mlxzo", "bench")
        for path in (ROOT / folder).rglob("*.py")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if _CPU_ONLY.search(line)
    }
    assert found == set()


@pytest.mark.parametrize("script", [ROOT / ".ci" / name for name in ("run", "check", "resolve-mac")])
def test_no_script_needs_gnu_programs(script):
    # The bash of macOS is version 3.2.
    for word in (r"\btimeout ", r"\breadlink -f", r"\bsed -i ", r"\bnproc\b", r"\bmapfile\b", r"\bdeclare -A\b"):
        lines = [line for line in script.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
        assert not [line for line in lines if re.search(word, line)], word


@pytest.mark.parametrize(("seconds", "command", "code"), [(60, "exit 5", 5), (0.2, "exec sleep 60", 124)])
def test_the_limit_of_the_ci_ends_a_command(seconds, command, code):
    text = (ROOT / ".ci/run").read_text(encoding="utf-8")
    function = text[text.index("limit() {") : text.index("\n}\n") + 3].replace("python -c", f"{sys.executable} -c")
    done = subprocess.run(["bash", "-c", f'{function}\nlimit {seconds} bash -c "{command}"'], check=False)
    assert done.returncode == code


def test_the_workflow_runs_the_lines_of_the_readme_on_a_mac_and_on_linux():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    job = workflow["jobs"]["readme"]
    assert [name.split("-")[0] for name in job["strategy"]["matrix"]["os"]] == ["macos", "ubuntu"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [line for line in readme.splitlines() if line.startswith("python3 -m venv")]
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert len(lines) == 2 and [command for command in commands if command in lines] == lines
    assert all((ROOT / script).exists() for script in re.findall(r"\.ci/[\w-]+", str(workflow)))
