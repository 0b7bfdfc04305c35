"""Figures and events as text, for the command line, the terminal UI and reports. Imports no rich."""

from __future__ import annotations

import json
import math
import re
import shlex
import unicodedata
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from .errors import MlxzoError
from .metrics import metric_named

if TYPE_CHECKING:
    from . import events


def describe(problem: MlxzoError | events.Failed) -> str:
    """An error in full: title and sentence, the details indented, and the fix."""
    # Details that hold several lines, such as a table, keep their indentation.
    details = [f"  {line}" for detail in problem.details for line in detail.split("\n")]
    fix = [f"Fix: {problem.fix}"] if problem.fix else []
    return printable("\n".join([f"{problem.title}: {problem.message}", *details, *fix]))


def loaded_line(event: events.Loaded) -> str:
    counts = f"{format_count(event.parameters)} parameters"
    if event.trainable_parameters:
        share = format_percent(event.trainable_parameters / max(1, event.parameters))
        counts += f", of which {format_count(event.trainable_parameters)} ({share}) train"
    return (
        f"{event.model}: {counts}; {event.task}: {event.train_examples} training, "
        f"{event.validation_examples} validation, {counted(event.test_examples, 'test example')}; "
        f"memory {format_bytes(event.active_bytes)}"
    )


def evaluated_line(event: events.Evaluated) -> str:
    """One evaluation; the best so far is marked by a star and in words."""
    when = "zero-shot" if event.kind == "zero-shot" else f"step {event.step}"
    line = f"{when}: {event.split} {event.metric} {format_metric(event.metric, event.value)}"
    line += more_metrics_text(event.more)
    if has_loss(event.metric, event.value, event.loss):
        line += f", loss {format_loss(event.loss)}"
    if event.kind == "zero-shot" and event.majority is not None:
        line += f", majority class {format_metric(event.metric, event.majority)}"
    line += f" ({counted(event.examples, 'example')}, {format_seconds(event.seconds)})"
    return line + (" * best" if event.best and event.kind == "validation" else "")


def has_loss(metric: str, value: float | None, loss: float | None) -> bool:
    """Whether the loss of an evaluation says more than its metric: without right answers there is none, and 1 - reward
    stands in its place."""
    return metric != "loss" and (metric != "reward" or value is None or loss != 1.0 - value)


def more_metrics_text(values: Mapping[str, float]) -> str:
    """Further metrics, each after a comma: `, exact_match 20.0 %`."""
    return "".join(f", {name} {format_metric(name, value)}" for name, value in values.items())


def memory_text(event: events.Memory) -> str:
    """The run's footprint now, at its peak, and its cap: `0.61 GB, peak 0.64 GB, cap 1.00 GB`."""
    now, peak, *cap = bytes_alike(
        *(event.footprint_bytes, event.peak_footprint_bytes),
        *([] if event.cap_bytes is None else [event.cap_bytes]),
    )
    return f"{now}, peak {peak}" + "".join(f", cap {each}" for each in cap)


def step_text(event: events.Step) -> str:
    """`step 60 of 300`; `step 60` where the run ends when the validation loss no longer falls."""
    return f"step {event.step:,}" if event.may_end_early else f"step {event.step:,} of {event.steps:,}"


def step_counts_text(done: int, total: int | None, between: str = "/") -> str:
    """`60/300`; `60` where only time or a plateau ends the run."""
    return f"{done}" if total is None else f"{done}{between}{total}"


def step_share(event: events.Step) -> float | None:
    """The share of a run's steps that are done; None where their number is not known."""
    return None if event.may_end_early else event.step / event.steps


def eta_text(event: events.Step) -> str:
    """`about 4 min left`, or `at most 14 min left`; empty where nothing is known."""
    if event.eta_seconds is None:
        return ""
    return left_text(event.eta_seconds, "at most" if event.may_end_early else "about")


