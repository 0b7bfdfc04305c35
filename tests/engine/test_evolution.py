"""Evolution strategies: a population writes in one batch, and its rewards make the step."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from mlxzo.core import events
from mlxzo.core.config import RunConfig
from mlxzo.core.errors import ConfigError
from mlxzo.core.run_directory import RunDirectory
from mlxzo.engine.distributed.communicator import check_ranks, members_at_once
from mlxzo.engine.evaluation import Evaluator
from mlxzo.engine.methods.evolution import EvolutionStrategies
from mlxzo.engine.session import Session, open_session
from mlxzo.engine.tuned_source import recorded_options
from mlxzo.models.loading import fingerprint
from mlxzo.zo.evolution import evolution_factors
from mlxzo.zo.journal import read
from mlxzo.zo.perturb import Direction
from mlxzo.zo.replay import replay
from tests.engine.in_process import StoppedError, fit
from tests.tiny import tiny_folder
from tests.variants import slow

OPTIONS = {"task": "custom", "objective": "reward", "reward_function": "unused:here", "batch_size": 4, "queries": 3}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompts")
    begin = "what a good and moving story this is, "
    rows = "".join(json.dumps({"prompt": f"{begin}{'so ' * i}it", "completion": " is"}) + "\n" for i in range(4))
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text(rows)
    return folder


class Lengths:
    """A judge that likes long answers."""

    judged = failed = 0

    def scores(self, answers):
        return [len(answer.answer.encode()) / 100 for answer in answers]


def opened(model, prompts, **options) -> Session:
    config = RunConfig(model=str(model), data=str(prompts), **{**OPTIONS, **options}).resolved()
    return replace(open_session(config, lambda event: None), judge=Lengths())


def method_of(session: Session, **options) -> EvolutionStrategies:
    answers = Evaluator(session).of_answers()
    assert answers is not None
    return EvolutionStrategies(session.scorer, session.trainable, session.config, answers, **options)


def members(session: Session, count: int, eps: float) -> list:
    scales = {name: session.trainable.scales.get(name, 1.0) for name in session.trainable.names}
    directions = [Direction(0, 0, index, "sign", scales) for index in range(count)]
    return [session.causal.view(direction, side) for direction in directions for side in (eps, -eps)]


SIZES = {"norms": 5.0, "norms/last-0": 5.0, "norms/last-1": 5.0, "biases": 1.0, "gains": 5.0}
SIZES |= {"lora": 0.1, "lora/last-1": 0.1, "norms+lora/last-1": 5.0}
CASES = [(kind, scope) for scope in SIZES for kind in ("llama", "qwen3", "gemma3", "lfm2")]


@pytest.mark.parametrize(
    ("kind", "scope"), [case if case == ("llama", "norms+lora/last-1") else slow(*case) for case in CASES]
)
def test_a_population_in_one_batch_writes_what_its_members_write_one_by_one(kind, scope, prompts, tmp_path):
    model = tmp_path / "model"
    tiny_folder(model, kind)
    session = opened(model, prompts, scope=scope)
    evaluator, views = Evaluator(session), members(session, 2, SIZES[scope])
    session.shapes = replace(session.shapes, tokens=64)
    examples = session.data.train
    together = evaluator.of_answers().write(examples, views)
    alone = [evaluator.write("train", examples, view=view) for view in views]
    assert evaluator._supports_population
    assert together == alone and len({tuple(written) for written in alone}) > 1


@pytest.mark.slow
@pytest.mark.variant
def test_scopes_of_whole_matrices_write_member_by_member(model, prompts):
    session = opened(model, prompts, scope="last-1")
    views = members(session, 1, 0.1)
    assert members_at_once(session.config) == 1
    written = Evaluator(session).of_answers().write(session.data.train, views)
    assert written == [Evaluator(session).write("train", session.data.train, view=view) for view in views]


def test_a_step_follows_the_rewards_of_its_members_and_goes_back_a_part_of_the_way(model, prompts):
    """By hand: write each member's answers, measure them, and move."""
    session = opened(model, prompts, scope="norms", eps=3.0, pull=0.25, lr=2.0, estimator="es")
    method, batch = method_of(session), session.batch(session.splits["train"])
    evaluator, views = Evaluator(session), members(session, 3, 3.0)
    start = {name: np.array(value) for name, value in session.trained_parameters().items()}
    written = [evaluator.write("train", session.data.train, view=view) for view in views]
    rewards = np.array([np.mean([len(a.encode()) / 100 for a in answers]) for answers in written])
    result = method.step(0, batch)
    assert result.population.rewards == pytest.approx(rewards) and len(set(rewards)) > 1
    assert result.loss == pytest.approx(1 - rewards.mean())
    factors = evolution_factors(rewards, 2.0, 3.0)
    for name, value in session.trained_parameters().items():
        moved = start[name].astype(float)
        for view, factor in zip(views[::2], factors, strict=True):
            moved = moved - factor * np.array(view.direction.scaled(name, value.shape, 1.0))
        assert np.array(value) == pytest.approx(start[name] + 0.75 * (moved - start[name]), abs=1e-6)


