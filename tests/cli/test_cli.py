"""The command line as a user meets it: arguments in, exit code and text out, never a traceback."""

import json
import subprocess
import sys

import pytest

from mlxzo.cli.commands.train import read_config
from mlxzo.cli.main import COMMANDS, main
from mlxzo.core.config import RunConfig, options
from mlxzo.core.errors import ConfigError
from mlxzo.core.options import flag


def run_cli(*arguments, **more):
    command = [sys.executable, "-m", "mlxzo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **more)


@pytest.mark.parametrize(
    ("arguments", "code", "stderr"),
    [
        ("trian", 2, "unknown command 'trian'; did you mean train?"),
        ("--jsn", 2, "unknown option --jsn"),
        ("train --batchsize 4", 2, "unknown option --batchsize; did you mean --batch-size?"),
        ("train --batchsize=4 --sede 1", 2, "did you mean --seed?"),
        ("train --activation_cache off", 2, "did you mean --activation-cache?"),
        ("train --iters 5", 2, "--iters: an option of mlx-lm; here it is `steps`"),
        ("train --epochs 5", 2, "Usage: unknown option --epochs\n"),
        ("train --run x", 2, "mlxzo export RUN --to fused"),
        ("train --batch-size", 2, "expected one argument"),
        ("train extra", 2, "unexpected argument 'extra'"),
        ("train --batch-size 0", 2, "expected a whole number of at least 1 and at most 1,000,000, not 0"),
        ("train --steps many --lr 0", 2, "2 problems in the configuration"),
        ("train --scope half", 2, "scope 'half' is not known"),
        ("train --model smolm2-135m", 4, "did you mean smollm2-135m"),
        ("train --task review", 2, "did you mean reviews?"),
        ("train --task none.yaml", 2, "none.yaml"),
        ("train --config none.yaml", 2, "none.yaml does not exist"),
        ("train --name ../up", 2, "name: '../up'"),
        ("quickstart --model x", 2, "unknown option --model"),
        ("eval --run nothing", 2, "nothing is no run directory"),
        ("eval --split train", 2, "invalid choice: 'train'"),
        ("train --scope auto --lr 0.1", 2, "scope: its value auto was removed; name a scope"),
        ("train --probe lr", 2, "--probe: this option was removed; leave it out, and give --lr"),
        ("compare", 2, "contestants: name at least one"),
        ("compare --contestant m --minutes 0 --seeds 1,1", 2, "2 problems in the comparison"),
        ("compare --contestant m --task review", 2, "did you mean reviews?"),
        ("compare --contestant m --model m", 2, "unknown option --model"),
        ("compare --config none.yaml", 2, "none.yaml does not exist"),
        ("compare --runs none", 2, "none is no run directory"),
        ("compare --runs none --contestant m", 2, "--runs compares runs that exist"),
        ("probe --task sst2", 2, "the command probe was removed; give --lr, or keep the default"),
        ("generate", 2, "the following arguments are required: PROMPT"),
        ("generate --max-new-tokens 0 x", 2, "--max-new-tokens must be 1 to 4096"),
        ("generate --max-new-tokens x x", 2, "invalid int value"),
        ("generate --temperature hot x", 2, "--temperature: expected a number of at least 0"),
        ("generate --temperature 1 --top-p 0 x", 2, "--top-p: expected a number above 0 and at most 1"),
        ("generate --seed -1 x", 2, "--seed: expected a whole number of at least 0"),
        ("batch", 2, "the following arguments are required: FILE"),
        ("batch none.yaml", 2, "none.yaml does not exist"),
        ("batch none.yaml --jobs 0 --memory-cap much", 2, "--jobs must be 1 to 64; --memory-cap: expected a size"),
        ("runs", 2, "required: ACTION"),
        ("runs ls --sort size", 2, "invalid choice: 'size'"),
        ("runs rm none --yes", 2, "runs has no run none"),
        ("runs diff none", 2, "required: RUN"),
        ("runs show", 2, "required: RUN"),
        ("runs show none", 2, "none is no run directory"),
        ("runs ls --oot x", 2, "did you mean --out?"),
    ],
)
def test_a_mistake_is_named_with_its_exit_code(arguments, code, stderr, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(arguments.split()) == code
    captured = capsys.readouterr()
    assert stderr in captured.err and "Traceback" not in captured.err
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_an_old_spelling_of_an_option_is_accepted_and_not_suggested(capsys):
    assert main(["train", "--prefix-cash", "off"]) == 2
    assert "--prefix-cache" not in capsys.readouterr().err


def test_an_error_is_a_json_document_where_json_was_asked_for(capsys):
    assert main(["train", "--json", "--batch-size", "0", "--steps", "x"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["exit_code"] == 2 and len(error["details"]) == 2


def test_a_prompt_that_is_empty_is_refused(capsys):
    assert main(["generate", " "]) == 2
    assert "the prompt is empty" in capsys.readouterr().err


def test_every_problem_of_a_yaml_file_is_listed_with_the_file_named(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text("batchsize: 3\nsteps: 0\nlr: fast\n")
    assert main(["train", "--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert str(path) in error and "did you mean batch_size?" in error and "steps:" in error and "lr:" in error


def test_every_option_is_reachable_as_a_flag_and_wins_over_yaml(tmp_path, capsys):
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    assert [field.name for field in options() if f"{flag(field.name)} " not in text] == []
    path = tmp_path / "run.yaml"
    path.write_text("steps: 3\nseed: 5\n")
    config = read_config({"steps": "7"}, str(path))
    assert (config.steps, config.seed) == (7, 5)


def test_paths_are_made_absolute_so_that_a_run_can_be_used_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    config = read_config({"data": "rows", "model": "./model"}, None)
    assert (config.data, config.model) == (str(tmp_path / "rows"), str(tmp_path / "model"))
    assert read_config({"model": "org/name"}, None).model == "org/name"


def test_a_folder_does_not_stand_in_for_a_known_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / RunConfig.model).mkdir()
    assert read_config({}, None).model == RunConfig.model


def test_help_names_every_command_and_each_has_help_of_its_own(capsys):
    assert main([]) == main(["--help"]) == 0
    text = capsys.readouterr().out
    for name in COMMANDS:
        assert name in text
        assert main([name, "--help"]) == 0
    assert main(["--version"]) == 0


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"], ["trian"], ["runs", "ls"]])
def test_help_and_small_errors_import_nothing_heavy(arguments, tmp_path):
    program = (
        "import sys\nfrom mlxzo.cli.main import main\nmain(sys.argv[1:])\n"
        "heavy = {'mlx', 'mlx_lm', 'numpy', 'rich', 'textual', 'transformers', 'huggingface_hub', 'pyarrow', 'gguf'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_models_and_tasks_as_tables_and_as_json(capsys):
    assert main(["models"]) == 0 and "smollm2-135m" in capsys.readouterr().out
    assert main(["models", "--json"]) == 0
    models = json.loads(capsys.readouterr().out)
    assert len(models) >= 14 and all(model["weight_bytes"] > 1e7 for model in models)
    assert main(["tasks"]) == 0 and "embedded" in capsys.readouterr().out
    assert main(["tasks", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["name"] == "reviews"


def test_no_runs_yet_says_how_to_make_one(tmp_path, capsys):
    assert main(["runs", "ls", "--out", str(tmp_path)]) == 0
    assert "mlxzo quickstart" in capsys.readouterr().out
    assert main(["runs", "ls", "--json", "--out", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_a_reader_that_stops_reading_is_no_error():
    with subprocess.Popen(
        [sys.executable, "-m", "mlxzo", "models", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_a_mistake_of_ours_is_one_sentence_and_a_traceback_only_on_request(monkeypatch, capsys):
    monkeypatch.setattr("mlxzo.models.registry.load_registry", lambda: 1 / 0)
    assert main(["models"]) == 1
    error = capsys.readouterr().err
    assert "Internal error: ZeroDivisionError" in error and "report" in error and "Traceback" not in error
    monkeypatch.setenv("MLXZO_DEBUG", "1")
    assert main(["models"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_ends_quietly_with_130(monkeypatch, capsys):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr("mlxzo.models.registry.load_registry", interrupt)
    assert main(["models"]) == 130
    assert capsys.readouterr().err == "Interrupted.\n"


def test_what_a_terminal_would_obey_is_taken_out_of_errors(capsys):
    assert main(["train", "--model", "\x1b[31mred\x07"]) == 4
    assert "\x1b" not in capsys.readouterr().err


def test_names_are_checked_before_a_run_directory_is_made(tmp_path):
    with pytest.raises(ConfigError):
        read_config({"task": "revews", "out": str(tmp_path)}, None)
    assert list(tmp_path.iterdir()) == []


def test_the_module_is_the_command():
    done = run_cli("--version")
    assert done.returncode == 0 and done.stdout.startswith("mlxzo ")
