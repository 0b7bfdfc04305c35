"""What a batch is read from, the names of its runs, and every problem of its file at once."""

import json

import pytest

from mlxzo.cli.main import main
from mlxzo.core.config import RunConfig
from mlxzo.core.errors import ConfigError
from mlxzo.core.run_directory import JOURNAL, RunDirectory
from mlxzo.experiments.dry_run import prospects
from mlxzo.experiments.sweep import MOST_RUNS, Sweep
from mlxzo.memory.forecast import MemoryBudget, forecast
from mlxzo.memory.step_time import Calibration


@pytest.fixture
def read(tmp_path):
    def write_and_read(text, name="rates.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return Sweep.read(path, str(tmp_path / "runs"))

    return write_and_read


def names(batch):
    return [run.config.name for run in batch.runs]


def problems(read, text):
    with pytest.raises(ConfigError) as caught:
        read(text)
    return caught.value.details or [caught.value.message]


def test_a_grid_spans_every_combination_with_every_seed(read):
    batch = read(
        """
        seeds: [0, 3]
        defaults: {steps: 20, lr: 0.5}
        grid:
          lr: [1e-3, 0.25]
          scope: [lora, norms/last-6]
        """
    )
    assert names(batch)[:4] == [
        "rates-scope-lora-lr-0.001-s0",
        "rates-scope-norms-last-6-lr-0.001-s0",
        "rates-scope-lora-lr-0.25-s0",
        "rates-scope-norms-last-6-lr-0.25-s0",
    ]
    assert [name.removesuffix("-s3") for name in names(batch)[4:]] == [
        name.removesuffix("-s0") for name in names(batch)[:4]
    ]
    second = batch.runs[5]
    assert dict(second.options) == {"scope": "norms/last-6", "lr": 0.001, "seed": 3}
    assert (second.config.scope, second.config.lr, second.config.seed, second.config.steps) == (
        *("norms/last-6", 0.001, 3),
        20,
    )


@pytest.mark.parametrize(
    "text",
    [
        "grid: {lr: [1e-3, 0.25], scope: [lora, full]}",
        # Neither the order of the file nor the spelling of a number counts, nor what no run differs in.
        "grid: {scope: [lora, full], lr: [0.001, 2.5e-1]}",
        "defaults: {steps: 7}\ngrid: {scope: [lora, full], lr: [0.001, 0.25], batch_size: 4}",
        "seeds: 0\ngrid: {scope: [lora, full], lr: [0.001, 0.25]}",
    ],
)
def test_names_follow_from_the_options_so_that_the_same_runs_are_found_again(read, text):
    assert sorted(names(read(text))) == [
        "rates-scope-full-lr-0.001-s0",
        "rates-scope-full-lr-0.25-s0",
        "rates-scope-lora-lr-0.001-s0",
        "rates-scope-lora-lr-0.25-s0",
    ]


def test_runs_one_by_one_and_several_grids_with_names(read):
    batch = read(
        """
        name: mine
        runs:
          - {name: back & forth, method: bp, scope: lora}
          - {batch_size: 4}
        grid:
          - {name: small, lr: [1e-3], scope: [lora]}
          - {name: auto, eps: [auto, 1e-2]}
          - {seed: [5, 6], steps: 9}
        """
    )
    assert names(batch) == [
        "mine-back-forth-s0",
        "mine-batch-size-4-s0",
        "mine-small-scope-lora-lr-0.001-s0",
        "mine-auto-eps-auto-s0",
        "mine-auto-eps-0.01-s0",
        "mine-s5",
        "mine-s6",
    ]
    assert batch.runs[3].config.eps == RunConfig().resolved().eps and batch.runs[6].config.steps == 9


def test_seeds_alone_make_runs_and_a_long_name_is_cut_apart_from_others(read):
    assert names(read("seeds: 1,2", name="a b.yaml")) == ["a-b-s1", "a-b-s2"]
    long = "x" * 80
    cut = names(read(f"runs:\n  - {{name: {long}1}}\n  - {{name: {long}2}}\n"))
    assert len(set(cut)) == 2 and all(len(name) <= 100 for name in cut)


def test_every_problem_is_told_at_once_with_its_line(read):
    found = problems(
        read,
        """name: ../up
seeds: [0, x]
stepz: 3
steps: 5
defaults:
  task: review
  batchsize: 4
  lora_rank: 4
  lora_rank: 8
runs:
  - {name: a, method: bp, optimizer: sgd}
  - name: b
    model: smolm2-135m
  - {name: c}
  - {name: C}
  - 7
grid:
  - {}
  - lr: [1e-3, much]
    queries: []
    out: here
  - {name: d, lr: [0.001, 1e-3]}
""",
    )
    assert found == [
        "line 1: name: '../up' must be 1-40 letters, digits, dots, dashes or underscores, and start with a letter or "
        "digit",
        "line 2: seeds: expected different whole numbers such as 0,1,2, not [0, 'x']",
        "line 3: stepz: a batch has name, out, seeds, defaults, runs, grid, and nothing else",
        "line 4: steps: options of all runs are written under defaults",
        "line 6: task: there is no task 'review'; did you mean reviews?",
        "line 7: batchsize: no such option; did you mean batch_size?",
        "line 9: lora_rank: it is given more than once",
        "line 11: a: lr: sgd has no rate that suits every model; give one, such as 0.01, or use adam",
        "line 13: model: there is no model called 'smolm2-135m'; did you mean smollm2-135m or smollm2-135m-4bit or "
        "smollm2-360m?",
        "line 15: more than one run is called 'C'; give each a name of its own",
        "line 16: expected a run's `option: value` lines, not 7",
        "line 18: the grid is empty: give at least one option a list of values",
        "line 19: lr: expected a number above 0 and at most 1,000,000, not 'much'",
        "line 20: queries: it has no values",
        "line 21: out: write out at the top of the file",
        "line 22: more than one run is called 'd lr 0.001'; give each a name of its own",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it names no runs: give runs, grid or seeds"),
        ("grid: {lr: 1e-3}", "line 1: the grid is empty"),
        ("grid: {}", "line 1: the grid is empty"),
        ("grid: []", "line 1: grid: expected"),
        ("runs: []", "line 1: runs: expected a list of at least one run"),
        ("runs: {a: 1}", "line 1: runs: expected a list of at least one run"),
        ("defaults: 3\nseeds: 0", "line 1: expected `option: value` lines, not 3"),
        ("seeds: 0\ngrid: {seed: [1, 2]}", "line 2: seed: the file gives every run its seeds"),
        ("out: ''\nseeds: 0", "line 1: out: it is empty; give a value"),
        ("- 1", "must hold `option: value` lines"),
        ("a: [", "is not valid YAML at line 1"),
        ("grid: {steps: &n [1,2,3,4,5,6,7,8,9,10], eval_every: *n, queries: *n, batch_size: *n}", "10,000 runs"),
        (f"seeds: {list(range(MOST_RUNS + 1))}", "more than 1,000 runs"),
    ],
)
def test_a_file_that_is_wrong_in_one_thing(read, tmp_path, text, words):
    with pytest.raises(ConfigError) as caught:
        path = tmp_path / "b.yaml"
        path.write_text(text)
        Sweep.read(path)
    assert words in caught.value.message, caught.value.message


