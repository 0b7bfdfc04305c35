"""Judges of answers that need no code: functions of an answer and the right answers, with scores from 0 to 1."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from typing import Any

from .metrics import exact_match, normalised

Score = Callable[[str, Sequence[str]], float]
"""A score from 0 to 1 of an answer, given the right answers."""

# A sign belongs to a number unless it joins two, as in 3-5; commas may divide thousands.
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?")
# Without traps: what is out of range is infinite, and near to nothing.
_EXACT = Context(prec=60, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[])


@dataclass(frozen=True)
class Reward:
    """Judges with weights; the reward is the weighted mean of their scores.

    Attributes:
        settings: of all judges, as JSON, by which two rewards are told apart.
    """

    parts: tuple[tuple[float, Score], ...]
    settings: str = "[]"

    def __call__(self, answer: str, gold: Sequence[str]) -> float:
        """The reward of an answer, from 0 to 1."""
        total = math.fsum(weight for weight, _ in self.parts)
        return math.fsum(weight * score(answer, gold) for weight, score in self.parts) / total

    @property
    def description(self) -> str:
        """The judges with their settings in words, such as `json, length (most 12, weight 2)`."""
        texts = []
        for each in json.loads(self.settings):
            own = [name if name == "schema" else f"{name} {value}" for name, value in each.items() if name != "kind"]
            texts.append(each["kind"] + (f" ({', '.join(own)})" if own else ""))
        return ", ".join(texts)

    def check(self, gold: Sequence[str]) -> None:
        """Raises ValueError if the right answers of a row have no number, and a judge compares numbers."""
        if any(isinstance(score, SameNumber) for _, score in self.parts):
            for text in gold:
                if not numbers(text):
                    raise ValueError(f"the right answer {text!r} has no number to compare with")


def is_json(answer: str, gold: Sequence[str] = ()) -> float:
    """1 if the whole answer is one JSON value (RFC 8259), else 0. A block in a Markdown fence is none."""
    return float(_parsed(answer) is not None)


@dataclass(frozen=True)
class ValidBySchema:
    """1 if the answer is JSON that a JSON Schema allows, else 0.

    Attributes:
        validator: of `jsonschema`, which fetches nothing.
    """

    validator: Any

    def __call__(self, answer: str, gold: Sequence[str] = ()) -> float:
        parsed = _parsed(answer)
        return float(parsed is not None and self.validator.is_valid(parsed[0]))


@dataclass(frozen=True)
class Matches:
    """1 if a regular expression matches the whole answer, or (`anywhere`) a part of it, else 0."""

    pattern: re.Pattern[str]
    anywhere: bool = False

    def __call__(self, answer: str, gold: Sequence[str] = ()) -> float:
        match = self.pattern.search if self.anywhere else self.pattern.fullmatch
        return float(match(answer) is not None)


@dataclass(frozen=True)
class LengthWithin:
    """1 for an answer of `least` to `most` words or characters; it falls linearly to 0 at no text and at twice
    `most`."""

    least: int = 0
    most: int | None = None
    characters: bool = False

    def __call__(self, answer: str, gold: Sequence[str] = ()) -> float:
        length = len(answer) if self.characters else len(answer.split())
        if length < self.least:
            return length / self.least
        if self.most is not None and length > self.most:
            return max(0.0, 1.0 - (length - self.most) / self.most) if self.most else 0.0
        return 1.0


@dataclass(frozen=True)
class Equals:
    """1 if the answer equals `text`, or without one a right answer, both normalised (see `metrics.normalised`)."""

    text: str | None = None

    def __call__(self, answer: str, gold: Sequence[str]) -> float:
        return exact_match(answer, gold if self.text is None else (self.text,))


@dataclass(frozen=True)
class Contains:
    """1 if the words of `text`, or without one of a right answer, occur in the answer one after the other, all
    normalised."""

    text: str | None = None

    def __call__(self, answer: str, gold: Sequence[str]) -> float:
        words = f" {normalised(answer)} "
        wanted = map(normalised, gold if self.text is None else (self.text,))
        return float(any(text and f" {text} " in words for text in wanted))


@dataclass(frozen=True)
class SameNumber:
    """1 if a number of the answer differs from that of a right answer by at most `tolerance`, else 0.

    Attributes:
        only: the answer must have one number; else its last one counts.
    """

    tolerance: Decimal = Decimal(0)
    only: bool = False

    def __call__(self, answer: str, gold: Sequence[str]) -> float:
        found = numbers(answer)
        if not found or (self.only and len(found) > 1):
            return 0.0
        right = (numbers(text)[-1:] for text in gold)
        return float(any(self._near(found[-1], number) for of_gold in right for number in of_gold))

    def _near(self, a: Decimal, b: Decimal) -> bool:
        difference = _EXACT.subtract(a, b)
        return not difference.is_nan() and abs(difference) <= self.tolerance


def numbers(text: str) -> list[Decimal]:
    """The numbers in a text, such as `-3`, `1,234.5` or `2e-3`, in their order."""
    found = (_EXACT.create_decimal(match[0].replace(",", "")) for match in _NUMBER.finditer(text.replace("−", "-")))
    return [number for number in found if not number.is_nan()]


def _parsed(answer: str) -> tuple[Any] | None:
    """The JSON value of an answer, as a tuple of one; None where it is no JSON."""
    try:
        return (json.loads(answer, parse_constant=_refuse),)
    except (ValueError, RecursionError):
        return None


def _refuse(name: str) -> Any:
    """NaN and Infinity, which Python reads, are no JSON."""
    raise ValueError(name)
