"""One run of a comparison: its configuration and its results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from ...core import events
from ...core.config import RunConfig, options
from ...core.run_directory import RunDirectory
from ...core.run_history import RunHistory
from ..comparison import label_of
from ..naming import base_name
from ..queue import run_directory

Status = Literal["finished", "running", "does not fit", "failed", "interrupted", "not run"]


@dataclass(frozen=True)
class ComparedRun:
    """One run of a contestant, begun or not: its configuration and its directory."""

    contestant: str
    config: RunConfig
    run: RunDirectory

    @staticmethod
    def planned(contestant: str, config: RunConfig) -> ComparedRun:
        """A run in the directory that its configuration names, which may not exist yet."""
        return ComparedRun(contestant, config, run_directory(config))

    @cached_property
    def history(self) -> RunHistory:
        return RunHistory.read(self.run.events())

    @cached_property
    def status(self) -> Status:
        """The run's status; `does not fit` is that of a run that never began, since it was predicted not to fit."""
        if not self.run.events_path.exists() and not self.run.worker_is_alive():
            return "not run"
        # A result is final whoever holds the lock: another command may be looking whether there is work left.
        if self.run.last_status == "finished":
            return "finished"
        status = self.run.status
        if status in ("finished", "running", "interrupted"):
            return status
        return "failed" if self.needed_bytes is None else "does not fit"

    @property
    def needed_bytes(self) -> int | None:
        """The predicted memory of a run that does not fit; None for others."""
        return self.failed.needed_bytes if self.failed else None

    @property
    def failed(self) -> events.Failed | None:
        return self.history.outcome if isinstance(self.history.outcome, events.Failed) else None

    @property
    def model_name(self) -> str:
        """The model without the folders of a path."""
        return base_name(self.config.model)

    @property
    def steps(self) -> int:
        return int(self.history.steps["step"][-1]) if len(self.history.steps) else 0

    @property
    def steps_per_second(self) -> float | None:
        """Steps per second of training, evaluations left out."""
        return self.steps / self.history.training_seconds if self.history.training_seconds else None

    @cached_property
    def environment(self) -> dict[str, Any]:
        """The content of environment.json; empty where the run ended before it was written."""
        return self.run.environment() or {}

    def to_dict(self) -> dict[str, Any]:
        """Every value of the run, as CSV and JSON hold it; times in seconds, memory in bytes."""
        history, config = self.history, self.config
        zero_shot, best = history.zero_shot, history.best_measurement
        measured = history.test or zero_shot.get("validation")
        return {
            "contestant": self.contestant,
            "run": self.run.id,
            "status": self.status,
            "model": config.model,
            "task": config.task,
            "method": config.method,
            "scope": config.scope,
            "lr": config.lr,
            "batch_size": config.batch_size,
            "seed": config.seed,
            "metric": measured.metric if measured else None,
            "majority": measured.majority if measured else None,
            "zero_shot_validation": zero_shot["validation"].value if "validation" in zero_shot else None,
            "zero_shot_test": zero_shot["test"].value if "test" in zero_shot else None,
            "best_validation": best.value if best else None,
            "best_step": best.step if best else None,
            "seconds_to_best": best.seconds if best else None,
            "test": history.test.value if history.test else None,
            "steps": self.steps,
            "steps_per_second": self.steps_per_second,
            "seconds": history.seconds,
            "training_seconds": history.training_seconds,
            "peak_bytes": history.peak_bytes,
            "footprint_bytes": history.footprint_bytes,
            "needed_bytes": self.needed_bytes,
            "memory_cap_bytes": config.memory_cap_bytes,
            "problem": self.failed.message if self.failed else None,
        }


def labelled(runs: Sequence[RunDirectory]) -> list[ComparedRun]:
    """Existing runs as contestants: those that differ only in seed, name and folder are one.

    The name of a contestant is model, method and scope, and the options in which the contestants differ.

    Raises:
        ConfigError: a configuration cannot be read.
    """
    # Micro-batches and the activation cache change no result; a memory cap chooses them by the data of each run.
    apart = {"seed", "name", "out", "data", "micro_batch", "activation_cache"}
    configs = [run.config for run in runs]
    named = {"model", "method", "scope"}
    keys = [
        field.name
        for field in options()
        if field.name not in apart | named and len({getattr(config, field.name) for config in configs}) > 1
    ]
    return [ComparedRun(label_of(config, keys), config, run) for config, run in zip(configs, runs, strict=True)]