def test_a_run_that_would_need_answers_is_found_before_the_first(read, tmp_path):
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text('{"prompt": "one two"}\n')
    judged = "{objective: reward, reward_function: 'a:b'}"
    (problem,) = problems(
        read, f"defaults: {{task: custom, data: {tmp_path}}}\nruns:\n  - {judged}\n  - {{method: bp, scope: lora}}\n"
    )
    assert "line 4: method bp scope lora: the rows of the task custom are prompts without an answer" in problem
    assert 'which backpropagation needs: add the field "completion"' in problem


RATES = Calibration(1e11, 1e10, 1e9, True, "cpu", "1", "0")


def test_memory_is_told_against_the_cap_and_time_only_with_a_calibration(tmp_path):
    config = RunConfig(memory_cap="2GB", steps=100).resolved()
    known = forecast(config, RATES)
    assert known.fits_cap and 5e8 < known.footprint_bytes < 2e9 and known.reservation_bytes == 2e9
    assert known.seconds(config, 50) == pytest.approx(known.seconds(config) / 2) and known.seconds(config) > 0
    assert forecast(config, None).seconds(config) is None
    small = RunConfig(memory_cap="200MB").resolved()
    assert forecast(small, None).fits_cap is False and forecast(small, None).footprint_bytes > 200e6
    # Without a cap, what has to be set aside is the prediction and a margin; what the machine lacks, it cannot fit.
    free = forecast(RunConfig().resolved(), None)
    assert free.footprint_bytes < free.reservation_bytes < 1.1 * free.footprint_bytes
    assert free.fits(10**9) is True and free.fits(10**8) is False
    timed = RunConfig(max_seconds=60.0, steps=10_000_000).resolved()
    assert forecast(timed, RATES).seconds(timed) == forecast(timed, None).seconds(timed) == 60.0


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"model": "someone/unheard-of"}, "not known before it is downloaded"),
        ({"task": "custom"}, "no data of its own"),
    ],
)
def test_what_cannot_be_predicted_is_said_to_be_unknown(options, why):
    found = forecast(RunConfig.from_mapping(options).resolved(), RATES)
    assert why in found.unknown and found.footprint_bytes is found.fits(10**12) is found.seconds_per_step is None


