"""What a comparison is read from, the runs it stands for, and every problem of it at once."""

import pytest

from mlxzo.core.errors import ConfigError
from mlxzo.core.yaml_file import read_yaml
from mlxzo.experiments.comparison import Comparison, parse_contestant

TWO = ["smollm2-135m bp lora lr=1e-3", "gemma-3-270m mezo norms/last-6"]


def read(tmp_path, **values):
    return Comparison.from_mapping({"out": str(tmp_path), "contestants": TWO, **values})


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("m", {"model": "m"}),
        ("m bp", {"model": "m", "method": "bp"}),
        ("m lora", {"model": "m", "scope": "lora"}),
        (
            "m bp full lr=1e-3 batch-size=4",
            {"model": "m", "method": "bp", "scope": "full", "lr": "1e-3", "batch_size": "4"},
        ),
        (
            "name='a b' '/a folder/m=1' mezo 'match:*.w/last-4'",
            {"name": "a b", "model": "/a folder/m=1", "method": "mezo", "scope": "match:*.w/last-4"},
        ),
        ("model=m scope=full", {"model": "m", "scope": "full"}),
    ],
)
def test_a_contestant_in_words(text, found):
    assert parse_contestant(text) == found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("m bp lora full", "'full' is one word too many"),
        ("m lr=1 lr=2", "lr is given twice"),
        ("m 'unclosed", "no closing quotation"),
    ],
)
def test_a_contestant_that_cannot_be_read(text, words):
    with pytest.raises(ValueError, match=words):
        parse_contestant(text)


def test_runs_go_seed_by_seed_with_names_and_options_of_their_own(tmp_path):
    comparison = read(tmp_path, name="mine", seeds="0,3", batch_size="4", memory_cap="2GB")
    runs = comparison.runs()
    assert [run.config.name for run in runs] == [
        "mine-smollm2-135m-bp-lora-lr-1e-3-s0",
        "mine-gemma-3-270m-mezo-norms-last-6-s0",
        "mine-smollm2-135m-bp-lora-lr-1e-3-s3",
        "mine-gemma-3-270m-mezo-norms-last-6-s3",
    ]
    first = runs[0].config
    assert (first.method, first.scope, first.lr, first.batch_size, first.seed) == ("bp", "lora", 1e-3, 4, 0)
    assert {run.config.memory_cap for run in runs} == {"2GB"} and runs[0].label == TWO[0]
    assert comparison.folder == tmp_path / "mine"


def test_minutes_leave_steps_open_and_the_rate_constant_unless_they_are_given(tmp_path):
    (first, _) = read(tmp_path, minutes=10).runs()
    assert (first.config.max_seconds, first.config.steps, first.config.schedule) == (600, 10_000_000, "constant")
    (first, _) = read(tmp_path, minutes="0.5", steps=100, schedule="cosine").runs()
    assert (first.config.max_seconds, first.config.steps, first.config.schedule) == (30, 100, "cosine")
    (first, _) = read(tmp_path).runs()
    assert (first.config.max_seconds, first.config.steps) == (None, 300)


def test_the_name_follows_from_what_is_shared_so_that_seeds_and_contestants_can_be_added(tmp_path):
    name = read(tmp_path, task="sst2", minutes=5).name
    assert name.startswith("compare-sst2-")
    assert read(tmp_path, task="sst2", minutes=5, seeds=[0, 1], contestants=TWO[:1]).name == name
    assert read(tmp_path, task="sst2", minutes="5").name == name
    assert read(tmp_path, task="sst2", minutes=6).name != name


def test_its_yaml_gives_the_same_comparison_again(tmp_path):
    contestants = [*TWO, {"name": "a: 'b'", "model": "org/name", "scope": "lora", "checkpointing": True}]
    comparison = read(tmp_path, minutes=0.7, seeds=[2], contestants=contestants, data=str(tmp_path), ridge_probe=False)
    path = tmp_path / "c.yaml"
    path.write_text(comparison.to_yaml())
    again = Comparison.from_mapping(read_yaml(path))
    assert again.runs() == comparison.runs() and again.name == comparison.name
    assert not again.probes(tmp_path) and read(tmp_path).probes(tmp_path)
    assert again.runs()[2].config.checkpointing == "on" and again.runs()[2].config.scope == "lora"


def test_names_that_are_long_or_in_other_letters_still_make_runs_apart(tmp_path):
    long = "m " + "lora_rank=8 name=" + "x" * 90
    contestants = [long + "1", long + "2", "name=模型 m", "name=训练 m full"]
    names = [run.config.name for run in read(tmp_path, name="n" * 40, contestants=contestants).runs()]
    assert len(set(names)) == 4 and all(len(name) <= 100 for name in names)


