"""Rows from the hub: a real client against a real server on this machine, and what is said when there is none."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from mlxzo.core.errors import DataError
from mlxzo.tasks.hub import TEST_ROWS, VALIDATION_ROWS, read_parquet
from mlxzo.tasks.registry import get_task

ROOT = Path(__file__).parents[2]

# The client reads its endpoint once, at import: each case needs a process of its own.
LOAD = """
import json, sys
from mlxzo.core.config import RunConfig
from mlxzo.core.errors import MlxzoError
from mlxzo.tasks.registry import load_task
progress = []
try:
    data = load_task(RunConfig(**json.loads(sys.argv[1])), progress=progress.append)
except MlxzoError as error:
    result = error.to_dict()
else:
    result = {name: [example.prompt for example in getattr(data, name)] for name in ("train", "validation", "test")}
    result |= {"source": data.source, "duplicates": data.duplicates_across_splits}
print(json.dumps(result | {"progress": progress, "mlx": "mlx" in sys.modules}))
"""


def load(tmp_path, endpoint, environment=(), **config):
    """What load_task makes of a configuration in a fresh process, and the seconds it took."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    clean |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), **dict(environment)}
    start = time.monotonic()
    command = [sys.executable, "-c", LOAD, json.dumps(config)]
    done = subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), time.monotonic() - start


@pytest.fixture
def hub(tmp_path):
    """Serves parquet files the way the hub does; yields its address, the files by path and the requests seen."""
    files, requests = {}, []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(with_body=False)

        def do_GET(self):
            self.answer(with_body=True)

        def answer(self, with_body):
            requests.append(self.path)
            found = [(path, body) for path, body in files.items() if self.path == path]
            self.send_response(200 if found else 404)
            body = found[0][1] if found else b""
            self.send_header("Content-Length", str(len(body)))
            if found:
                self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
                self.send_header("X-Repo-Commit", self.path.split("/resolve/")[1].split("/")[0])
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", files, requests
    server.shutdown()
    server.server_close()


def publish(files, tmp_path, train, heldout):
    """Puts SST-2 rows where the task looks for them."""
    source = get_task("sst2").hub
    for name, texts in ((source.train, train), (source.heldout, heldout)):
        path = tmp_path / "served.parquet"
        labels = [i % 2 for i in range(len(texts))]
        columns = {"idx": list(range(len(texts))), "sentence": texts, "label": labels}
        parquet.write_table(pyarrow.table(columns), path)
        files[f"/datasets/{source.repo}/resolve/{source.revision}/{name}"] = path.read_bytes()


def test_public_splits_become_training_validation_and_test_rows(tmp_path, hub):
    endpoint, files, requests = hub
    publish(files, tmp_path, [f"train {i} " for i in range(700)], [f"held out {i} " for i in range(40)])
    options = {"task": "sst2", "train_examples": 150, "validation_examples": None}
    first, _ = load(tmp_path, endpoint, seed=0, **options)
    assert [len(first[split]) for split in ("train", "validation", "test")] == [150, VALIDATION_ROWS, 40]
    assert all(prompt.startswith("train ") for prompt in first["train"] + first["validation"])
    assert all(prompt.startswith("held out ") for prompt in first["test"])
    assert not set(first["train"]) & set(first["validation"])
    assert first["duplicates"] == 0
    assert first["source"] == "hub stanfordnlp/sst2"
    assert len(first["progress"]) == 2
    assert first["mlx"] is False

    # Another seed draws other training rows, holds out the same ones, and finds the files in the cache.
    seen = len(requests)
    second, _ = load(tmp_path, "http://127.0.0.1:9", seed=1, **options)
    assert len(requests) == seen
    assert set(second["train"]) != set(first["train"])
    assert (second["validation"], second["test"]) == (first["validation"], first["test"])


def test_without_the_hub_the_reason_and_the_way_out_come_within_seconds(tmp_path):
    error, seconds = load(tmp_path, "http://127.0.0.1:9", task="boolq")
    assert error["message"] == "google/boolq cannot be fetched: the hub cannot be reached"
    assert error["fix"] == (
        "pass --data DIR with train.jsonl and validation.jsonl, or use --task reviews, which needs no network"
    )
    assert error["exit_code"] == 4
    assert seconds < 8


def test_offline_mode_is_named(tmp_path):
    error, _ = load(tmp_path, "http://127.0.0.1:9", {"HF_HUB_OFFLINE": "1"}, task="sst2")
    assert error["message"].endswith("the hub cannot be reached (HF_HUB_OFFLINE is set)")


def test_a_refusal_names_its_status(tmp_path, hub):
    error, _ = load(tmp_path, hub[0], task="sst2")
    assert error["message"] == "stanfordnlp/sst2 cannot be fetched: the hub answered with HTTP status 404"


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"sentence": ["a"]}, "has no field label"),
        ({"sentence": ["a", "b"], "label": [1, -1]}, "row 2: the label -1 is not 0 (negative) or 1 (positive)"),
        (None, "is no readable parquet file"),
    ],
)
def test_a_file_that_is_not_what_the_task_expects_is_explained(tmp_path, columns, sentence):
    path = tmp_path / "rows.parquet"
    if columns is None:
        path.write_bytes(b"not parquet")
    else:
        parquet.write_table(pyarrow.table(columns), path)
    with pytest.raises(DataError) as caught:
        read_parquet(get_task("sst2"), str(path))
    assert sentence in caught.value.message


def test_without_a_public_validation_split_test_rows_are_training_rows_that_nothing_else_uses(tmp_path, hub):
    endpoint, files, _ = hub
    source, path, count = get_task("sms_spam").hub, tmp_path / "served.parquet", TEST_ROWS + VALIDATION_ROWS + 30
    columns = {"sms": [f"message {i}" for i in range(count)], "label": [i % 2 for i in range(count)]}
    parquet.write_table(pyarrow.table(columns), path)
    files[f"/datasets/{source.repo}/resolve/{source.revision}/{source.train}"] = path.read_bytes()
    everything = {"train_examples": None, "validation_examples": None, "test_examples": None}
    found, _ = load(tmp_path, endpoint, task="sms_spam", **everything)
    assert [len(found[split]) for split in ("train", "validation", "test")] == [30, VALIDATION_ROWS, TEST_ROWS]
    assert len({*found["train"], *found["validation"], *found["test"]}) == count