def objective_words(objective: str) -> str:
    """The name of the minimised value, by the option `objective`: `loss`, or 1 minus the value to maximise."""
    return "loss" if objective == "loss" else f"1 - {objective.replace('_', ' ').replace('-', ' ')}"


def objective_value(objective: str, loss: float | None, population: bool) -> tuple[str, str]:
    """Name and value of what a step reached: (`loss`, `0.6931`), (`1 - accuracy`, `0.2500`); of a population, whose
    loss is 1 minus its mean reward, that mean: (`reward`, `0.750`)."""
    if population:
        return objective, format_metric(objective, None if loss is None else 1.0 - loss)
    return objective_words(objective), format_loss(loss)


def ranks_text(event: events.RankStats) -> str:
    """The number of ranks, and the one that waits longest: `2 ranks, rank 1 (mac2) waits 31 %`."""
    spans = [busy + waiting for busy, waiting in zip(event.busy_seconds, event.waiting_seconds, strict=True)]
    shares = [waiting / span if span else 0.0 for waiting, span in zip(event.waiting_seconds, spans, strict=True)]
    rank = max(range(len(shares)), key=shares.__getitem__)
    return f"{len(shares)} ranks, rank {rank} ({event.names[rank]}) waits {100 * shares[rank]:.0f} %"


def format_metric(metric: str, value: float | None) -> str:
    """A value of the named metric: a share in percent, any other with three decimals."""
    return metric_named(metric).text(value)


def format_count(count: int) -> str:
    """134.5M, 1.7B, 960: a number of parameters as in the names of models."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)


def format_percent(share: float) -> str:
    """Two digits of a share in percent, written out: 0.0043 %, 7.5 %, 100 %."""
    return f"{Decimal(f'{100 * share:.2g}'):f} %"


def format_seconds(seconds: float | None) -> str:
    """4.2 s, 3 min 05 s, 2 h 07 min, 1 d 03 h."""
    if seconds is None:
        return "n/a"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 24 else f"{hours // 24} d {hours % 24:02d} h"


def left_text(seconds: float, how: str = "about") -> str:
    """`about 50 s left`, `about 7 min left`: a predicted time, in whole minutes from two on."""
    minutes = round(seconds / 60)
    text = f"{minutes} min" if 2 <= minutes < 60 else format_seconds(seconds)
    return f"{how} {text} left"


def speed_text(steps_per_second: float) -> str:
    """`2.00 steps/s`, or `33 s/step` where a step takes longer than ten seconds."""
    if 0.0 < steps_per_second < 0.1:
        return f"{1.0 / steps_per_second:.0f} s/step"
    return f"{steps_per_second:.2f} steps/s"


def counted(count: int, noun: str) -> str:
    """`1 row`, `2,000 rows`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def printable(text: str, instead: str = "�") -> str:
    """Text without the characters that a terminal would execute, or that turn text around or hide it; models, names and
    data files may hold them."""
    if text.isprintable():
        return text
    return "".join(instead if _acts(c) else c for c in text.replace("\t", "    "))


def shown(value: object) -> str:
    """The `repr` of a value from a file or a command line, cut to the length that a message has room for."""
    return _cut(value, repr, 100)


def brief(value: object, most: int = 200) -> str:
    """A text in one line that a message can hold, cut if it is long."""
    return _cut(value, lambda value: " ".join(str(value).split()), most)