WRONG = """name: ../up
task: sst
memory_cap: 8 giraffes
batch_size: 0
minutes: soon
seeds: 0,x
model: smollm2-135m
steps: 3
steps: 4
contestants:
  - smollm2-135m half lrr=1
  - model: m
    seed: 1
    memory_cap: 1GB
    steps: 5
  - {scope: full}
  - 7
  - smollm2-135m lora
  - smollm2-135m mezo lora
  - model: smollm2-135m
    method: bp
    optimizer: sgd
    optimizer: sgd
"""


def test_every_problem_is_told_at_once(tmp_path):
    path = tmp_path / "file.yaml"
    path.write_text(WRONG)
    with pytest.raises(ConfigError) as caught:
        Comparison.read(path, {})
    text = "\n".join(caught.value.details)
    for words in (
        "line 1: name: '../up'",
        "line 2: task: there is no task 'sst'; did you mean sst2?",
        "line 3: memory_cap: expected a size",
        "line 4: batch_size: expected a whole number of at least 1",
        "line 5: minutes: expected a number above 0, not 'soon'",
        "line 6: seeds: expected different whole numbers such as 0,1,2, not '0,x'",
        "line 7: model: a comparison takes contestants instead",
        "line 9: steps: it is given more than once",
        "line 11: contestant 1 (smollm2-135m half lrr=1): lrr: no such option; did you mean lr?",
        "line 11: contestant 1 (smollm2-135m half lrr=1): scope 'half' is not known",
        "line 13: contestant 2: seed: all contestants share it",
        "line 14: contestant 2: memory_cap: all contestants share it",
        "line 15: contestant 2: steps: all contestants share it",
        "line 16: contestant 3: it has no model",
        "line 17: contestant 4: expected options",
        "line 19: contestants: more than one is called 'smollm2-135m mezo lora'",
        "line 20: contestant 7: lr: sgd has no rate that suits every model",
        "line 23: optimizer: it is given more than once",
    ):
        assert words in text, words
    # What is wrong with the shared options is not said again of each contestant.
    assert text.count("batch_size") == text.count("giraffes") == 1
    assert caught.value.message.startswith(f"{path}: {len(caught.value.details)} problems")


def test_values_that_are_no_file_or_replace_those_of_one_have_no_line(tmp_path):
    values = {"steps": 0, "contestants": ["smollm2-135m"]}
    with pytest.raises(ConfigError, match=r"^steps: expected a whole number"):
        Comparison.from_mapping(values)
    path = tmp_path / "file.yaml"
    path.write_text("contestants: [smollm2-135m]\nsteps: 0\ntop_p: 0.5\n")
    with pytest.raises(ConfigError) as caught:
        Comparison.read(path, {"steps": "-1"})
    top_p = "top_p: it applies to sampling: give a temperature as well"
    assert [text.split(" of at least")[0] for text in caught.value.details] == [
        "steps: expected a whole number",
        f"line 3: {top_p}",
    ]
    assert Comparison.read(path, {"steps": "1", "top_p": "1"}).shared["steps"] == 1


def test_a_model_that_nobody_knows_keeps_no_other_contestant_from_running(tmp_path):
    comparison = read(tmp_path, contestants=["smolm2-135m", "gemma-3-270m"])
    typo, good = (each.problem for each in comparison.contestants)
    assert "no model called 'smolm2-135m'; did you mean smollm2-135m" in typo and good == ""
    assert len(comparison.runs()) == 2


@pytest.mark.parametrize("own_task", [True, False], ids=["task file", "custom"])
def test_a_contestant_that_would_need_answers_is_found_before_the_first_run(own_task, tmp_path):
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text('{"prompt": "one two"}\n')
    task = tmp_path / "long.yaml"
    task.write_text("name: long\nreward:\n  - {kind: length, most: 3}\n")
    options = {"task": str(task)} if own_task else {"task": "custom"}
    judge = "objective=reward" if own_task else "objective=reward reward_function=a:b"
    values = {**options, "data": str(tmp_path), "contestants": [f"smollm2-135m {judge}", "smollm2-135m bp lora"]}
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, **values)
    name = "long" if own_task else "custom"
    assert caught.value.message.startswith(
        f"contestant 2 (smollm2-135m bp lora): the rows of the task {name} are prompts without an answer, which "
        "backpropagation needs: "
    )
    assert len(read(tmp_path, **{**values, "contestants": values["contestants"][:1]}).runs()) == 1
    # Rows that cannot be read are told by each run, by line.
    (tmp_path / "train.jsonl").write_text("{\n")
    if not own_task:
        assert len(read(tmp_path, **values).runs()) == 2


def test_a_comparison_keeps_its_name_and_runs_when_an_option_is_renamed(tmp_path):
    before, now = read(tmp_path, prefix_cache="off"), read(tmp_path, activation_cache="off")
    assert before.runs() == now.runs() and before.runs()[0].config.activation_cache == "off"
    named = read(tmp_path, contestants=["smollm2-135m prefix-cache=disk"])
    assert named.runs()[0].config.activation_cache == "disk"
