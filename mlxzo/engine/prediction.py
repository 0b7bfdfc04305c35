"""Prediction: the labels of a file's rows, window by window, in memory that does not depend on the file's length."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path

import numpy as np

from ..core import events
from ..core.config import RunConfig
from ..core.errors import DataError, Diverged
from ..core.files import sha256_file
from ..models.loading import weights_fingerprint
from ..tasks.base import TaskData
from ..tasks.chat import in_style
from ..tasks.classification import Classification
from ..tasks.row_problems import bad_rows
from ..tasks.row_stream import RowStream, StreamedRow
from .encoding import EncodedExample, encode
from .evaluation import Evaluator
from .prediction_file import PartialFile, RowWriter, check_new
from .scoring import Scorer, candidate_probabilities
from .session import Inputs, Session, fetch
from .tuned_model import open_tuned
from .tuned_source import Source

WINDOW = 256
"""Rows that are read, batched by length and written together."""


@dataclass
class Predicted:
    """Outcome of a prediction.

    Attributes:
        rows: rows labelled, of which `earlier` by a process that was ended.
        left_out: rows that could not be used.
        known, right: rows among those labelled now that have a label, and those whose label was predicted.
        seconds: for the rows labelled now, loading excluded.
    """

    rows: int = 0
    earlier: int = 0
    left_out: int = 0
    known: int = 0
    right: int = 0
    seconds: float = 0.0

    @property
    def accuracy(self) -> float | None:
        """None where no row has a label."""
        return self.right / self.known if self.known else None


@dataclass(frozen=True)
class _Rows:
    """The rows of a stream as tokens."""

    task: Classification
    stream: RowStream
    inputs: Inputs
    writer: RowWriter

    def __iter__(self) -> Iterator[tuple[StreamedRow, EncodedExample]]:
        return self.stream.examples(self._encoded)

    def _encoded(self, row: StreamedRow) -> EncodedExample:
        """Raises ValueError if the row cannot be used."""
        config = self.inputs.config
        example = in_style(self.task.question(row.fields), config.prompt_style)
        try:
            encoded = encode(example, self.inputs.tokenizer, config.max_tokens)
        except DataError as error:
            raise ValueError(error.message) from None
        self.writer.check(row)
        return encoded


def predict_job(
    config: RunConfig,
    task: Classification,
    stream: RowStream,
    *,
    source: Source | None,
    separator: str | None,
    out: Path | None,
    write: Callable[[str], None],
    skip_broken: bool,
    on_event: events.Emit,
) -> Predicted:
    """Labels the rows of a stream with the base model, or with the model that a source tuned.

    The rows of a window are always the same ones, so a row has the same probabilities wherever the prediction began.

    Args:
        separator: of the table to write; None for JSON objects.
        out: the file to write; a part of it that an ended process left is continued. None: `write` takes the text.
        skip_broken: label the other rows where some cannot be used.

    Raises:
        DataError: rows cannot be used (all are named, and nothing is written), or there are none.
        MlxzoError: model or source are missing or damaged, or the file cannot be written.
    """
    if out is not None:
        check_new(out)
    inputs = fetch(config, TaskData(task, (), (), (), "", "", tuple(stream.remarks)), on_event)
    writer = RowWriter(task.classes, stream, separator)
    rows = _Rows(task, stream, inputs, writer)
    found = _check(rows, skip_broken, on_event)
    # Of no use here are the sizes of splits that are not read.
    session = open_tuned(inputs, source, lambda event: None if isinstance(event, events.Loaded) else on_event(event))
    # No output of the frozen layers is kept, so they need not run by themselves, which takes half as long again.
    session.scorer = Scorer(session.causal)
    part = None
    if out is not None:
        part = PartialFile(out, _key(rows, session), WINDOW, is_table=separator is not None)
        found.earlier, write = part.rows, part.write
        _tell_parts(part, found, on_event)
    if part is None or part.is_new:
        write(writer.header())
    started = time.perf_counter()
    evaluator, waiting = Evaluator(session), islice(rows, found.earlier, None)
    done, total = 0, found.rows - found.earlier
    while window := list(islice(waiting, WINDOW)):
        write("".join(_labelled(window, evaluator, writer, found, task, _of_all(done, total, on_event))))
        done += len(window)
    found.seconds = time.perf_counter() - started
    if part is not None:
        part.publish()
    return found


def _check(rows: _Rows, skip_broken: bool, emit: events.Emit) -> Predicted:
    """Reads all rows once and counts them.

    Raises:
        DataError: rows cannot be used, and are not to be left out; or there are no others.
    """
    stream, count, truncated = rows.stream, 0, 0
    label = f"checking {stream.name.name}"
    for count, (_, example) in enumerate(rows, 1):
        truncated += example.truncated
        if count % 1000 == 0:
            emit(events.Progress(label, float(count), None, "rows"))
    if stream.problems:
        needs = "each row needs " + " and ".join(f'"{name}"' for name in rows.task.input_fields)
        error = bad_rows(stream.located(), f"{needs}; or label the others with --skip-broken", whole=True)
        if not (skip_broken and count):
            raise error
        emit(events.Note("; ".join([f"left out: {error.message}", *error.details])))
    if not count:
        raise DataError(f"{stream.name} has no rows", "give rows to label")
    if truncated:
        most = rows.inputs.config.max_tokens
        emit(events.Note(f"{truncated} rows are longer than max_tokens ({most}): their prompts lose their beginning"))
    return Predicted(rows=count, left_out=len({number for number, _ in stream.problems}))


def _labelled(
    window: list[tuple[StreamedRow, EncodedExample]],
    evaluator: Evaluator,
    writer: RowWriter,
    found: Predicted,
    task: Classification,
    emit: events.Emit,
) -> Iterator[str]:
    """The lines of a window; labels that its rows have are compared and counted."""
    examples = [example for _, example in window]
    evaluator.session.loaded.check_tokens(token for example in examples for token in example.tokens)
    for (row, _), scores in zip(window, evaluator.score("labelling", examples, emit).scores, strict=True):
        if not np.isfinite(scores).all():
            raise Diverged.not_finite(f"a score of line {row.number}")
        probabilities = candidate_probabilities(scores)
        if (label := task.known_label(row.fields)) is not None:
            found.known += 1
            found.right += label == int(probabilities.argmax())
        yield writer.line(row, probabilities)


def _of_all(done: int, total: int, emit: events.Emit) -> events.Emit:
    """Shows the progress of a window after `done` of `total` rows as that of all of them."""

    def show(event: events.Event) -> None:
        if isinstance(event, events.Progress):
            event = events.Progress(event.label, done + event.done, float(total), "rows")
        emit(event)

    return show


def _key(rows: _Rows, session: Session) -> str:
    """Eight hexadecimal digits of everything that the written lines follow from."""
    task, config = rows.task, session.config
    facts = (
        sha256_file(rows.stream.path),
        weights_fingerprint(session.loaded.model),
        (task.name, task.template, task.classes),
        (config.prompt_style, config.max_tokens),
        rows.writer.separator,
    )
    return sha256(repr(facts).encode("utf-8", errors="surrogatepass")).hexdigest()[:8]


def _tell_parts(part: PartialFile, found: Predicted, emit: events.Emit) -> None:
    if part.rows:
        emit(events.Note(f"{part.path.name} is continued after {part.rows:,} of {found.rows:,} rows"))
    for other in part.others:
        emit(events.Note(f"{other.name} holds labels of another model or of other rows, and stays as it is"))