def test_the_scale_that_changes_a_part_of_the_answers_is_found_and_the_same_each_time(model, prompts):
    found = []
    for _ in range(2):
        session = opened(model, prompts, scope="norms")
        method = method_of(session, find_eps=True)
        result = method.step(0, session.batch(session.splits["train"]))
        found.append((method.eps, result.note, fingerprint(session.trained_parameters())))
    assert found[0] == found[1]
    assert f"eps is {method.eps:.3g}" in found[0][1]


def test_where_all_members_are_equal_nothing_moves_and_all_directions_are_ties(model, prompts):
    session = opened(model, prompts, scope="norms", eps=1e-6)
    before = fingerprint(session.trained_parameters())
    result = method_of(session).step(0, session.batch(session.splits["train"]))
    assert result.ties == 3 and result.population.changed == 0.0
    assert fingerprint(session.trained_parameters()) == before


def run_of(model, prompts, tmp_path, name) -> RunDirectory:
    options = {"steps": 4, "eval_every": 2, "scope": "norms", "pull": 0.1}
    config = RunConfig(model=str(model), data=str(prompts), **{**OPTIONS, **options}, out=str(tmp_path), name=name)
    return RunDirectory.create(config.resolved())


def test_a_run_that_is_killed_ends_with_the_bits_of_the_whole_one_and_its_journal_gives_them(model, prompts, tmp_path):
    whole = run_of(model, prompts, tmp_path, "whole")
    result = fit(whole, judge=Lengths())
    told = [event for event, _ in whole.events() if isinstance(event, events.Population)]
    assert [event.step for event in told] == [1, 2, 3, 4] and len({event.eps for event in told}) == 1
    assert told[0].answers and all(len(event.rewards) == 6 for event in told)
    killed = run_of(model, prompts, tmp_path, "killed")
    with pytest.raises(StoppedError):
        fit(killed, until=3, judge=Lengths())
    assert fit(killed, judge=Lengths())["final_sha256"] == result["final_sha256"]
    journal = read(whole.path / "journal.bin")
    # What `mlxzo replay` reads of a run's own journal.
    assert RunConfig.from_mapping(recorded_options(journal)).estimator == "es"
    assert journal[0].state[:2] == (told[0].eps, pytest.approx(0.1))
    session = opened(model, prompts, scope="norms")
    replay(session.causal.slots, journal)
    assert fingerprint(session.trained_parameters()) == result["final_sha256"]
    with pytest.raises(ValueError, match="before the first"):
        replay(session.causal.slots, journal, 2)


def test_options_that_do_not_go_together_are_refused():
    reward = {"objective": "reward", "reward_function": "a:b"}
    for options, says in (
        ({"estimator": "es"}, "es is for objectives of generated answers"),
        ({**reward, "estimator": "es", "update": "sgd"}, "has one rule"),
        ({**reward, "estimator": "es", "weight_decay": 0.1}, "use --pull"),
        ({"pull": 0.1}, "only the estimator es .* leave it out; es is for objectives of generated answers"),
        ({**reward, "pull": 0.1, "update": "sgd"}, "leave it out, or update, which stands for the estimator spsa"),
        ({**reward, "pull": 0.1, "weight_decay": 0.1}, "leave it out, or weight_decay"),
        ({**reward, "pull": 0.1, "estimator": "spsa"}, "leave it out, or use --estimator es"),
    ):
        with pytest.raises(ConfigError, match=says):
            RunConfig(**options)


@pytest.mark.parametrize("objective", ["reward", "f1", "exact_match"])
def test_a_rate_alone_leaves_answers_to_es_and_options_that_es_has_not_mean_spsa(objective):
    written = {"objective": objective, "reward_function": "a:b"}
    for own in ({}, {"lr": 0.5}):
        assert RunConfig(**written, **own).resolved().estimator == "es"
    assert RunConfig(**written, lr=0.5).resolved().lr == 0.5 and RunConfig(**written).resolved().lr == 1.0
    for own in ({"update": "sgd"}, {"weight_decay": 0.1}, {"update": "sgd", "lr": 0.5}):
        assert RunConfig(**written, **own).resolved().estimator == "spsa"
    # A run that began as one or the other goes on as it: its configuration names the estimator.
    began = RunConfig(**written, lr=0.5, estimator="spsa").resolved()
    assert RunConfig.from_mapping(began.to_dict()).estimator_in_use == "spsa"
    for other in ({"lr": 0.5}, {"objective": "accuracy"}):
        assert RunConfig(**other).resolved().estimator == "spsa"


def test_ranks_share_the_groups_of_a_population():
    config = RunConfig(objective="reward", reward_function="a:b", scope="norms", queries=16, batch_size=16)
    assert members_at_once(config) == 8
    check_ranks(config, 4)
    with pytest.raises(ConfigError, match="4 groups of 8 perturbed copies"):
        check_ranks(config, 5)
