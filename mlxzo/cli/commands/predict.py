"""Label the rows of a file.

  mlxzo predict --run RUN mails.csv --out labelled.csv
  mlxzo predict --run RUN mails.jsonl > labelled.jsonl
  cat mails.jsonl | mlxzo predict --run RUN -
  mlxzo predict --model smollm2-135m --task sst2 reviews.csv
  mlxzo predict --run EXPORT mails.csv --skip-broken

Every row comes out as it came, followed by `predicted_label` and a `probability_LABEL` for each label; rows that have
such a field already are refused. A row needs the fields of the task's template; where rows have labels, the accuracy is
told at the end. A run, a journal and an export know their task and prompt style; with other models --task is given. The
labels of the task custom are those of its training rows, read from the run's data folder or --data; an export has them.

Rows that cannot be used are all named before anything is written. With --out the labels are collected in FILE.KEY.part,
which gets the name FILE when it is whole: after an interruption the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import EXIT_DONE, ConfigError, Interrupted
from ...core.files import explained, user_path
from ...core.formatting import counted, format_metric, format_seconds
from ...memory.mlx_limits import start_mlx
from ...tasks.classification import Classification
from ...tasks.row_stream import OBJECTS, RowStream
from ...tasks.tables import SEPARATORS
from ..options import add_config_options, add_source, config_values, source_of
from ..printing import say

if TYPE_CHECKING:
    from ...core.config import RunConfig
    from ...engine.prediction import Predicted
    from ...engine.tuned_source import Source
    from ...tasks.base import Task

_OPTIONS = ("model", "dtype", "task", "data", "prompt_style", "max_tokens")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        metavar="FILE",
        help="the rows: a table (.csv, .tsv) or one JSON object on each line (.jsonl); `-` reads either from stdin",
    )
    add_source(parser)
    parser.add_argument(
        "--out",
        dest="labels_out",
        metavar="FILE",
        help="file to write, a table or JSON objects by its name (default: stdout, in the form of the input)",
    )
    parser.add_argument("--skip-broken", action="store_true", help="leave out rows that cannot be used")
    add_config_options(parser, _OPTIONS)


def run(arguments: argparse.Namespace) -> int:
    from .train import read_tuned_config

    source = source_of(arguments)
    flags = config_values(arguments)
    config = read_tuned_config(flags, source)
    task = known_task(config, source, flags)
    if task is None:
        raise ConfigError(
            "nothing says what this model was tuned for",
            "give --task, and --data where the labels are those of training rows",
        )
    if not isinstance(task, Classification):
        raise ConfigError(
            f"the task {task.name} has no fixed set of labels, and predict labels rows",
            "name a run of a classification task",
        )
    out = None if arguments.labels_out is None else user_path(arguments.labels_out).absolute()
    start_mlx()
    from ...engine.prediction import predict_job
    from ..console import RunView

    with _stream(arguments.file) as stream, RunView() as view:
        try:
            found = predict_job(
                config,
                task,
                stream,
                source=source,
                separator=_separator(stream, out),
                out=out,
                write=_print,
                skip_broken=arguments.skip_broken,
                on_event=view.show,
            )
        except KeyboardInterrupt:
            again = "the same command goes on where it stopped"
            raise Interrupted("not all rows are labelled", again if out else f"with --out FILE {again}") from None
    say(_summary(found), error=True)
    return EXIT_DONE


def known_task(config: RunConfig, source: Source | None, flags: dict[str, Any]) -> Task | None:
    """The task that the flags, a run, a journal or an export name; None where nothing does.

    Raises:
        MlxzoError: there is no such task, or the training rows that define it cannot be read.
    """
    from ...engine.task_record import export_options, recorded_task
    from ...tasks.registry import task_alone

    folder = Path(config.model) if source is None else source.path
    # An export has the task as it was when the run trained.
    if flags.get("task") in (None, export_options(folder).get("task")) and (task := recorded_task(folder)) is not None:
        return task
    named = "task" in flags or (source is not None and "task" in source.options())
    return task_alone(config) if named else None


@contextmanager
def _stream(name: str) -> Iterator[RowStream]:
    """The rows of a file; those of stdin are read from a copy, since they are read twice."""
    if name != "-":
        path = user_path(name)
        yield RowStream(path, path)
        return
    with tempfile.TemporaryDirectory(prefix="mlxzo-") as folder:
        path = Path(folder) / "stdin"
        with explained(path, "what stdin gives", option="TMPDIR"), path.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        yield RowStream(path, Path("stdin"))


def _separator(stream: RowStream, out: Path | None) -> str | None:
    """The separator of the table to write; None for JSON objects.

    Raises:
        ConfigError: the file to write is of no known kind.
    """
    own = None if stream.table is None else stream.table.separator
    suffix = None if out is None else out.suffix.lower()
    if suffix is None or suffix == stream.name.suffix.lower():
        return own
    if suffix not in (*SEPARATORS, *OBJECTS):
        raise ConfigError(
            f"--out: {suffix or 'a name without an ending'} is no kind of file", "end it with .csv or .jsonl"
        )
    return SEPARATORS.get(suffix)


def _print(text: str) -> None:
    """Prints rows to stdout: as they are to a program, in UTF-8, and to a terminal what it can show."""
    if sys.stdout.isatty():
        say(text, end="")
        return
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", newline="\n")
    sys.stdout.write(text)
    sys.stdout.flush()


def _summary(found: Predicted) -> str:
    now = found.rows - found.earlier
    rate = f" ({now / found.seconds:.1f} rows/s)" if now else ""
    text = f"{counted(now, 'row')} labelled in {format_seconds(found.seconds)}{rate}"
    if found.earlier:
        text += f", {found.earlier:,} before"
    if found.accuracy is not None:
        accuracy = format_metric("accuracy", found.accuracy)
        text += f"; accuracy {accuracy} on {counted(found.known, 'row')} labelled now, whose label is known"
    return text
