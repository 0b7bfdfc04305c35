"""Whole runs from the command line: real workers on a tiny model, finished, refused, stopped and killed."""

import contextlib
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time

import psutil
import pytest
from rich.console import Console

from mlxzo.cli.commands.quickstart import answers_table, next_commands
from mlxzo.core import events
from mlxzo.core.run_directory import RunDirectory, list_runs
from tests.command import mlxzo, once
from tests.tiny import tiny_folder
from tests.warm_workers import warm_python
from tests.workers import kill_workers


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_folder(tmp_path_factory.mktemp("model") / "tiny"))


SCOPE = ["--scope", "norms/last-2"]
SMALL = ["--estimator", "spsa", "--steps", "6", "--eval-every", "3", "--batch-size", "4"]
SMALL += ["--train-examples", "16", "--validation-examples", "8", "--test-examples", "8"]


def result_model(result):
    return RunDirectory.open(result["run"]).config.model


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    """One finished run, and what the command printed."""
    root = tmp_path_factory.mktemp("runs")
    done = mlxzo("train", "--model", model, *SCOPE, *SMALL, "--out", root, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr, root


def test_a_run_trains_and_prints_its_result_as_one_json_document(finished):
    result, shown, root = finished
    assert result["steps"] == 6 and result["test"]["examples"] == 8 and result["memory"]["mlx_peak_bytes"] > 0
    run = RunDirectory(next(root.iterdir()))
    assert result["run"] == str(run.path)
    assert {**run.result(), "run": result["run"]} == result
    assert run.status == "finished"
    table = ("test accuracy", "state kept", "peak memory")
    for words in ("parameters, of which", "majority class", "zero-shot", "step 6 of 6", *table):
        assert words in shown


def test_the_run_is_listed_and_shown(finished):
    result, _, root = finished
    (listed,) = json.loads(mlxzo("runs", "ls", "--out", root, "--json").stdout)
    assert listed["status"] == "finished" and listed["step"] == listed["steps"] == 6
    shown = json.loads(mlxzo("runs", "show", result["run"], "--json").stdout)
    assert {item["kind"] for item in shown["evaluations"]} == {"zero-shot", "validation", "test"}
    assert shown["config"]["batch_size"] == 4 and shown["saved"]
    table = mlxzo("runs", "ls", "--out", root).stdout.splitlines()
    assert f"{100 * result['test']['value']:.1f} %" in table[1] and "6/6" in table[1]
    assert "validation accuracy" in mlxzo("runs", "show", listed["id"], "--out", root).stdout


def test_the_best_state_measures_again_as_it_did_in_the_run(finished):
    result, _, _ = finished
    done = mlxzo("eval", "--run", result["run"], "--json")
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)
    assert (again["value"], again["split"]) == (result["test"]["value"], "test")
    assert again["loss"] == pytest.approx(result["test"]["loss"], rel=1e-5)
    base = json.loads(mlxzo("eval", "--model", result_model(result), "--test-examples", 8, "--json").stdout)
    assert base["value"] == result["zero_shot"]["test"]["value"]
    assert "majority class" in mlxzo("eval", "--run", result["run"], "--split", "validation").stdout


def test_the_tuned_model_speaks_beside_its_base(finished):
    result, _, _ = finished
    done = mlxzo("generate", "--run", result["run"], "--max-new-tokens", 4, "--json", "The film was")
    assert done.returncode == 0, done.stderr
    spoken = json.loads(done.stdout)
    assert set(spoken) == {"prompt", "base", "tuned"}
    text = mlxzo("generate", "--model", result_model(result), "--max-new-tokens", 4, "The film was").stdout
    assert "--- base ---\nThe film was" in text and "tuned" not in text


def test_the_saved_configuration_gives_the_same_run_again(finished, tmp_path):
    result, _, _ = finished
    done = mlxzo("train", "--config", f"{result['run']}/config.yaml", "--out", tmp_path, "--json")
    again = json.loads(done.stdout)
    assert again["training_loss"] == result["training_loss"] and again["test"]["loss"] == result["test"]["loss"]