def _cut(value: object, written: Callable[[object], str], most: int) -> str:
    try:
        text = written(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, or what contains itself
        return f"a {type(value).__name__} too long to show"
    return text if len(text) <= most else f"{text[:most]}…"


def spreadsheet_cell(text: str) -> str:
    """The text of a cell as a CSV file for people holds it: behind an apostrophe where a spreadsheet would compute it,
    as it does what begins so and is no number."""
    if not text.startswith(("=", "+", "-", "@", "\t", "\r")):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def json_text(value: Any, indent: int | None = None) -> str:
    """A value as JSON: letters of all languages as they are, the characters that `printable` replaces escaped, and null
    for a number that is not finite, since JSON has none."""
    text = json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)
    # JSON itself escapes those below U+0020 alone.
    return text if text.isprintable() else "".join(json.dumps(c)[1:-1] if _acts(c) else c for c in text)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _acts(character: str) -> bool:
    """True for control and format characters, but for the line feed and the two joiners that scripts and emoji need."""
    return character not in "\n\u200c\u200d" and unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def format_amount(value: float, unit: str) -> str:
    """A count with its unit; bytes are scaled."""
    return format_bytes(int(value)) if unit in ("B", "bytes") else f"{value:,.0f} {unit}".rstrip()


def format_share(done: float, total: float, unit: str) -> str:
    """`16 of 20 examples`, `5.0 of 80.0 MB`."""
    if unit in ("B", "bytes"):
        return bytes_of(int(done), int(total))
    return f"{done:,.0f} of {format_amount(total, unit)}"


def format_loss(value: float | None) -> str:
    """Four decimals; None stands for a value that was not finite, which JSON cannot represent."""
    return "not finite" if value is None else f"{value:.4f}"


def default_out(run_id: str, form: str) -> str:
    """The default name of an export: `form` is `adapter`, `fused` or `journal`."""
    return f"{run_id}.mlxzo" if form == "journal" else f"{run_id}-{form}"


def result_rows(done: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values of an export that is done, and the command that uses it."""
    rows = [("written", done["out"])]
    if "bytes" in done:
        rows.append(("size", format_bytes(done["bytes"])))
    if "step" in done:
        rows.append(("state", f"of step {done['step']}"))
    if "verified" in done:
        checked = "those of the run, to the bit" if done["verified"] else "the journal has no fingerprint to check by"
        rows.append(("weights", f"{counted(done['steps'], 'step')} replayed; {checked}"))
    if done.get("requantised"):
        rows.append(
            ("rounded", f"{done['requantised']} LoRA pairs, to the quantisation of the base; --dequantize avoids it")
        )
    uses = {
        "adapter": 'mlx_lm.generate --model BASE --adapter-path {0} --prompt "..."',
        "fused": 'mlxzo generate --model {0} "..."',
        "journal": "mlxzo replay {0} --out FOLDER",
    }
    rows.append(("use", uses[done["form"]].format(shlex.quote(str(done["out"])))))
    return rows


def format_bytes(count: int) -> str:
    """`count` bytes as 512 B, 1.5 MB, 2.3 GB: powers of ten."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError("unreachable")


def bytes_alike(*counts: int) -> list[str]:
    """Bytes to compare, all in the unit of the largest: 0.61 GB, 2.00 GB."""
    most = max(counts)
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if most >= scale:
            decimals = 2 if unit == "GB" and most < 10 * scale else 1
            return [f"{count / scale:.{decimals}f} {unit}" for count in counts]
    return [f"{count} B" for count in counts]


def bytes_of(part: int, whole: int) -> str:
    """`612.0 of 900.0 MB`."""
    first, second = bytes_alike(part, whole)
    # If the part is more, both have its unit.
    return f"{first.partition(' ')[0]} of {second}"


def parse_bytes(text: str) -> int:
    """The number of bytes in a text such as `8GB`, `900 MB`, `1.5GiB`, `750m` or `1024`.

    Raises:
        ValueError: its message names the expected form.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([kmgt]?i?)b?\s*", text.lower())
    if not match or match[2] not in _UNITS:
        raise ValueError(f"expected a size such as 8GB, 900MB or 1.5GiB, not {shown(text)}")
    size = float(match[1]) * _UNITS[match[2]]
    if not 1 <= size < 2**53:
        raise ValueError(f"expected a size such as 8GB, 900MB or 1.5GiB, not {shown(text)}")
    return int(size)


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
