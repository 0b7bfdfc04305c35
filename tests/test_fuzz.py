"""Damaged and hostile files of every kind that mlxzo reads: each gives a value, or one error of that file.

Files written by our own writers are changed at random, by a generator that is seeded:

    MLXZO_FUZZ_SEED=7 python -m pytest tests/test_fuzz.py -m slow -n 0

tries other files than the default seed, 0.
"""

from __future__ import annotations

import io
import json
import math
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
import yaml
from rich.console import Console

from mlxzo.cli.commands.runs import summary
from mlxzo.core import events
from mlxzo.core.config import RunConfig
from mlxzo.core.errors import InternalError, MlxzoError
from mlxzo.core.run_directory import RunDirectory, list_runs
from mlxzo.core.run_history import RunHistory
from mlxzo.core.yaml_file import read_yaml
from mlxzo.engine.checkpoint_file import load_state, save_state
from mlxzo.engine.tuned_model import add_adapter
from mlxzo.engine.tuned_source import read_journal
from mlxzo.experiments.comparison import Comparison
from mlxzo.experiments.report.run_record import ComparedRun
from mlxzo.experiments.sweep import Sweep
from mlxzo.models.adapter_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from mlxzo.models.architecture import of_folder
from mlxzo.models.folder import context_length
from mlxzo.models.gguf.convert import convert_gguf
from mlxzo.models.loading import LoadedModel, load_model, load_tokenizer
from mlxzo.models.registry import load_registry, registry_path
from mlxzo.models.slots import Slot
from mlxzo.runtime.hosts import read_hosts
from mlxzo.runtime.resume import resume_config
from mlxzo.tasks.registry import get_task, load_task
from mlxzo.zo.journal import Header, JournalStep, JournalWriter, Parameter
from tests.models.gguf_writing import write_tiny_gguf
from tests.tiny import tiny_folder, tiny_model
from tui.panels import samples_panel
from tui.planning import training_time
from tui.resume_info import checkpoint_rows
from tui.run_list import read_entry
from tui.sweeps import read_sweeps

SEED = os.environ.get("MLXZO_FUZZ_SEED", "0")
FILES = 40
"""Changed files of each kind."""
LONGEST_TEXT, MOST_DETAILS = 1500, 201
HANG_SECONDS = 60

# Values of every kind that a field of another kind may hold.
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3.5, 1e308, math.inf, math.nan, 100_000, 2**31, 2**63, 2**64, 10**40),
    *("", "-1", "NaN", "x" * 300_000, "\x1b]52;c;x\x07", "\ud800", "../../x", "/dev/zero"),
    *([], {}, [None], [[]], [1, 2, 3], {"a": 1}, {"": None}, ["x"] * 5000),
)


def change_bytes(content: bytes, r: random.Random) -> bytes:
    """Cut, flipped, inserted, removed, doubled or emptied somewhere; the beginning, where headers are, most often."""
    place = r.randrange(min(len(content), r.choice((64, 512, 4096, len(content) + 1))) + 1)
    match r.randrange(8):
        case 0:
            return content[:place]
        case 1:
            changed = bytearray(content)
            for _ in range(r.choice((1, 1, 4, 40))):
                changed[r.randrange(place, len(content)) if place < len(content) else -1] = r.randrange(256)
            return bytes(changed)
        case 2:
            return content[:place] + r.randbytes(r.choice((1, 4, 64))) + content[place:]
        case 3:
            return content[:place] + content[place + r.choice((1, 4, 64)) :]
        case 4:
            return content[:place] + bytes(len(content) - place)
        case 5:
            large = 2 ** r.choice((31, 32, 62, 63, 64)) - 1
            return content[:place] + large.to_bytes(8, "little") + content[place + 8 :]
        case 6:
            return content * 2
    return r.choice((b"", r.randbytes(500), bytes(len(content))))


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The paths of all values in nested mappings and lists."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def change_value(value: Any, r: random.Random) -> Any:
    """One value anywhere in nested ones is replaced by an odd one, or removed."""
    path = r.choice(list(places(value)))
    if not path:
        return r.choice(ODD)
    value = json.loads(json.dumps(value))
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    if r.random() < 0.2:
        del holder[path[-1]]
    else:
        holder[path[-1]] = r.choice(ODD)
    return value


