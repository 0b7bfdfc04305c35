"""The ridge probe of a comparison's models: measured once for each model and seed of its data, kept as a file.

A child process measures it, by one forward pass an example. Imports no MLX.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core import events
from ..core.child_process import module_command, pipe, worker_environment
from ..core.config import DATA_OPTIONS, RunConfig
from ..core.errors import MlxzoError
from ..core.files import explained, write_atomic
from ..core.formatting import format_bytes, json_text
from ..core.parsing import CONTENT_ERRORS, read_json
from .naming import base_name, digest, slug

# The options that a probe depends on.
_OPTIONS = ("model", "dtype", *DATA_OPTIONS, "prompt_style", "max_tokens", "seed")


@dataclass(frozen=True)
class ModelProbe:
    """The ridge probe of one model on the data of one seed, measured or not.

    Attributes:
        config: the first run's of this model and seed; `path`: the file of its result.
    """

    config: RunConfig
    path: Path

    @property
    def model_name(self) -> str:
        return base_name(self.config.model)

    @property
    def kept(self) -> dict[str, Any] | None:
        """What `engine.layer_probe.probe_job` returned; None where it was not measured with these options."""
        try:
            content = read_json(self.path)
            return dict(content["result"]) if content["options"] == self._options else None
        except (OSError, *CONTENT_ERRORS):
            return None

    @property
    def result(self) -> dict[str, Any] | None:
        """The fields of a `LayerProbe` and the split; None where there is no probe, or none yet."""
        found = self.kept
        return found if found and "value" in found else None

    @property
    def _options(self) -> dict[str, Any]:
        return {name: getattr(self.config, name) for name in _OPTIONS}

    def measure(self, emit: events.Emit, stopping: Callable[[], bool]) -> None:
        """Measures the probe and keeps the result; nothing where it is kept already, or `stopping` turns true.

        Problems are notes: a comparison does without the probe.

        Raises:
            MlxzoError: the file cannot be written.
        """
        if (found := self.kept) is None and not stopping():
            about = f"{self.model_name}, seed {self.config.seed}"
            emit(events.Note(f"ridge probe of {about}: one forward pass an example"))
            try:
                self._check_memory()
                found = _measured(self._options, emit, stopping)
            except MlxzoError as error:
                emit(events.Note(f"no ridge probe of {about}: {error.message}"))
            if found is not None:
                with explained(self.path.parent, "the probe"):
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                    write_atomic(self.path, json_text({"options": self._options, "result": found}, indent=2) + "\n")
        if found and "obstacle" in found:
            emit(events.Note(found["obstacle"]))

    def _check_memory(self) -> None:
        """Raises an MlxzoError if the passes are predicted to exceed the comparison's cap, which nothing else holds."""
        from ..memory.forecast import evaluation_bytes

        cap, needed = self.config.memory_cap_bytes, evaluation_bytes(self.config)
        if cap is not None and needed is not None and needed > cap:
            raise MlxzoError(f"it takes {format_bytes(needed)}, and the cap is {format_bytes(cap)}", "")


def model_probes(configs: Iterable[RunConfig], folder: Path) -> list[ModelProbe]:
    """The probes of runs, one for each model and seed, with their files in `folder`."""
    found: dict[tuple[str, int], ModelProbe] = {}
    stems: dict[str, str] = {}
    for config in configs:
        if (stem := stems.get(config.model)) is None:
            # Folders of one name are different models.
            stem = f"probe-{slug(base_name(config.model), 'model')}"
            stem = stems[config.model] = stem if stem not in stems.values() else f"{stem}-{digest(config.model)}"
        found.setdefault((config.model, config.seed), ModelProbe(config, folder / f"{stem}-s{config.seed}.json"))
    return list(found.values())


def _measured(options: dict[str, Any], emit: events.Emit, stopping: Callable[[], bool]) -> dict[str, Any] | None:
    """The result of a child process, whose other events `emit` takes; None if it was stopped.

    Raises:
        MlxzoError: the child's own error, or that it ended without a result.
    """
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            module_command("mlxzo.runtime.probe_worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
            env=worker_environment(),
        )
        try:
            with pipe(child.stdin) as stdin:
                json.dump(options, stdin)
            for event, _ in events.read(pipe(child.stdout)):
                if isinstance(event, events.Finished):
                    return event.result
                if isinstance(event, events.Failed):
                    raise event.error()
                if stopping():
                    return None
                emit(event)
            if stopping():
                # Ctrl-C of a terminal reaches the child as well.
                return None
            errors.seek(0)
            last = (errors.read().decode("utf-8", "replace").strip().splitlines() or ["it said nothing"])[-1]
            raise MlxzoError(f"its process ended with code {child.wait()}: {last}", "")
        finally:
            child.kill()
            child.wait()
            pipe(child.stdout).close()
