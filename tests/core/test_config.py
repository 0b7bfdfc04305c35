"""RunConfig: every problem at once, the nearest name, YAML there and back."""

import dataclasses

import pytest
import yaml

from mlxzo.core.config import RunConfig, Scope, options
from mlxzo.core.config_checks import option_problems
from mlxzo.core.defaults import mezo_defaults
from mlxzo.core.errors import ConfigError
from mlxzo.core.yaml_file import read_yaml


def problems_of(values):
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_mapping(values)
    return caught.value.details or [caught.value.message]


def test_names_of_mlx_lm_are_answered_by_those_here_and_other_words_by_no_guess():
    values = {"iters": 9, "learning_rate": "1e-5", "resume_adapter_file": None, "epochs": 3, "report_to": "x"}
    assert problems_of(values) == [
        "iters: an option of mlx-lm; here it is `steps`",
        "learning_rate: an option of mlx-lm; here it is `lr`",
        "resume_adapter_file: an option of mlx-lm; a run begins from a model: `mlxzo export RUN --to fused --out "
        "FOLDER` writes a tuned one, and `model: FOLDER` trains it further",
        "epochs: no such option",
        "report_to: an option of mlx-lm; leave it out: a run reports to events.jsonl in its folder",
    ]


@pytest.mark.parametrize("value", ["x" * 100_000, ["x"] * 100_000, 16**5000, {"a": "x" * 100_000}], ids=type)
def test_a_long_value_is_cut_in_every_message(value):
    for field in options():
        for problem in option_problems(options(), field.name, value):
            assert len(problem) < 500, field.name
    assert all(len(problem) < 500 for problem in problems_of({"x" * 100_000: value}))


def test_a_file_of_another_kind_is_refused_without_a_look_at_each_of_its_keys():
    with pytest.raises(ConfigError, match="500 problems"):
        RunConfig.from_mapping({f"k{number}": 1 for number in range(100_000)})


def test_every_problem_is_listed_at_once():
    problems = problems_of(
        {"batchsize": 4, "steps": "many", "batch_size": 0, "scope": "half", "name": "../up", "lr": -1}
    )
    text = "\n".join(problems)
    assert "batchsize: no such option; did you mean batch_size?" in text
    assert "steps: expected a whole number" in text
    assert "batch_size: expected a whole number of at least 1" in text
    assert "scope 'half' is not known" in text
    assert "name: '../up' must be" in text
    assert "lr: expected a number above 0" in text
    assert len(problems) == 6


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("steps", 1.5, "a whole number"),
        ("steps", True, "a whole number"),
        ("max_tokens", None, "a whole number"),
        ("steps", [1], "a whole number"),
        ("steps", "1e999", "a whole number"),
        ("lr", "nan", "a number above 0"),
        ("lr", "inf", "a number above 0"),
        ("model", "  ", "model: it is empty; give a value"),
        ("directions", "signs", "did you mean sign?"),
        ("seed", -1, "at least 0"),
        ("scope", "last-0", "last-6"),
    ],
)
def test_a_bad_value_says_what_is_expected(key, value, expected):
    assert expected in problems_of({key: value})[0]


@pytest.mark.parametrize("name", ["reward_command", "reward_function"])
@pytest.mark.parametrize("objective", ["loss", "reward"])
def test_a_judge_without_a_name_is_refused_and_not_taken_for_none(name, objective):
    (problem,) = problems_of({name: "", "objective": objective})
    assert problem == f"{name}: it is empty; give a value, or leave it out"


def test_text_of_a_flag_and_yaml_value_give_the_same_configuration():
    text = {"steps": "1e3", "lr": "1e-3", "eps": "auto", "train_examples": "all", "seed": str(2**62 + 1)}
    plain = {"steps": 1000, "lr": 0.001, "eps": None, "train_examples": None, "seed": 2**62 + 1}
    assert RunConfig.from_mapping(text) == RunConfig.from_mapping(plain)


def test_yaml_round_trip_keeps_every_option(tmp_path):
    config = RunConfig(
        model="a: b # c", data="da'ta", steps=7, lr=1e-7, eps=None, name="run.1", seed=2**63 - 1, max_tokens=8
    ).resolved()
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    assert RunConfig.from_mapping(read_yaml(path)) == config
    assert set(yaml.safe_load(config.to_yaml())) == {field.name for field in options()}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"steps: [1,\n", "not valid YAML at line 2"),
        (b"- 1\n", "must hold `option: value` lines"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"steps: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_configuration_is_named(tmp_path, content, expected):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=expected) as caught:
        read_yaml(path)
    assert "bad.yaml" in caught.value.message


def test_an_empty_file_and_a_byte_order_mark_are_fine(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(b"")
    assert read_yaml(path) == {}
    path.write_bytes(b"\xef\xbb\xbfsteps: 3\n")
    assert read_yaml(path) == {"steps": 3}


def test_resolving_fills_in_the_defaults_of_the_scope_and_nothing_else():
    config = RunConfig(scope="lora", update="sgd", eps=0.5)
    resolved = config.resolved()
    assert resolved.eps == 0.5
    assert resolved.lr == mezo_defaults(Scope.parse("lora"), "sgd")["lr"]
    assert (resolved.estimator, resolved.steps, resolved.batch_size) == ("spsa", 300, 16)
    filled = ("lr", "queries", "weight_decay", "estimator", "steps", "patience", "batch_size", "eval_every")
    assert dataclasses.replace(resolved, **dict.fromkeys(filled)) == config
    assert resolved.resolved() == resolved


def test_long_steps_are_evaluated_oftener():
    scopes = ("norms/last-0", "norms/last-6", "full", "lora")
    assert [RunConfig(scope=scope).resolved().eval_every for scope in scopes] == [5, 5, 2, 2]


@pytest.mark.parametrize("name", ["prefix_cache", "activation_cache"])
def test_an_option_that_was_renamed_is_read_by_either_name(tmp_path, name):
    path = tmp_path / "run.yaml"
    path.write_text(f"{name}: disk\n")
    config = RunConfig.from_mapping(read_yaml(path))
    assert config.activation_cache == "disk" and "prefix_cache" not in config.to_dict()
    assert option_problems(options(), name, "disk") == [] and option_problems(options(), name, "tape") != []


@pytest.mark.parametrize("names", [("prefix_cache", "activation_cache"), ("activation_cache", "prefix_cache")])
def test_of_two_spellings_the_later_one_counts(names):
    assert RunConfig.from_mapping(dict(zip(names, ("ram", "off"), strict=True))).activation_cache == "off"
