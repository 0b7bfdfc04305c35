"""The ridge probe as a baseline: states of a tiny model, and the command."""

from __future__ import annotations

import json

import mlx.core as mx
import numpy as np
import pytest

from mlxzo.cli.main import main
from mlxzo.core import events
from mlxzo.core.config import RunConfig
from mlxzo.engine import layer_probe
from mlxzo.engine.encoding import encode, encode_prompt
from mlxzo.engine.layer_probe import layers_within, measure_probe, prompt_alone, states_at_prompt_end
from mlxzo.engine.session import open_session
from mlxzo.models.loading import load_tokenizer
from mlxzo.models.resolve import resolve
from mlxzo.tasks.base import Example
from tests.tiny import tiny_folder

pytestmark = pytest.mark.device


@pytest.fixture(scope="module")
def session(model, data):
    return open_session(RunConfig(model=str(model), task="custom", data=str(data), scope="full"), events.ignore)


@pytest.mark.parametrize("kind", ("llama", "gemma3"))
def test_states_are_those_of_the_model_s_own_layers(kind, data, tmp_path):
    folder = tiny_folder(tmp_path / kind, kind)
    opened = open_session(RunConfig(model=str(folder), task="custom", data=str(data), scope="full"), events.ignore)
    causal, examples = opened.causal, opened.splits["train"][:7]
    found = states_at_prompt_end(opened, examples, (1, 2, 3), "", events.ignore)
    assert found.shape == (3, 7, causal.hidden_size) and found.dtype == np.float32
    for number, example in enumerate(examples):
        prompt = encode_prompt(example.source, opened.loaded.tokenizer)
        # The states that the model's body passes to each next layer; after the last one, what `after_layers` gives.
        tokens, view = [mx.array([prompt])], causal.view()
        last = [mx.array([len(prompt) - 1])]
        expected = [causal.prefix(tokens, view, layer)[0][0, -1] for layer in (1, 2)]
        expected.append(causal.after_layers(tokens, last, view)[0][0])
        np.testing.assert_allclose(found[:, number], np.array(mx.stack(expected)), rtol=1e-4, atol=1e-4)
    some = states_at_prompt_end(opened, examples, (2,), "", events.ignore)
    assert np.array_equal(some[0], found[1])


def test_a_prompt_is_read_without_its_candidates(model):
    tokenizer = load_tokenizer(resolve(str(model)))
    # Labels of several tokens, the second as target.
    example = Example("What a film! It was", (" terrible indeed", " wonderful"), 1)
    whole = encode(example, tokenizer, 100)
    assert max(map(len, whole.targets)) > 1
    (row,) = prompt_alone(whole).rows
    assert list(row.tokens) == encode_prompt(example, tokenizer) and row.first_position == len(row.tokens) - 1
    # A prompt that is too long loses its beginning, as for scoring.
    short = encode(example, tokenizer, 8)
    (cut,) = prompt_alone(short).rows
    assert short.truncated and len(cut.tokens) < len(row.tokens)
    assert cut.tokens[-2:] == row.tokens[-2:] and cut.first_position == len(cut.tokens) - 1


def test_the_choice_looks_at_training_rows_only(session):
    said: list[events.Event] = []
    first = measure_probe(session, "validation", said.append)
    waits = [(event.label, event.done, event.total) for event in said if isinstance(event, events.Progress)]
    assert waits == [
        ("ridge probe: reading training rows", 32, 40),
        ("ridge probe: reading training rows", 40, 40),
        *(("ridge probe: fitting", layer, 3) for layer in (1, 2, 3)),
        ("ridge probe: evaluating on validation", 16, 16),
    ]
    other = measure_probe(session, "test", events.ignore)
    chosen = ("layer", "strength", "leave_one_out_error", "train_examples")
    assert all(getattr(first, name) == getattr(other, name) for name in chosen)
    assert (first.examples, first.train_examples, first.model_layers) == (16, 40, 3)
    assert first.layers == (1, 2, 3)
    # Less than the 0.25 of a constant guess.
    assert first.leave_one_out_error < 0.15 and first.majority == 0.5
    assert first.standard_error == pytest.approx((first.value * (1 - first.value) / 16) ** 0.5)


