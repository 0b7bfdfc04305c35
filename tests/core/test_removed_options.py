"""Configurations that name options or values of version 0.1 that are gone: one sentence each, and none for defaults."""

from __future__ import annotations

import pytest

from mlxzo.cli import main
from mlxzo.core.config import RunConfig, options
from mlxzo.core.config_checks import option_problems
from mlxzo.core.errors import ConfigError
from mlxzo.experiments.comparison import Comparison
from mlxzo.experiments.sweep import Sweep

GONE = {
    "momentum": (0.5, "momentum: this option was removed; leave it out, or train with mlxzo 0.1"),
    "direction_scale": (
        "rms",
        "direction_scale: this option was removed; leave it out: each kind of parameter has a length of its own",
    ),
    "clip": (
        3.0,
        "clip: this option was removed; leave it out: the update rule adaptive cuts derivatives at 3 times their "
        "running rms",
    ),
    "check_every": (
        1,
        "check_every: this option was removed; leave it out: ranks compare their weights every 100 steps",
    ),
    "stall_seconds": (
        300,
        "stall_seconds: this option was removed; leave it out: ranks wait 10 minutes for one another",
    ),
    "sides": (
        "stacked",
        "sides: this option was removed; leave it out: each perturbed copy of the weights has its own forward pass",
    ),
    "probe": ("lr", "probe: this option was removed; leave it out, and give --lr, or keep the default"),
    "estimator": ("fzoo", "estimator: its value fzoo was removed; leave it out for rsgn, the default, or use spsa"),
    "lr": ("auto", "lr: its value auto was removed; give a number, or leave it out for the default of the scope"),
    "scope": ("Auto", "scope: its value auto was removed; name a scope, or leave it out for the default"),
}
each = pytest.mark.parametrize(("name", "value", "sentence"), [(name, *gone) for name, gone in GONE.items()])


@each
def test_a_configuration_is_told_in_one_sentence(name, value, sentence):
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_mapping({name: value}, source="run.yaml")
    assert caught.value.message == f"run.yaml: {sentence}" and not caught.value.details


def test_all_that_a_configuration_names_is_told_at_once():
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_mapping({name: value for name, (value, _) in GONE.items()} | {"steps": 0})
    assert len(caught.value.details) == len(GONE) + 1
    assert {sentence for _, sentence in GONE.values()} < set(caught.value.details)


def test_former_defaults_are_read_without_a_word():
    former = {"momentum": 0.0, "sides": "separate", "estimator": "spsa", "probe": "off", "direction_scale": "auto"}
    former |= {"clip": None, "check_every": 100, "stall_seconds": 120.0}
    assert RunConfig.from_mapping(former) == RunConfig(estimator="spsa")
    # What version 0.1 wrote into the configuration of every adaptive run.
    assert RunConfig.from_mapping({"update": "adaptive", "clip": 3.0}) == RunConfig(update="adaptive")
    with pytest.raises(ConfigError, match="clip"):
        RunConfig.from_mapping({"update": "adaptive", "clip": 2.0})
    assert RunConfig.from_mapping({"probe": False}) == RunConfig()


@pytest.mark.parametrize("probe", ["lr", "scope"])
def test_a_probe_that_chose_its_rate_is_in_the_configuration_of_its_run(probe):
    """Version 0.1 did not measure again either."""
    chosen = {"scope": "last-4", "lr": 3e-5, "eps": 1e-3}
    assert RunConfig.from_mapping({"probe": probe, **chosen}) == RunConfig.from_mapping(chosen)


@each
def test_a_comparison_and_a_batch_name_the_line(name, value, sentence, tmp_path):
    comparison = tmp_path / "comparison.yaml"
    comparison.write_text(f"contestants: [smollm2-135m]\n{name}: {value}\n")
    batch = tmp_path / "batch.yaml"
    batch.write_text(f"grid:\n  eps: [0.1, 0.2]\n  {name}: [{value}]\n")
    for read, line in ((lambda: Comparison.read(comparison, {}), 2), (lambda: Sweep.read(batch), 3)):
        with pytest.raises(ConfigError) as caught:
            read()
        assert caught.value.message.endswith(f"line {line}: {sentence}") and not caught.value.details
    with pytest.raises(ConfigError, match=name):
        Comparison.from_mapping({"contestants": [f"smollm2-135m {name}={value}"]})
    assert option_problems(options(), name, value) == [sentence]


@each
def test_a_command_line_is_told_with_the_exit_code_of_a_configuration(name, value, sentence, tmp_path, capsys):
    assert main(["train", f"--{name}", str(value), "--out", str(tmp_path)]) == ConfigError.exit_code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert sentence in said and not list(tmp_path.iterdir())