@pytest.mark.parametrize(
    ("files", "arguments", "code", "words"),
    [
        ({}, ["--data", "{tmp}/none"], 4, ["none"]),
        ({"train.jsonl": '{"text": "a", "label": "negative"}\n'}, ["--data", "{tmp}"], 4, ["validation.jsonl"]),
        (
            {
                "train.jsonl": '{"text": "a", "label": "negative"}\n{"text": "b", "label": "positive"}\n{"text": "c"\n',
                "validation.jsonl": '{"text": "a", "label": "negative"}\n',
            },
            ["--data", "{tmp}"],
            4,
            ["train.jsonl", "line 3"],
        ),
        (
            {
                "train.jsonl": '{"text": "a", "label": "neutral"}\n',
                "validation.jsonl": '{"text": "a", "label": "negative"}\n',
            },
            ["--data", "{tmp}"],
            4,
            ["neutral", "negative or positive"],
        ),
        ({"config.json": '{"model_type": "llama"}'}, ["--model", "{tmp}"], 4, ["tokenizer"]),
        ({}, ["--model", "someone/unheard-of"], 4, ["HF_HUB_OFFLINE", "mirror"]),
    ],
)
def test_data_and_models_that_cannot_be_had_end_with_4_and_plain_words(files, arguments, code, words, model, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    arguments = [text.format(tmp=tmp_path) for text in arguments]
    if "--model" not in arguments:
        arguments += ["--model", model]
    done = mlxzo("train", *arguments, *SCOPE, *SMALL, "--out", tmp_path / "runs")
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and "Fix: " in done.stderr
    for word in words:
        assert word in done.stderr
    # A folder that cannot be used is found before there is a run.
    without_run = words in (["none"], ["validation.jsonl"])
    assert [run.status for run in list_runs(tmp_path / "runs")] == ([] if without_run else ["failed"])


def test_a_disk_that_fills_up_while_saving_is_reported_with_3(model, tmp_path):
    root = tmp_path / "runs"
    # The limit on a file's size is passed on to the worker, whose best state goes over it.
    program = (
        "import resource, sys\nfrom mlxzo.cli.main import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\nsys.exit(main(sys.argv[1:]))"
    )
    arguments = ["train", "--model", model, "--scope", "full", *SMALL, "--out", str(root)]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
    assert done.returncode == 3 and "no room" in done.stderr and "Traceback" not in done.stderr, done.stderr


def long_run(model, root):
    """Arguments of a run of more steps than any test waits for."""
    arguments = [
        "train",
        "--model",
        model,
        "--estimator",
        "spsa",
        "--steps",
        "100000",
        "--eval-every",
        "2",
        "--batch-size",
        "2",
        *SCOPE,
    ]
    return [*arguments, "--validation-examples", "4", "--test-examples", "4", "--out", str(root)]


def in_training(root):
    """The run in a folder, once it has made its third step; before, None."""
    runs = list_runs(root)
    step = runs[0].last_event(events.Step) if runs else None
    return runs[0] if step is not None and step.step >= 3 else None


@contextlib.contextmanager
def training(model, root):
    """The command in a process of its own, once its run has made its third step."""
    command = [warm_python(), "-m", "mlxzo", *long_run(model, root)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        limit = time.monotonic() + 60
        while time.monotonic() < limit and not (run := in_training(root)):
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        yield process, run
    finally:
        kill_workers(root)
        process.kill()
        process.communicate()


def test_ctrl_c_stops_after_a_step_and_leaves_a_usable_state(model, tmp_path):
    with training(model, tmp_path) as (process, run):
        process.send_signal(signal.SIGINT)
        _, shown = process.communicate(timeout=30)
        assert process.returncode == 130 and run.status == "interrupted"
        assert "stopping after this step" in shown and "Interrupted: " in shown and "Traceback" not in shown
    done = mlxzo("eval", "--run", run.path, "--json")
    assert done.returncode == 0, done.stderr


def test_a_killed_worker_is_explained_with_3_and_leaves_a_usable_state(model, tmp_path):
    with once(
        lambda: in_training(tmp_path),
        lambda: os.kill(int(list_runs(tmp_path)[0].lock_path.read_text()), signal.SIGKILL),
    ):
        done = mlxzo(*long_run(model, tmp_path))
    (run,) = list_runs(tmp_path)
    assert done.returncode == 3 and run.status == "died"
    assert "Worker died: the training process was ended by SIGKILL" in done.stderr
    assert "last step " in done.stderr and "best.safetensors" in done.stderr
    assert mlxzo("eval", "--run", run.path).returncode == 0


def test_a_run_goes_on_when_its_command_is_killed(model, tmp_path):
    with training(model, tmp_path) as (process, run):
        worker = psutil.Process(int(run.lock_path.read_text()))
        process.kill()
        process.wait()
        reached, limit = run.last_event(events.Step).step, time.monotonic() + 30
        while run.last_event(events.Step).step <= reached:
            assert time.monotonic() < limit
            time.sleep(0.05)
        assert worker.is_running() and run.status == "running"


def test_the_commands_that_quickstart_ends_with_can_be_pasted(finished, tmp_path):
    run = RunDirectory.open(finished[0]["run"])
    generate, predict, export = next_commands(run)
    assert "tuned" in mlxzo(*shlex.split(generate)[1:]).stdout
    make, _, label = predict.partition(" | ")
    messages = subprocess.run(make, shell=True, capture_output=True, text=True, check=True).stdout
    assert mlxzo(*shlex.split(label)[1:], input=messages).stdout.count("predicted_label") == 2
    assert mlxzo(*shlex.split(export)[1:], "--out", tmp_path / "adapter").returncode == 0


def test_quickstart_ends_with_the_answers_of_both_models_to_test_messages(finished):
    run = RunDirectory.open(finished[0]["run"])
    console = Console(file=io.StringIO(), width=200)
    console.print(answers_table(run))
    header, *rows = console.file.getvalue().splitlines()
    assert header.split() == ["right", "base", "tuned", "message"] and len(rows) == 6
    shown = {(item["right"].strip(), item["prompt"].partition("\n")[0]) for item in samples_of(run)}
    assert shown == {(row.split()[0], row.rpartition(" % ")[2].strip()) for row in rows}


def samples_of(run):
    return run.last_event(events.Samples).items


def test_a_key_that_a_file_gives_twice_is_refused(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("steps: 6\nlr: 0.1\nsteps: 60\n")
    done = mlxzo("train", "--config", path, "--out", tmp_path / "runs")
    assert done.returncode == 2 and "line 3: steps: it is given more than once" in done.stderr
    assert not (tmp_path / "runs").exists()
