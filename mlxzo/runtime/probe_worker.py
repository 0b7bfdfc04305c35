"""The child process that measures the ridge probe of a base model: `python -m mlxzo.runtime.probe_worker`.

It reads a configuration, one JSON object, from stdin and writes events to stdout, line by line. The last one is
Finished with the result of `engine.layer_probe.probe_job`, or Failed.
"""

from __future__ import annotations

import json
import sys
import time

from ..core import events
from ..core.config import RunConfig
from ..core.errors import EXIT_DONE
from ..core.failures import as_error
from ..memory.mlx_limits import start_mlx


def main() -> int:
    """Measures the probe; returns the exit code."""

    def emit(event: events.Event) -> None:
        print(events.to_json(event, time.time()), flush=True)

    try:
        config = RunConfig.from_mapping(json.load(sys.stdin))
        start_mlx()
        # MLX must find its variables set and a fast BLAS loaded.
        from ..engine.layer_probe import probe_job

        emit(events.Finished(probe_job(config, emit)))
        return EXIT_DONE
    except Exception as error:
        explained = as_error(error, "the probe")
        if explained is None:
            raise
        emit(events.Failed(**explained.to_dict()))
        return explained.exit_code


if __name__ == "__main__":
    sys.exit(main())
