"""Evaluation of a model zero-shot, in context, calibrated and by a probe: the baselines of fine-tuning.

In-context learning puts labelled examples before the question (Brown et al. 2020). Contextual calibration divides the
labels' probabilities by those after inputs without content (Zhao et al. 2021, arXiv 2102.09690).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

import numpy as np

from ..core import events
from ..core.config import RunConfig
from ..core.errors import ConfigError, DataError
from ..core.run_directory import RunDirectory
from ..tasks.base import Example, Task
from ..tasks.chat import after_turns, in_style
from ..tasks.classification import Classification
from ..tasks.sampling import stable_permutation
from .data_summary import share_candidates
from .encoding import EncodedExample, encode
from .evaluation import Evaluation, Evaluator, Scored
from .layer_probe import measure_probe, obstacle
from .prefix_sharing import MAX_NEW_TOKENS
from .reward import open_judge
from .scoring import example_losses
from .session import Session, fetch, load_data
from .tuned_model import open_tuned
from .tuned_source import Kind, Source

SEPARATOR = "\n\n"
"""Between demonstrations, as in Malladi et al. 2023."""
CONTENT_FREE = ("N/A", "[MASK]", "")
"""Inputs without content, of Zhao et al. 2021."""


@dataclass(frozen=True)
class Baseline:
    """A way of prompting a model.

    Attributes:
        shots: demonstrations of each label, or in total where candidates differ from example to example.
        calibrate: contextual calibration.
    """

    shots: int = 0
    calibrate: bool = False

    @property
    def name(self) -> str:
        shown = f"{self.shots}-shot" if self.shots else "zero-shot"
        return f"{shown}, calibrated" if self.calibrate else shown


def suitable_baselines(task: Task, shots: int) -> list[Baseline]:
    """Zero-shot and, where there are answers to demonstrate, in-context baselines, each with and without calibration
    where the task has labels."""
    both = (False, True) if isinstance(task, Classification) else (False,)
    counts = (0, shots) if task.has_answers else (0,)
    return [Baseline(count, calibrate) for count in counts for calibrate in both]


def evaluate_job(
    config: RunConfig,
    *,
    source: Source | None,
    split: str,
    on_event: events.Emit,
    ways: Callable[[Task], Sequence[Baseline]] = lambda task: (Baseline(),),
    probe: bool = False,
    allow_code: bool = False,
) -> list[dict[str, Any]]:
    """Measures the base model, or the model that a source tuned, on one split of the task.

    Args:
        ways: returns the ways of prompting the model for a task.
        probe: measure a ridge probe as well, where task and model allow it; else a note says why not.
        allow_code: the user allows the judge that the configuration names to run; else answers are measured by the
            task's own metric.

    Returns:
        For each way, the model, data and way, the fields of its `Evaluation`, and `before_training`: its metric as the
        run of the source measured it with the base model on the same rows, None where it did not. The probe comes last,
        with the same keys (its loss is None) and the further fields of its `LayerProbe`.

    Raises:
        MlxzoError: model, data or source are missing or damaged, or a way does not suit the task.
    """
    data = load_data(config, on_event)
    if unjudged := config.names_judge and not allow_code and data.task.has_answers:
        on_event(events.Note("your judge runs with --allow-code alone: answers are measured by the task's own metric"))
    with contextlib.nullcontext() if unjudged else open_judge(config, allow_code, on_event) as judge:
        if judge is None and not data.task.has_answers:
            raise DataError(
                f"the rows of the task {data.task.name} are prompts without an answer to compare with",
                "name a judge: `reward` in a task YAML, --reward-command or --reward-function (docs/tasks.md)",
            )
        session = open_tuned(fetch(config, data, on_event), source, on_event, judge)
        return _evaluated(session, config, source, split, on_event, ways, probe)


def _evaluated(
    session: Session,
    config: RunConfig,
    source: Source | None,
    split: str,
    on_event: events.Emit,
    ways: Callable[[Task], Sequence[Baseline]],
    probe: bool,
) -> list[dict[str, Any]]:
    """The results of `evaluate_job` for an open session."""
    if not session.splits[split]:
        raise DataError(f"there are no {split} examples", "add test.jsonl to the data, or use --split validation")
    facts = {
        "model": session.resolved.name,
        # The run, adapter or journal.
        **{kind: str(source.path) if source and source.kind == kind else None for kind in get_args(Kind)},
        "task": session.data.task.name,
        "split": split,
        "data_sha256": session.data.sha256,
    }
    results = []
    for way in ways(session.data.task):
        before = _before_training(session, config, source, split) if way == Baseline() else None
        found = asdict(measure(session, split, way, on_event))
        results.append({**facts, "asked": way.name, **asdict(way), **found, "before_training": before})
    if probe and (reason := obstacle(session, split)):
        on_event(events.Note(reason))
    elif probe:
        found = asdict(measure_probe(session, split, on_event))
        other = {"loss": None, "more": {}, "before_training": None}
        results.append({**facts, "asked": "ridge probe", **asdict(Baseline()), **other, **found})
    return results


def _before_training(session: Session, config: RunConfig, source: Source | None, split: str) -> float | None:
    """The metric of the base model on a split, as the run of a source measured it; None unless it had the same rows,
    asked and measured in the same way.

    Args:
        config: of the evaluation, as asked for.
    """
    if source is None or source.kind != "run":
        return None
    run = RunDirectory(source.path)
    asked = ("model", "dtype", "prompt_style", "max_tokens")
    same = all(getattr(config, name) == getattr(run.config, name) for name in asked)
    if not same or (run.environment() or {}).get("data_sha256") != session.data.sha256:
        return None
    found = ((run.result() or {}).get("zero_shot") or {}).get(split) or {}
    return found.get("value") if found.get("metric") == session.metric else None


def measure(session: Session, split: str, baseline: Baseline, emit: events.Emit) -> Evaluation:
    """Measures the session's current weights on one split, prompted in the way of a baseline.

    Raises:
        ConfigError: the task has no labels to calibrate, or its prompts take no demonstrations, or there are none.
    """
    task = session.data.task
    if baseline.calibrate and not isinstance(task, Classification):
        raise ConfigError(
            f"the task {task.name} has no fixed set of labels, so there is nothing to calibrate",
            "leave --calibrate out",
        )
    if baseline.shots and not all(map(_takes_demonstrations, getattr(session.data, split))):
        raise ConfigError(
            f"the rows of {task.name} have no plain prompts to put demonstrations before", "leave --shots out"
        )
    if baseline.shots and not task.has_answers:
        raise ConfigError(f"the rows of {task.name} have no answers to demonstrate", "leave --shots out")
    shown = demonstrations(session.data.train, baseline.shots, session.config.seed)
    asked = [_fit_demonstrations(session, example, shown) for example in getattr(session.data, split)]
    if short := sum(count < len(shown) for _, count in asked):
        emit(
            events.Note(
                f"{short} of {len(asked)} prompts have room for fewer than {len(shown)} demonstrations within "
                f"max_tokens ({session.config.max_tokens}); the first ones are left out"
            )
        )
    examples = [example for example, _ in asked]
    encoded = _encoded(session, examples)
    evaluator = Evaluator(session)
    if not (baseline.calibrate and isinstance(task, Classification)):
        return evaluator.measure(split, examples, encoded, emit)
    empty = [in_style(task.content_free(text), session.config.prompt_style) for text in CONTENT_FREE]
    prompts = [_fit_demonstrations(session, each, shown)[0] for each in empty if each.prompt.strip()]
    bias = label_bias(evaluator.score("content-free inputs", _encoded(session, prompts), emit))
    targets = np.array([example.target for example in encoded])
    return evaluator.measure(split, examples, encoded, emit, lambda scored: calibrated(scored, bias, targets))


def demonstrations(examples: Sequence[Example], shots: int, seed: int) -> list[Example]:
    """Draws `shots` examples of each label (all where there are fewer), or in total where candidates differ.

    Returns:
        The examples, in the order in which `seed` draws them.
    """
    by_label = share_candidates(examples)
    found: list[Example] = []
    taken: dict[int | None, int] = {}
    for i in stable_permutation(len(examples), "shots", seed):
        label = examples[i].target if by_label else None
        if taken.get(label, 0) < shots:
            taken[label] = taken.get(label, 0) + 1
            found.append(examples[i])
    return found


def with_demonstrations(shown: Sequence[Example], example: Example) -> Example:
    """Puts demonstrations with their answers before an example's prompt: as text, or as turns."""
    if example.messages:
        return after_turns(shown, example)
    before = [(one.prompt + one.candidates[one.target]).rstrip() + SEPARATOR for one in shown if one.target is not None]
    return replace(example, prompt="".join(before) + example.prompt)


