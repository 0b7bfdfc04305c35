"""Events: one line each, read back whole; what cannot be read is passed over."""

import json
import math

from mlxzo.core import events
from mlxzo.core.errors import MlxzoError

STEP = events.Step(3, 10, 0.5, 0.6, 0.1, None, 0.2, 64, 5.0, 320.0, 1.4, 10, 20, 30)


def test_every_kind_of_event_comes_back_as_it_was():
    samples = [
        events.Phase("load", "smollm2-135m"),
        events.Progress("Downloading", 1.0, None, "B"),
        events.Loaded("m", "hub", 10, 2, 1, "ab", "reviews", 1, 2, 3, 4),
        STEP,
        events.RankStats(["a", "b"], [0.25, 0.75], [1.0, 2.0], [1.0, 0.0], 64),
        events.Evaluated("test", "test", 3, "accuracy", 0.5, 0.7, 100, None, 1.0, True),
        events.Samples("validation", [{"prompt": "p", "answer": " a", "right": None, "share": 0.5}]),
        events.Memory("train", 9, 10, 5, 1, 6, None, 100, 0, 2),
        events.Resumed(4),
        events.Paused(3),
        events.Unpaused(3, 1.5),
        events.Saved("checkpoints/best", 3, 100),
        events.Note("line one\nline two \u2028 é"),
        events.Failed("Data", "m", "f", ["a", "b"], 4),
        events.Population(1, [0.25, 0.5], 0.1, 0.3, [{"prompt": "a", "best": "b", "median": "c"}]),
        events.Finished({"steps": 3, "nested": {"x": [1, None]}}),
    ]
    assert {type(event) for event in samples} == set(events.Event.__subclasses__())
    lines = [events.to_json(event, 1.5) for event in samples]
    assert all("\n" not in line for line in lines)
    assert list(events.read(lines)) == [(event, 1.5) for event in samples]


def test_torn_unknown_and_foreign_lines_are_passed_over():
    good = events.to_json(STEP, 1.0)
    lines = [good[: len(good) // 2], "", "null", "[]", "7", '{"event": "later", "time": 1}', "Downloading...", good]
    lines += ['{"event": "phase", "time": "x", "phase": "load"}', '{"event": "saved", "time": 1}']
    assert list(events.read(lines)) == [(STEP, 1.0)]


def test_events_whose_values_have_other_types_are_passed_over():
    whole = json.loads(events.to_json(STEP, 1.0))
    assert events.from_json(json.dumps(whole | {"seconds": None})) is None
    for value in ("7", [1], {}, "x", 10**400, 1e300, float("nan"), -(2**64)):
        assert events.from_json(json.dumps(whole | {"step": value})) is None
        assert events.from_json(json.dumps(whole | {"loss": value})) is None
        assert events.from_json(json.dumps(whole | {"time": value})) in (None, (STEP, 7.0))
    ranks = json.loads(events.to_json(events.RankStats(["a"], [1.0], [1.0], [1.0], 64), 1.0))
    assert events.from_json(json.dumps(ranks | {"names": []})) is None
    samples = {"event": "samples", "time": 1, "split": "validation"}
    for item in (1, {}, {"prompt": "p", "answer": 3, "right": None, "share": 0.5}):
        assert events.from_json(json.dumps(samples | {"items": [item]})) is None
    assert events.from_json("[" * 100_000) is None


def test_a_field_of_a_later_version_is_ignored():
    record = json.loads(events.to_json(STEP, 1.0)) | {"new": 1}
    assert events.from_json(json.dumps(record)) == (STEP, 1.0)


def test_a_loss_that_is_not_finite_travels_as_null():
    line = events.to_json(events.Evaluated("test", "test", 1, "loss", math.nan, math.inf, 1, None, 1.0, False), 1.0)
    found, _ = events.from_json(line)
    assert found.value is None and found.loss is None


def test_the_kind_of_an_error_of_0_1_0_follows_from_its_title():
    """Files of 0.1.0 have titles alone; what compares errors compares kinds."""
    kinds = [MlxzoError]
    for kind in kinds:
        kinds += kind.__subclasses__()
        assert events.Failed(kind.title, "", "", [], 1).kind == kind.kind
    assert len(kinds) > 10
