"""docs/use.md: its recipes work as they are printed, on a tiny model with an adapter that mlxzo exported."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlxzo.models.loading import load_model
from mlxzo.models.resolve import resolve
from tests.command import mlxzo
from tests.engine.test_export import tuned_run
from tests.tiny import tiny_folder

pytestmark = [pytest.mark.slow, pytest.mark.variant]

TEXT = (Path(__file__).parents[2] / "docs" / "use.md").read_text(encoding="utf-8")
BIN = Path(sys.executable).parent


def recipe(words: str) -> str:
    """The one block of the page with these words."""
    (found,) = [block for block in re.findall(r"```(?:python)?\n(.*?)```", TEXT, re.DOTALL) if words in block]
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a base model, a run of it and what the page exports."""
    folder = tmp_path_factory.mktemp("use")
    base = tiny_folder(folder / "base")
    run, _ = tuned_run(folder, "norms/last-2", base)
    shell(recipe("--to adapter").replace("RUN", str(run.path)), folder)
    return folder


def shell(command: str, folder: Path) -> str:
    command = re.sub(r"^(mlx_lm|mlxzo)", lambda found: f"{BIN}/{found[1]}", command).replace("BASE", "base")
    done = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_generate_answers(place):
    assert "Generation: 1 tokens" in shell(recipe("mlx_lm.generate --model"), place)


def test_the_server_answers(place):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    command = recipe("mlx_lm.server --model").replace("8080", port).replace("BASE", "base").split()
    with subprocess.Popen([BIN / command[0], *command[1:]], cwd=place, stderr=subprocess.DEVNULL) as server:
        try:
            ask = recipe("curl").replace("8080", port).replace("curl", "curl --silent --fail")
            limit = time.monotonic() + 120
            while (done := subprocess.run(ask, shell=True, capture_output=True, text=True)).returncode:
                assert time.monotonic() < limit and server.poll() is None
                time.sleep(0.5)
        finally:
            server.terminate()
    (choice,) = json.loads(done.stdout)["choices"]
    assert len(choice["logprobs"]["content"][0]["top_logprobs"]) == 4


def test_python_answers(place):
    code = recipe("import generate").replace("BASE", "base")
    subprocess.run([sys.executable, "-c", code], cwd=place, check=True, timeout=300)


def test_a_gguf_has_the_weights_of_the_tuned_model(place):
    shell(recipe("--export-gguf"), place)
    assert mlxzo("export", place / "run", "--to", "fused", "--out", place / "whole").returncode == 0
    models = [load_model(resolve(str(place / name))).model for name in ("fused/model.gguf", "whole")]
    found, expected = (dict(tree_flatten(model.parameters())) for model in models)
    assert found.keys() == expected.keys()
    # float16 in the file.
    assert all(mx.allclose(found[name], expected[name], rtol=1e-3, atol=1e-4).item() for name in expected)