def _takes_demonstrations(example: Example) -> bool:
    """True for a single question, false for a conversation or a text."""
    return bool(example.prompt) and len(example.messages) <= 1


def label_bias(scored: Scored) -> np.ndarray:
    """Log of the labels' mean probabilities, float64 [C], from the scores of content-free inputs."""
    grid = np.stack(scored.scores)
    likelihoods = np.exp(grid - grid.max(axis=1, keepdims=True))
    return np.log((likelihoods / likelihoods.sum(axis=1, keepdims=True)).mean(axis=0))


def calibrated(scored: Scored, bias: np.ndarray, targets: np.ndarray) -> Scored:
    """Subtracts a bias, float64 [C], from scores and recomputes the losses.

    Args:
        targets: index of each example's label, int [N].
    """
    grid = np.stack(scored.scores) - bias
    return Scored(list(grid), example_losses(grid, targets))


def _encoded(session: Session, examples: Sequence[Example]) -> list[EncodedExample]:
    found = [encode(example, session.loaded.tokenizer, session.config.max_tokens) for example in examples]
    session.loaded.check_tokens(token for each in found for token in each.tokens)
    return found


def _fit_demonstrations(session: Session, example: Example, shown: Sequence[Example]) -> tuple[Example, int]:
    """The example after as many demonstrations as fit, the first left out; and their number."""
    room = session.config.max_tokens - (MAX_NEW_TOKENS if session.data.task.writes else 0)
    for first in range(len(shown)):
        candidate = with_demonstrations(shown[first:], example)
        if not encode(candidate, session.loaded.tokenizer, room).truncated:
            return candidate, len(shown) - first
    return example, 0
