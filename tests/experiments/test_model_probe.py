"""The ridge probes of a comparison: one for each model and seed, kept as files, and never a reason to fail."""

import sys

import pytest

from mlxzo.core import events
from mlxzo.core.config import RunConfig
from mlxzo.experiments import model_probe
from mlxzo.experiments.model_probe import model_probes

FINISHED = 'print(\'{"event": "finished", "time": 0, "result": {"value": 0.75}}\')'
OBSTACLE = FINISHED.replace('"value": 0.75', '"obstacle": "no ridge probe: no labels"')
FAILED = (
    'print(\'{"event": "failed", "time": 0, "title": "Data", "message": "no rows", "fix": "", "details": [], '
    '"exit_code": 4}\')'
)


def names(*configs, folder):
    return [probe.path.name for probe in model_probes(configs, folder)]


def test_a_model_has_one_probe_a_seed_and_folders_of_one_name_are_two_models(tmp_path):
    models = ("tiny", "tiny", "/a/tiny", "/b/tiny")
    configs = [RunConfig(model=model, seed=seed) for seed in (0, 1) for model in models]
    found = names(*configs, folder=tmp_path)
    assert len(found) == len(set(found)) == 6 and {"probe-tiny-s0.json", "probe-tiny-s1.json"} < set(found)
    # Further contestants change no name.
    assert names(*configs[:3], folder=tmp_path) == found[:2]


@pytest.fixture
def child(monkeypatch):
    """Replaces the child process by a line of Python."""

    def replace(line: str) -> None:
        monkeypatch.setattr(model_probe, "module_command", lambda module: [sys.executable, "-c", line])

    return replace


@pytest.mark.parametrize(
    ("line", "note", "kept"),
    [
        (FINISHED, None, {"value": 0.75}),
        (OBSTACLE, "no ridge probe: no labels", {"obstacle": "no ridge probe: no labels"}),
        (FAILED, "no ridge probe of smollm2-135m, seed 3: no rows", None),
        (
            "exit('gone')",
            "no ridge probe of smollm2-135m, seed 3: its process ended with code 1: gone",
            None,
        ),
    ],
)
def test_what_was_found_is_kept_and_a_failure_is_a_note(line, note, kept, child, tmp_path):
    child(line)
    (probe,) = model_probes([RunConfig(seed=3)], tmp_path / "folder")
    said: list[events.Event] = []
    probe.measure(said.append, lambda: False)
    began, *problems = [event.text for event in said if isinstance(event, events.Note)]
    assert began.startswith("ridge probe of smollm2-135m, seed 3") and problems == ([note] if note else [])
    assert probe.kept == kept and probe.result == (kept if kept and "value" in kept else None)
    if kept:
        child("raise SystemExit('not called')")
        probe.measure(events.ignore, lambda: False)
        assert probe.kept == kept
        # On other rows it is another probe.
        (other,) = model_probes([RunConfig(seed=3, train_examples=7)], tmp_path / "folder")
        assert other.path == probe.path and other.kept is None


def test_no_probe_is_begun_over_the_cap_or_once_the_comparison_stops(child, tmp_path):
    child(FINISHED)
    said: list[events.Event] = []
    (over,) = model_probes([RunConfig(memory_cap="200MB")], tmp_path)
    over.measure(said.append, lambda: False)
    notes = [event.text for event in said if isinstance(event, events.Note)]
    assert over.kept is None and notes[-1].endswith("and the cap is 200.0 MB")
    (stopped,) = model_probes([RunConfig()], tmp_path)
    stopped.measure(said.append, lambda: True)
    assert stopped.kept is None and len(said) == len(notes) == 2
