"""What files, names and models hold is shown and never executed by the terminal, whatever command shows it."""

from __future__ import annotations

import json
import time

import pytest
import yaml

from mlxzo.cli.console import LiteralConsole, RunView
from mlxzo.core import events
from mlxzo.core.config import RunConfig
from mlxzo.core.formatting import json_text, printable
from mlxzo.core.run_directory import RunDirectory
from tests.command import mlxzo
from tests.hostile import ACTING, HOSTILE, HOSTILE_NAME, acting, hostile_data
from tests.tiny import tiny_folder

MORE = {
    "batch": {"name": "b", "runs": [{"name": HOSTILE, HOSTILE: 1}]},
    "comparison": {"contestants": [{"label": HOSTILE}], HOSTILE: 1},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, data and a run, in files and of names that hold control characters."""
    folder = tmp_path_factory.mktemp("hostile")
    model = tiny_folder(folder / f"model{HOSTILE_NAME}")
    data = hostile_data(folder / "data")
    for name, content in MORE.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    for name in ("one", "other"):
        run = RunDirectory.create(
            RunConfig(out=str(folder / HOSTILE_NAME), name=name, model=str(model), task=HOSTILE, data=HOSTILE)
        )
        story = (
            events.Loaded(HOSTILE, HOSTILE, 1, 1, 1, "", HOSTILE, 1, 1, 1, 1),
            events.Evaluated("zero-shot", "validation", 0, HOSTILE, 0.5, 1.0, 4, None, 1.0, True, {HOSTILE: 1.0}),
            events.Failed(HOSTILE, HOSTILE, HOSTILE, [HOSTILE], 4),
        )
        run.events_path.write_text("".join(events.to_json(event, time.time()) + "\n" for event in story))
        run.write_json("result.json", {"test": {"metric": HOSTILE, "value": 0.5}, name: HOSTILE})
    return folder, model, data


COMMANDS = {
    "runs ls": "runs ls --out {folder}/{name}",
    "runs ls of none": "runs ls {hostile} --out {folder}/{name}",
    "runs show": "runs show one --out {folder}/{name}",
    "runs show of none": "runs show {hostile} --out {folder}/{name}",
    "runs diff": "runs diff one other --out {folder}/{name}",
    "runs pause": "runs pause one --out {folder}/{name}",
    "tasks show": "tasks show {data}/task.yaml",
    "tasks check": "tasks check --task {data}/task.yaml --data {data} --model {model}",
    "plan": "plan --model {model} --memory-cap 2GB",
    "plan of none": "plan --model models/{name}",
    "train": "train --model {model} --task {hostile}",
    "train with a config": "train --config {folder}/comparison.yaml",
    "an unknown option": "train --{hostile}",
    "an unknown command": "{hostile}",
    "eval": "eval --model {model} --task {data}/task.yaml --data {data} --split validation",
    "generate": "generate --model {model} {hostile} --max-new-tokens 4",
    "export": "export {folder}/{name}/one --to adapter --out {folder}/{name}/one",
    "replay": "replay {folder}/{name}",
    "batch": "batch {folder}/batch.yaml",
    "compare": "compare --config {folder}/comparison.yaml",
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("as_json", [False, True])
def test_no_command_lets_control_characters_through(command, as_json, folder, monkeypatch):
    folder, model, data = folder
    monkeypatch.chdir(folder)
    places = {
        "folder": folder,
        "model": model,
        "data": data,
        "name": HOSTILE_NAME,
        "hostile": HOSTILE.replace("\0", ""),
    }
    words = [word.format(**places) for word in COMMANDS[command].split(" ")]
    done = mlxzo(*words, *(["--json"] if as_json and command not in ("runs pause",) else []))
    assert not acting(done.stdout) and not acting(done.stderr)
    assert "Traceback" not in done.stderr and "Internal error" not in done.stderr + done.stdout


def test_events_on_the_console_are_literal():
    console = LiteralConsole(width=200)
    with console.capture() as captured:
        view = RunView(console)
        for event in (
            events.Note(HOSTILE),
            events.Progress(HOSTILE, 1.0, 2.0, HOSTILE),
            events.Phase(HOSTILE, HOSTILE),
            events.RankStats([HOSTILE], [1.0], [1.0], [0.0], 0),
        ):
            view.show(event)
        console.print(f"[red]{HOSTILE}[/nothing] :smile:")
    assert not acting(captured.get())
    assert "[red]" in captured.get() and "[/nothing] :smile:" in captured.get()


def test_json_keeps_what_it_escapes():
    text = json_text({HOSTILE: "ü 日本\u3000\u200d"}, indent=2)
    assert not acting(text) and "ü 日本\u3000\u200d" in text
    assert json.loads(text) == {HOSTILE: "ü 日本\u3000\u200d"}


def test_letters_spaces_and_joiners_of_all_languages_are_shown():
    assert printable("où\u00a0? 日本\u3000語 👩\u200d🔬 \n") == "où\u00a0? 日本\u3000語 👩\u200d🔬 \n"
    assert printable(ACTING.replace("\t", ""), instead="") == ""