def test_runs_share_a_memory_budget_up_to_its_limit():
    a, b, c, unknown = (RunConfig(name=name) for name in "abcd")
    budget = MemoryBudget(1000, {"a": 600, "b": 400, "c": 401, "d": None})
    assert budget.admits(a, [b]) and not budget.admits(c, [a])
    assert budget.admits(c, [b]) and not budget.admits(c, [a, b])
    assert not budget.admits(unknown, [a]) and not budget.admits(a, [unknown])


def test_what_is_to_be_done_about_each_run(read, tmp_path):
    batch = read("seeds: [0, 1, 2]\ndefaults: {steps: 9}")
    done, half = (RunDirectory.create(planned.config) for planned in batch.runs[:2])
    done.events_path.write_text('{"event": "finished", "time": 1, "result": {}}\n')
    (half.path / JOURNAL).touch()
    found = prospects(batch.runs)
    assert [(each.state, each.is_done) for each in found] == [("done", True), ("to resume", False), ("to run", False)]
    assert found[0].seconds == 0 and found[2].predicted_bytes > 4e8
    assert {each.too_large for each in found} == {None}


def test_a_run_that_is_larger_than_the_machine_is_reported_and_not_begun(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mlxzo.experiments.dry_run.system_memory", lambda: (10**8, 10**8))
    path = tmp_path / "b.yaml"
    path.write_text(f"seeds: 0\nout: {tmp_path / 'runs'}\n")
    assert main(["batch", str(path)]) == 3
    (told,) = (json.loads(line) for line in (tmp_path / "runs" / "b" / "summary.jsonl").read_text().splitlines())
    assert (told["status"], told["exit_code"]) == ("does not fit", 3) and told["needed_bytes"] > 10**8
    assert "the machine has 100.0 MB" in told["problem"] and "1 does not fit" in capsys.readouterr().out
    assert not (tmp_path / "runs" / "b-s0").exists()


def test_a_summary_does_not_go_into_a_run(tmp_path, capsys):
    RunDirectory.create(RunConfig(out=str(tmp_path), name="b"))
    (tmp_path / "b.yaml").write_text(f"seeds: 0\nout: {tmp_path}\n")
    assert main(["batch", str(tmp_path / "b.yaml")]) == 2
    assert "give the batch another name" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["prefix_cache", "activation_cache"])
def test_runs_are_named_as_an_option_is_spelled_in_the_file(read, name):
    batch = read(f"grid: {{{name}: [ram, disk]}}")
    assert names(batch) == [f"rates-{name.replace('_', '-')}-{kind}-s0" for kind in ("ram", "disk")]
    assert [run.options for run in batch.runs] == [{"activation_cache": "ram"}, {"activation_cache": "disk"}]
