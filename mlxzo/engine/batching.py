"""From examples to padded batches: tokens, supervised positions, and a data order that needs no state.

A classification example is scored by the mean log-likelihood of each candidate's tokens after the prompt (Malladi et
al. 2023, Appendix E.2). The model reads the prompt with all but the last token of a candidate. What another candidate's
sequence begins with is not read again: one-token candidates are read off the prompt of any other, and where all are one
token they are read off one position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise, takewhile
from typing import Any, Protocol

import numpy as np

from ..core.errors import DataError
from ..tasks.base import Example
from ..tasks.sampling import stable_permutation

# Stands for an answer in a chat template; nothing that a template says by itself.
_ANSWER = "[[the answer]]"
# Rows of an evaluation whose examples are scored at a time, and reported as one piece of progress.
SCORED_AT_ONCE = 32


class Tokenizer(Protocol):
    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...


@dataclass(frozen=True)
class Row:
    """One sequence the model reads, and the first position of those, to its end, whose next token may be scored."""

    tokens: tuple[int, ...]
    first_position: int


@dataclass(frozen=True)
class EncodedExample:
    """Tokens of one example.

    Attributes:
        rows: sequences of which none begins with another.
        starts: for each candidate the number of the row that it is read off, and the position in that row which its
            first token follows.
        targets: the scored tokens of each candidate.
        target: the right candidate.
        truncated: something of it was cut.
        source: the example that it was made of, if it was of one.
    """

    rows: tuple[Row, ...]
    starts: tuple[tuple[int, int], ...]
    targets: tuple[tuple[int, ...], ...]
    target: int
    truncated: bool
    source: Example | None = None

    @property
    def shared(self) -> bool:
        """Whether there are several candidates, all of them one token that is read off one position."""
        one_place = len(set(self.starts)) == 1 and max(map(len, self.targets)) == 1
        return one_place and self.candidates > 1

    @property
    def length(self) -> int:
        return max(len(row.tokens) for row in self.rows)

    @property
    def row_count(self) -> int:
        return len(self.rows)

    @property
    def candidates(self) -> int:
        return len(self.targets)

    @property
    def scored(self) -> int:
        """Positions that are scored."""
        return sum(len(row.tokens) - row.first_position for row in self.rows)

    @property
    def written(self) -> bool:
        """Whether an evaluation has the model write an answer."""
        return self.source is not None and self.source.written

    def expected_after(self, prompt: tuple[int, ...]) -> tuple[int, ...]:
        """The tokens of its only candidate, where they follow just these tokens; else none."""
        context = self.rows[0].tokens[: self.rows[0].first_position + 1]
        return self.targets[0] if self.candidates == 1 and context == prompt else ()


class Size(Protocol):
    """What micro-batches, and the memory they take, depend on of an example: an `EncodedExample` is one.

    Attributes:
        length: tokens of its longest row.
        row_count: sequences that the model reads for it.
        candidates: answers to choose from.
        scored: positions that are scored, in all rows.
        shared: all candidates are read at one position.
        written: an evaluation has the model write an answer.
    """

    @property
    def length(self) -> int: ...
    @property
    def row_count(self) -> int: ...
    @property
    def candidates(self) -> int: ...
    @property
    def scored(self) -> int: ...
    @property
    def shared(self) -> bool: ...
    @property
    def written(self) -> bool: ...


@dataclass(frozen=True)
class Shapes:
    """How batches are cut into micro-batches, each one forward pass.

    Every example is padded to a length of its own, the next multiple of `multiple`, and only examples of one length
    share a micro-batch, so little is computed for padding.

    Attributes:
        multiple: lengths are padded up to a multiple of this: few distinct shapes keep the allocator's cache small.
        tokens: most tokens in a micro-batch, padding included (one example may be longer).
        rows: most sequences in a micro-batch (an example with more candidates still stays whole); None for no limit.
        written_share: how many times the tokens, or the sequences, of a micro-batch the answers under way may come to.
    """

    multiple: int = 8
    tokens: int = 512
    rows: int | None = None
    written_share: int = 8

    @staticmethod
    def suited(on_cpu: bool, rows: int | None = None) -> Shapes:
        """What suits the device: on the CPU 512 tokens keep the matrix products busy and are small enough for its
        caches. A GPU would rather have fewer and larger micro-batches. Each token of answers under way is a pass over
        all weights, however many they are: some 16 of them pay for it."""
        return Shapes(8, 512, rows, 8) if on_cpu else Shapes(32, 8192, rows, 1)

    def padded(self, example: Size) -> int:
        """The length that an example is padded to."""
        return -(-example.length // self.multiple) * self.multiple

    def most_rows(self, length: int) -> int:
        """Most sequences of a padded length in one micro-batch."""
        return max(1, min(self.tokens // length, self.rows or self.tokens))

    def written(self, length: int) -> int:
        """Most answers under way at a time, of at most `length` tokens each, their prompts included."""
        most = self.written_share * self.tokens // length
        return max(1, most if self.rows is None else min(most, self.written_share * self.rows))

    def largest(self, examples: Iterable[Size]) -> int:
        """Tokens of the largest micro-batch that these examples could make, padding included."""
        sizes = {(self.padded(example), example.row_count) for example in examples}
        return max((length * max(rows, self.most_rows(length)) for length, rows in sizes), default=0)


@dataclass(frozen=True)
class MicroBatch:
    """Arrays of B examples with K candidates in all, R rows padded on the right to T tokens.

    Attributes:
        tokens: int32 [R, T]; the padding is token 0 and never attended to by a scored position (causal mask).
        positions: int32 [S]: scored positions, each once, as indices into the flattened [R * T].
        entry_position: int32 [K, L]: for each scored token of a candidate, an index into `positions`.
        entry_target: int32 [K, L]: the token scored there.
        entry_mask: float32 [K, L]: 1 for a token, 0 for padding.
        candidate: int32 [B, C]: index of each example's candidates into K.
        candidate_mask: bool [B, C]: which of those exist.
        target: int32 [B]: the right candidate of each example.
        shared: all candidates of each example are single tokens read at one position.
        rows: the R rows without their padding.
        firsts: the first scored position of each row; it is scored from there to its end.
    """

    tokens: np.ndarray
    positions: np.ndarray
    entry_position: np.ndarray
    entry_target: np.ndarray
    entry_mask: np.ndarray
    candidate: np.ndarray
    candidate_mask: np.ndarray
    target: np.ndarray
    shared: bool
    rows: tuple[tuple[int, ...], ...]
    firsts: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """Examples of one step or one piece of an evaluation, cut into micro-batches.

    Attributes:
        parts: the micro-batches, shortest first.
        places: for each of them, which examples of the batch it holds, in its order.
        examples: all of them, in the order of the batch.
    """

    parts: tuple[MicroBatch, ...]
    places: tuple[tuple[int, ...], ...]
    examples: tuple[EncodedExample, ...] = ()

    @property
    def size(self) -> int:
        """Examples."""
        return sum(len(places) for places in self.places)

    def picked(self, numbers: Sequence[int]) -> Batch:
        """The micro-batches of these numbers, as a batch with the examples in the order in which they hold them."""
        ends = list(accumulate((len(self.places[i]) for i in numbers), initial=0))
        return Batch(tuple(self.parts[i] for i in numbers), tuple(tuple(range(*span)) for span in pairwise(ends)))

    @property
    def token_count(self) -> int:
        """Tokens that are not padding."""
        return sum(len(row) for part in self.parts for row in part.rows)

    @property
    def padded_token_count(self) -> int:
        """Tokens, padding included."""
        return sum(part.tokens.size for part in self.parts)


def encode(example: Example, tokenizer: Tokenizer, max_tokens: int) -> EncodedExample:
    """Tokenises an example; a sequence longer than `max_tokens` loses the beginning of its prompt, and a text without
    a prompt its end.

    A candidate is tokenised together with its prompt, so it is split as the model would read it; where joining
    changes the last tokens of the prompt, the scored part starts at the first token that differs. Of a text without a
    prompt, a first token that nothing comes before is not scored.

    Raises:
        DataError: a candidate adds no token, or leaves no room for the prompt within `max_tokens`; a conversation, and
            the model has no chat template.
    """
    if example.target is None:
        raise DataError("an example has no label", "only labelled examples can be trained on or evaluated")
    tokens = _tokens_of(example, tokenizer)
    prompt = tokens("")
    split, whole_text = [], not example.prompt and len(example.candidates) == 1
    for candidate in example.candidates:
        joined = tokens(candidate)
        start = common_prefix(prompt, joined)
        if whole_text:
            start = max(1, start)
        if start >= len(joined):
            raise DataError(
                f"the candidate {candidate!r} adds no token to its prompt",
                "change the label word, or leave the row out",
            )
        if start == 0:
            raise DataError("a prompt is empty", "give every example some text before its answer")
        split.append((joined[:start], joined[start:]))
    cut_texts = whole_text and any(len(context) + len(scored) > max_tokens + 1 for context, scored in split)
    if cut_texts:
        split = [(context, scored[: max_tokens + 1 - len(context)]) for context, scored in split]
    # The last scored token is never an input, so a row is the prompt and all but one token of the candidate.
    room = max_tokens - max(len(scored) for _, scored in split) + 1
    if room < 1:
        raise DataError(
            f"a candidate is longer than max_tokens ({max_tokens})", "raise --max-tokens or shorten the answers"
        )
    truncated = cut_texts or any(len(context) > room for context, _ in split)
    split = [(_keep_end(context, room, tokenizer), scored) for context, scored in split]
    rows, starts = _rows([Row(tuple(context + scored[:-1]), len(context) - 1) for context, scored in split])
    return EncodedExample(
        rows=rows,
        starts=starts,
        targets=tuple(tuple(scored) for _, scored in split),
        target=example.target,
        truncated=truncated,
        source=example,
    )


def _rows(asked: Sequence[Row]) -> tuple[tuple[Row, ...], tuple[tuple[int, int], ...]]:
    """The rows of an example and where in them its candidates start (see `EncodedExample`).

    Args:
        asked: the sequence that each candidate would be read off by itself.
    """
    sequences = [row.tokens for row in asked]
    # The longest of all that begin with a sequence: nothing longer begins with that.
    holders = [max((s for s in sequences if s[: len(own)] == own), key=len) for own in sequences]
    read = list(dict.fromkeys(holders))
    starts = tuple((read.index(holder), row.first_position) for holder, row in zip(holders, asked, strict=True))
    firsts = [min(first for row, first in starts if row == number) for number in range(len(read))]
    return tuple(map(Row, read, firsts)), starts


def encode_prompt(example: Example, tokenizer: Tokenizer, max_tokens: int | None = None) -> list[int]:
    """The tokens of an example's prompt alone, as a model reads it that is to write the answer; a prompt longer than
    `max_tokens` loses its beginning."""
    tokens = _tokens_of(example, tokenizer)("")
    return tokens if max_tokens is None else _keep_end(tokens, max_tokens, tokenizer)


def _tokens_of(example: Example, tokenizer: Any) -> Callable[[str], list[int]]:
    """From a candidate, or nothing, to the tokens of prompt and candidate."""
    if not example.messages:
        return lambda candidate: list(tokenizer.encode(example.prompt + candidate))
    if not getattr(tokenizer, "has_chat_template", False):
        raise DataError(
            "the prompts are conversations, and this model has no chat template",
            "use a model that was tuned to converse, or --prompt-style plain and rows that are no conversations",
        )
    messages = [{"role": message.role, "content": message.content} for message in example.messages]

    def written(answer: str) -> str:
        turns = [*messages, {"role": "assistant", "content": answer}] if answer else messages
        # What is asked for is an answer, not the thoughts that some templates leave room for.
        return tokenizer.apply_chat_template(
            turns, add_generation_prompt=not answer, tokenize=False, enable_thinking=False
        )

    def tokens(candidate: str) -> list[int]:
        if candidate and len(example.candidates) > 1:
            # Which of several it is shows before the turn ends: its end is not scored.
            text = written(_ANSWER).partition(_ANSWER)[0] + candidate
        else:
            text = written(candidate)
        # The template writes the special tokens itself.
        return list(tokenizer.encode(text, add_special_tokens=False))

    return tokens


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        count += 1
    return count


def _keep_end(context: list[int], room: int, tokenizer: Tokenizer) -> list[int]:
    if len(context) <= room:
        return context
    # A leading beginning-of-sequence token is part of how the model reads any text: it stays.
    bos = getattr(tokenizer, "bos_token_id", None)
    if bos is not None and context[0] == bos and room > 1:
        return [bos, *context[len(context) - room + 1 :]]
    return context[len(context) - room :]


def make_batch(examples: Sequence[EncodedExample], shapes: Shapes) -> Batch:
    """Cuts examples into micro-batches."""
    places = cut(examples, shapes)
    parts = tuple(_collate([examples[i] for i in part], shapes.padded(examples[part[0]])) for part in places)
    return Batch(parts, places, tuple(examples))


def cut(examples: Sequence[Size], shapes: Shapes) -> tuple[tuple[int, ...], ...]:
    """Which examples, by number, go into each micro-batch: those of the shortest length first."""
    # Examples that are scored alike stay together: candidates read at one place, several candidates, a completion.
    groups: dict[tuple[int, bool, bool], list[int]] = {}
    for i, example in enumerate(examples):
        key = (shapes.padded(example), example.shared, example.candidates == 1)
        groups.setdefault(key, []).append(i)
    places: list[tuple[int, ...]] = []
    for (length, _, _), members in sorted(groups.items()):
        limit = shapes.most_rows(length)
        part: list[int] = []
        rows = 0
        for i in members:
            if part and rows + examples[i].row_count > limit:
                places.append(tuple(part))
                part, rows = [], 0
            part.append(i)
            rows += examples[i].row_count
        places.append(tuple(part))
    return tuple(places)


def _collate(examples: Sequence[EncodedExample], length: int) -> MicroBatch:
    """Pads examples to one length, in their given order."""
    row_tokens: list[tuple[int, ...]] = []
    positions: list[int] = []
    entries: list[list[tuple[int, int]]] = []
    candidates: list[list[int]] = []
    for example in examples:
        # For each row, which of `positions` its token 0 would be.
        zeros: list[int] = []
        for row in example.rows:
            zeros.append(len(positions) - row.first_position)
            base = len(row_tokens) * length
            positions += range(base + row.first_position, base + len(row.tokens))
            row_tokens.append(row.tokens)
        candidates.append(list(range(len(entries), len(entries) + example.candidates)))
        for (row, start), scored in zip(example.starts, example.targets, strict=True):
            entries.append([(zeros[row] + start + i, token) for i, token in enumerate(scored)])

    tokens = np.zeros((len(row_tokens), length), np.int32)
    for i, row in enumerate(row_tokens):
        tokens[i, : len(row)] = row
    entry_length = max(len(e) for e in entries)
    entry_position, entry_target = (np.zeros((len(entries), entry_length), np.int32) for _ in range(2))
    entry_mask = np.zeros((len(entries), entry_length), np.float32)
    for k, entry in enumerate(entries):
        entry_position[k, : len(entry)] = [position for position, _ in entry]
        entry_target[k, : len(entry)] = [token for _, token in entry]
        entry_mask[k, : len(entry)] = 1.0
    width = max(len(c) for c in candidates)
    candidate = np.zeros((len(examples), width), np.int32)
    candidate_mask = np.zeros((len(examples), width), bool)
    for b, indices in enumerate(candidates):
        candidate[b, : len(indices)] = indices
        candidate_mask[b, : len(indices)] = True
    return MicroBatch(
        tokens=tokens,
        positions=np.array(positions, np.int32),
        entry_position=entry_position,
        entry_target=entry_target,
        entry_mask=entry_mask,
        candidate=candidate,
        candidate_mask=candidate_mask,
        target=np.array([e.target for e in examples], np.int32),
        shared=all(e.shared for e in examples),
        rows=tuple(row_tokens),
        firsts=tuple(row.first_position for example in examples for row in example.rows),
    )


@lru_cache(maxsize=4)
def _epoch_order(count: int, seed: int, epoch: int) -> tuple[int, ...]:
    return tuple(stable_permutation(count, "order", seed, epoch))


def batch_indices(count: int, batch_size: int, seed: int, step: int) -> list[int]:
    """The examples of one step (from 0): a function of its arguments alone, so any step can be found again.

    Examples are drawn without replacement within an epoch; a batch may straddle two epochs.
    """
    first = step * batch_size
    return [_epoch_order(count, seed, i // count)[i % count] for i in range(first, first + batch_size)]


def by_length(
    examples: Sequence[EncodedExample], rows: int, make: Callable[[Sequence[EncodedExample]], Batch]
) -> Iterator[tuple[list[int], Batch]]:
    """All examples once, in batches of similar length, each with its example numbers.

    Args:
        rows: most of a batch, whose examples stay whole.
        make: cuts the examples of a batch into micro-batches, when its turn has come.
    """
    order = sorted(range(len(examples)), key=lambda i: (examples[i].length, i))
    while order:
        count = within(rows, (examples[i] for i in order))
        indices, order = order[:count], order[count:]
        yield indices, make([examples[i] for i in indices])


def within(rows: int, examples: Iterable[Size]) -> int:
    """How many of the first examples have at most so many rows together; one at least."""
    together = accumulate(example.row_count for example in examples)
    return max(1, sum(1 for _ in takewhile(lambda count: count <= rows, together)))