def change_json(content: bytes, r: random.Random) -> bytes:
    deep = (b"[" * 100_000, b'{"a":' * 3000 + b"1" + b"}" * 3000, b"1" * 5000, b"\xff\xfe" + content)
    if r.random() < 0.15:
        return r.choice(deep)
    if r.random() < 0.25:
        return change_bytes(content, r)
    return json.dumps(change_value(json.loads(content), r)).encode()


def change_line(content: bytes, r: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    number = r.randrange(len(lines))
    lines[number] = change_json(lines[number], r) + b"\n"
    return b"".join(lines)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
YAML_LINES = (
    *("? [a]\n: b\n", "<<: *x\n", "<<: 3\n", "1: 2\n", "null: 1\n", "- a\n", "a: &a [*a]\n", "a: 2001-02-30\n"),
    *(
        'x: !!int "y"\n',
        "x: !!binary '####'\n",
        "x: !!python/object/apply:os.getcwd []\n",
        "x: 1:" + "1:" * 3000 + "1\n",
    ),
    *(f"steps: 0x{'f' * 5000}\n", f"steps: {'9' * 5000}\n", f"x: '{'y' * 200_000}'\n", "lr: 1e400\n", "lr: .nan\n"),
    *("x: " + "[" * depth + "]" * depth + "\n" for depth in (60, 900, 5000, 100_000)),
    *("".join(f"k{number}: 1\n" for number in range(3000)), BOMB),
)


def change_yaml(content: bytes, r: random.Random) -> bytes:
    if r.random() < 0.3:
        return content + r.choice(YAML_LINES).encode()
    if r.random() < 0.3:
        return change_bytes(content, r)
    changed = change_value(yaml.safe_load(content), r)
    text = json.dumps(changed) if r.random() < 0.5 else yaml.safe_dump(changed)
    return text.encode("utf-8", "surrogatepass")


@dataclass(frozen=True)
class Kind:
    """A kind of file: the file in the folder of a case, what changes it, and all that reads it from the folder."""

    name: str
    file: str
    change: Callable[[bytes, random.Random], bytes]
    read: Callable[[Path], object]


def read_run(folder: Path) -> None:
    """Everything that is shown of a run and its neighbours."""
    runs = list_runs(folder / "runs")
    assert {run.id for run in runs} == {"good", "bad"}
    for run in runs:
        assert json.dumps(summary(run), default=str) and read_entry(run).words
    bad = RunDirectory(folder / "runs" / "bad")
    history = RunHistory.read(bad.events())
    for event, time in bad.events():
        events.to_json(event, time)
    training_time(RunConfig(), runs)
    Console(file=io.StringIO()).print(samples_panel(history))
    checkpoint_rows(bad, history)
    ComparedRun("bad", bad.config, bad).to_dict()
    resume_config(bad, {"steps": 1000})


def read_configuration(folder: Path) -> None:
    RunConfig.from_mapping(read_yaml(folder / RUN_CONFIG))


def read_tokenizer(folder: Path) -> None:
    load_tokenizer(folder / "model")


def read_data(folder: Path) -> None:
    load_task(RunConfig(task="custom", data=str(folder / "data")))


def read_model(folder: Path) -> None:
    of_folder(folder / "model").tensors  # noqa: B018
    context_length(folder / "model")
    load_model(folder / "model")


def read_adapter(folder: Path) -> None:
    add_adapter(LoadedModel(tiny_model(layers=1, hidden=16), None, folder, {}), folder / "adapter")


def read_state(folder: Path) -> None:
    values = {"a": mx.zeros((2, 3)), "b": mx.zeros(5)}
    load_state(folder / "state.safetensors", {name: Slot(values, name) for name in values}, list(values))


def read_gguf_file(folder: Path) -> None:
    convert_gguf(folder / "tiny.gguf", folder / "converted", weights="float32")


def read_summary(folder: Path) -> None:
    read_sweeps([folder / "sweep"])


RUN_CONFIG, RESULT, EVENTS = "runs/bad/config.yaml", "runs/bad/result.json", "runs/bad/events.jsonl"
KINDS = (
    Kind("configuration", RUN_CONFIG, change_yaml, read_configuration),
    Kind("sweep", "sweep.yaml", change_yaml, lambda folder: Sweep.read(folder / "sweep.yaml")),
    Kind("comparison", "compare.yaml", change_yaml, lambda folder: Comparison.read(folder / "compare.yaml", {})),
    Kind("task", "task.yaml", change_yaml, lambda folder: get_task(str(folder / "task.yaml"))),
    Kind("models", "models.yaml", change_yaml, lambda folder: load_registry(folder / "models.yaml")),
    Kind("JSONL", "data/train.jsonl", change_line, read_data),
    Kind("CSV", "data/validation.csv", change_bytes, read_data),
    Kind("journal", "journal.bin", change_bytes, lambda folder: list(read_journal(folder / "journal.bin"))),
    Kind("GGUF", "tiny.gguf", change_bytes, read_gguf_file),
    Kind("safetensors", "state.safetensors", change_bytes, read_state),
    Kind("weights", "model/model.safetensors", change_bytes, read_model),
    Kind("config.json", "model/config.json", change_json, read_model),
    Kind("tokenizer", "model/tokenizer.json", change_json, read_tokenizer),
    Kind(
        "tokenizer settings",
        "model/tokenizer_config.json",
        change_json,
        read_tokenizer,
    ),
    Kind("adapter settings", f"adapter/{ADAPTER_CONFIG}", change_json, read_adapter),
    Kind("adapter", f"adapter/{ADAPTER_WEIGHTS}", change_bytes, read_adapter),
    Kind("hosts", "hosts.json", change_json, lambda folder: read_hosts(str(folder / "hosts.json"))),
    Kind("events", EVENTS, change_line, read_run),
    Kind("result", RESULT, change_json, read_run),
    Kind("run's configuration", RUN_CONFIG, change_yaml, read_run),
    Kind("version", "runs/bad/schema.json", change_json, read_run),
    Kind("summary", "sweep/summary.jsonl", change_line, read_summary),
)


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Path:
    """A folder with a valid file of each kind."""
    folder = tmp_path_factory.mktemp("originals")
    (folder / "data").mkdir()
    rows = [{"text": f"a film, number {number}", "label": ("bad", "good")[number % 2]} for number in range(8)]
    (folder / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cells = "".join('"{text}",{label}\n'.format(**row) for row in rows)
    (folder / "data" / "validation.csv").write_text("text,label\n" + cells)
    tiny_folder(folder / "model", layers=1, hidden=16)
    write_tiny_gguf(folder / "tiny.gguf", layers=1, hidden=16)
    shutil.copy(registry_path(), folder / "models.yaml")
    (folder / "task.yaml").write_text('name: films\ntemplate: "{text} It was"\nlabels: {good: good, bad: bad}\n')
    sweep = {"name": "rates", "seeds": [0, 1], "defaults": {"steps": 4}, "grid": {"scope": ["norms", "lora"]}}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    contestants = [{"model": "smollm2-135m", "method": method} for method in ("mezo", "bp")]
    (folder / "compare.yaml").write_text(yaml.safe_dump({"task": "reviews", "steps": 4, "contestants": contestants}))
    hosts = [{"ssh": f"mac{number}", "ips": [f"10.0.0.{number}"], "share": number} for number in (1, 2)]
    (folder / "hosts.json").write_text(json.dumps({"hosts": hosts, "envs": ["A=1"]}))
    for name in ("good", "bad"):
        run = RunDirectory.create(RunConfig(name=name, out=str(folder / "runs"), steps=2))
        evaluation = {"metric": "accuracy", "value": 0.5, "loss": 0.7, "examples": 10}
        result = {"steps": 2, "zero_shot": {"test": evaluation}, "test": evaluation, "steps_per_second": 0.5}
        result |= {"best": {"step": 2, "validation": evaluation}, "model": "smollm2-135m", "method": "mezo"}
        sample = {"prompt": "p", "answer": "a", "right": "a", "share": 0.5}
        story: list[events.Event] = [
            events.Phase("train"),
            events.Loaded("m", "hub", 10, 2, 1, "ab", "reviews", 1, 2, 3, 4),
            events.Evaluated("zero-shot", "validation", 0, "accuracy", 0.5, 0.7, 10, 0.5, 1.0, False),
            events.Population(1, [0.25, 0.5], 0.1, 0.3, [{"prompt": "p", "best": "a", "median": "b"}]),
            *(events.Step(i, 2, 0.5, 0.6, 0.1, None, 0.2, 64, 5.0, 320.0, 1.4, 10, 20, 30) for i in (1, 2)),
            events.Memory("train", 9, 10, 5, 1, 6, None, 100, 0, 2),
            events.RankStats(["a", "b"], [0.25, 0.75], [1.0, 2.0], [1.0, 0.0], 64),
            events.Samples("validation", [sample]),
            events.Evaluated("validation", "validation", 2, "accuracy", 0.6, 0.6, 10, 0.5, 1.0, True, {"f1": 0.5}),
            events.Saved("checkpoints/best.safetensors", 2, 100),
            events.Finished(result) if name == "good" else events.Failed("Data", "m", "f", ["a"], 4),
        ]
        run.events_path.write_text("".join(events.to_json(event, 1e9 + i) + "\n" for i, event in enumerate(story)))
        run.write_json("result.json", result)
    config = {**RunConfig(queries=2, weight_decay=0.1, estimator="spsa").resolved().to_dict(), "update": "sgd"}
    header = Header(config, "ab" * 32, (Parameter("a", "float32", (2, 3), 1.0),), 1)
    writer = JournalWriter(folder / "journal.bin", header)
    for _ in range(5):
        writer.append(JournalStep((0.5, 0.25), (0.1, 0.2), 0.7, 0.01))
    writer.close()
    save_state(folder / "state.safetensors", {"a": mx.ones((2, 3)), "b": mx.ones(5)}, 3)
    (folder / "adapter").mkdir()
    parameters = {"rank": 2, "scale": 2.0, "dropout": 0.0, "keys": ["self_attn.q_proj"]}
    described = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": parameters}
    (folder / "adapter" / ADAPTER_CONFIG).write_text(json.dumps(described))
    layer = "model.layers.0.self_attn.q_proj"
    tensors = {f"{layer}.lora_a": mx.ones((16, 2)), f"{layer}.lora_b": mx.ones((2, 16))}
    mx.save_safetensors(str(folder / "adapter" / ADAPTER_WEIGHTS), tensors)
    (folder / "sweep").mkdir()
    done = [{"id": f"rates-s{number}", "status": "finished", "seconds": 3.5} for number in range(3)]
    (folder / "sweep" / "summary.jsonl").write_text("".join(json.dumps(record) + "\n" for record in done))
    return folder


@contextmanager
def interrupted(seconds: int) -> Iterator[None]:
    """Ends what hangs, by an exception in the middle of it."""

    def end(*_: object) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.slow
@pytest.mark.variant
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_changed_file_gives_a_value_or_one_short_error(kind, originals, tmp_path):
    folder = shutil.copytree(originals, tmp_path / "case")
    path = folder / kind.file
    original = path.read_bytes()
    kind.read(folder)
    for number in range(FILES):
        shutil.rmtree(folder / "converted", ignore_errors=True)
        path.write_bytes(kind.change(original, random.Random(f"{SEED} {kind.name} {number}")))
        try:
            with interrupted(HANG_SECONDS):
                kind.read(folder)
        except MlxzoError as error:
            texts = (error.message, error.fix, *error.details)
            assert not isinstance(error, InternalError) and len(error.details) <= MOST_DETAILS, number
            assert max(map(len, texts)) < LONGEST_TEXT, (number, str(error)[:500])
        except Exception as error:
            shutil.copy(path, tmp_path / "failed")
            raise AssertionError(f"file {number}, kept as {tmp_path / 'failed'}: {error!r:.500}") from error