def test_the_accuracy_is_that_of_ridge_regression_on_the_chosen_layer(session):
    found = measure_probe(session, "test", events.ignore)
    train, test = (
        states_at_prompt_end(session, session.splits[split], (found.layer,), "", events.ignore)[0].astype(np.float64)
        for split in ("train", "test")
    )
    x, new = ((states - train.mean(axis=0)) / train.std(axis=0) for states in (train, test))
    targets, right = ([example.target for example in session.splits[split]] for split in ("train", "test"))
    # The dual form: weights are combinations of the training rows.
    y = np.eye(2)[targets]
    gram = x @ x.T + len(x) * found.strength * np.eye(len(x))
    values = new @ x.T @ np.linalg.solve(gram, y - y.mean(axis=0)) + y.mean(axis=0)
    assert found.value == np.mean(values.argmax(axis=1) == right)


def test_little_memory_keeps_every_second_layer(session, monkeypatch):
    assert layers_within(4, 10, 40) == (1, 2, 3, 4)
    assert layers_within(5, 10, 40) == (1, 3, 5)
    assert layers_within(30, 10, 40) == (6, 14, 22, 30)
    assert layers_within(30, 10, 9) == (30,)
    monkeypatch.setattr(layer_probe, "system_memory", lambda: (0, 10 * 2 * 4 * 40 * 64))
    said: list[events.Event] = []
    found = measure_probe(session, "validation", said.append)
    assert found.layers == (1, 3) and found.layer in (1, 3)
    notes = [event.text for event in said if isinstance(event, events.Note)]
    assert notes == ["ridge probe: layers 1, 3 of 3 only, to save memory"]


def test_layers_that_overflow_are_not_chosen(session, monkeypatch):
    honest = states_at_prompt_end
    bad = [measure_probe(session, "validation", events.ignore).layer]

    def overflowing(session, examples, layers, label, emit):
        states = honest(session, examples, layers, label, emit)
        for place, layer in enumerate(layers):
            if layer in bad:
                states[place, 0, 0] = np.inf
        return states

    monkeypatch.setattr(layer_probe, "states_at_prompt_end", overflowing)
    assert measure_probe(session, "validation", events.ignore).layer not in bad
    bad[:] = [1, 2, 3]
    with pytest.raises(Exception, match="not finite"):
        measure_probe(session, "validation", events.ignore)


def evaluated(capsys, *arguments) -> tuple[list[dict], str]:
    code = main(["eval", *map(str, arguments), "--baselines", "--json"])
    said = capsys.readouterr()
    assert code == 0, said.err
    return json.loads(said.out), " ".join(said.err.split())


def test_the_command_reports_the_probe_and_repeats_it_to_the_bit(model, data, capsys):
    on = ("--model", model, "--task", "custom", "--data", data, "--shots", 1)
    found, _ = evaluated(capsys, *on)
    *_, probe = found
    assert found[0].keys() <= probe.keys()
    assert probe["asked"] == "ridge probe" and probe["metric"] == "accuracy" and probe["loss"] is None
    assert (probe["examples"], probe["train_examples"], probe["majority"]) == (16, 40, found[0]["majority"])
    (*_, again), _ = evaluated(capsys, *on)
    assert {**probe, "seconds": 0} == {**again, "seconds": 0}
    (*_, other), _ = evaluated(capsys, *on, "--train-examples", 20)
    assert other["train_examples"] == 20 and other["leave_one_out_error"] != probe["leave_one_out_error"]
    (*_, chat), _ = evaluated(capsys, *on, "--prompt-style", "chat")
    assert chat["leave_one_out_error"] != probe["leave_one_out_error"]
    assert main(["eval", *map(str, on), "--baselines"]) == 0
    table = " ".join(capsys.readouterr().out.split())
    assert f"ridge probe {100 * probe['value']:.1f} %" in table
    assert f"The probe reads layer {probe['layer']} of 3 with ridge strength" in table and "40 training rows" in table


def test_a_task_without_labels_is_told_so(model, tmp_path, capsys):
    for split in ("train", "validation"):
        rows = (json.dumps({"prompt": f"Say {word}:", "completion": f" {word}"}) for word in ("one", "two", "three"))
        (tmp_path / f"{split}.jsonl").write_text("\n".join(rows))
    on = ("--model", model, "--task", "custom", "--data", tmp_path, "--split", "validation", "--shots", 1)
    found, said = evaluated(capsys, *on)
    assert [each["asked"] for each in found] == ["zero-shot", "1-shot"]
    assert "Note: no ridge probe: it needs a fixed set of labels, which the task custom does not have" in said
