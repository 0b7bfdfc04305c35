"""Encoding of examples: the sequences the model reads for an example, and the tokens scored in them.

A classification example is scored by the mean log-likelihood of each candidate's tokens after the prompt (Malladi et
al. 2023, Appendix E.2). The model reads the prompt with all but the last token of a candidate. A sequence that begins
another is not read again: one-token candidates are scored on the prompt of any other candidate, and where all are one
token, they are scored at one position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

from ..core.errors import DataError
from ..core.formatting import shown
from ..tasks.base import Example, Message, Origin
from ..tasks.row_problems import bad_rows

# A placeholder for the answer in a chat template; no template contains it.
_ANSWER = "[[the answer]]"


class Tokenizer(Protocol):
    """Of mlx-lm's wrapper what encoding uses. `eos_token_ids` end a text; a model may have several, or none."""

    eos_token_id: int | None
    eos_token_ids: set[int]

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...


@dataclass(frozen=True)
class Row:
    """One sequence the model reads; next tokens may be scored from `first_position` to its end."""

    tokens: tuple[int, ...]
    first_position: int


@dataclass(frozen=True)
class EncodedExample:
    """Tokens of one example.

    Attributes:
        rows: sequences, none of which is a prefix of another.
        starts: for each candidate the index of the row it is scored in, and the position in that row that precedes its
            first token.
        targets: the scored tokens of each candidate.
        target: index of the right candidate.
        truncated: some of its tokens were cut.
        source: the example it encodes; None for one made of tokens.
    """

    rows: tuple[Row, ...]
    starts: tuple[tuple[int, int], ...]
    targets: tuple[tuple[int, ...], ...]
    target: int
    truncated: bool
    source: Example | None = None

    @property
    def shared(self) -> bool:
        """True for several candidates of one token each, scored at one position."""
        one_place = len(set(self.starts)) == 1 and max(map(len, self.targets)) == 1
        return one_place and self.candidates > 1

    @property
    def length(self) -> int:
        return max(len(row.tokens) for row in self.rows)

    @property
    def tokens(self) -> Iterator[int]:
        """Every token that the model reads or scores."""
        return chain.from_iterable((*(row.tokens for row in self.rows), *self.targets))

    @property
    def row_count(self) -> int:
        return len(self.rows)

    @property
    def candidates(self) -> int:
        return len(self.targets)

    @property
    def scored(self) -> int:
        """Number of scored positions, in all rows."""
        return sum(len(row.tokens) - row.first_position for row in self.rows)

    @property
    def written(self) -> bool:
        """True if an evaluation generates an answer."""
        return self.source is not None and self.source.written

    def expected_after(self, prompt: tuple[int, ...]) -> tuple[int, ...]:
        """The tokens of the only candidate where its context is `prompt`; else an empty tuple."""
        context = self.rows[0].tokens[: self.rows[0].first_position + 1]
        return self.targets[0] if self.candidates == 1 and context == prompt else ()


def encode(example: Example, tokenizer: Tokenizer, max_tokens: int) -> EncodedExample:
    """Tokenises an example. A sequence longer than `max_tokens` loses the beginning of its prompt; a text without a
    prompt loses its end.

    A candidate is tokenised together with its prompt, as the model would read it; where joining changes the last
    tokens of the prompt, the scored part starts at the first token that differs. The first token of a text without a
    prompt has no context, so it is not scored. An end token is appended where the text ends and has none, so that a
    model that has learned it stops there.

    Raises:
        DataError: a candidate adds no token, or leaves no room for the prompt within `max_tokens`; or the example is a
            conversation and the model has no chat template.
    """
    tokens = _tokens_of(example, tokenizer)
    prompt = tokens("")
    if not example.candidates:
        return _prompt_alone(example, prompt, tokenizer, max_tokens)
    if example.target is None:
        raise DataError("an example has no label", "only labelled examples can be trained on or evaluated")
    split, whole_text = [], not example.prompt and len(example.candidates) == 1
    for candidate in example.candidates:
        joined = tokens(candidate)
        start = common_prefix(prompt, joined)
        if whole_text:
            start = max(1, start)
        scored = joined[start:]
        # The end token is what a text of one token has to be scored.
        if scored or whole_text:
            scored = _ended(scored, example, tokenizer)
        if not scored:
            raise DataError(
                f"the candidate {shown(candidate)} adds no token to its prompt",
                "change the label word, or leave the row out",
            )
        if start == 0:
            raise DataError("the prompt is empty", "give every example some text before its answer")
        split.append((joined[:start], scored))
    cut_texts = whole_text and any(len(context) + len(scored) > max_tokens + 1 for context, scored in split)
    if cut_texts:
        split = [(context, scored[: max_tokens + 1 - len(context)]) for context, scored in split]
    # The last scored token is never an input, so a row is the prompt and all but one token of the candidate.
    longest = max(len(scored) for _, scored in split)
    room = max_tokens - longest + 1
    if room < 1:
        raise DataError(
            f"the answer has {longest} tokens, which is longer than max_tokens ({max_tokens})",
            "raise --max-tokens, as far as the model's context allows, or shorten the answers",
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


def _prompt_alone(example: Example, prompt: list[int], tokenizer: Tokenizer, max_tokens: int) -> EncodedExample:
    """A prompt whose answer is not known. In the place of a candidate it has a token that is never scored."""
    if not prompt:
        raise DataError("the prompt is empty", "give every example some text before its answer")
    row = Row(tuple(_keep_end(prompt, max_tokens, tokenizer)), min(len(prompt), max_tokens) - 1)
    return EncodedExample(
        rows=(row,),
        starts=((0, row.first_position),),
        targets=(row.tokens[-1:],),
        target=0,
        truncated=len(prompt) > max_tokens,
        source=example,
    )


def encode_all(
    splits: Mapping[str, Sequence[Example]], tokenizer: Tokenizer, max_tokens: int
) -> dict[str, list[EncodedExample]]:
    """Tokenises the examples of all splits.

    Raises:
        DataError: rows cannot be encoded; every one of them is named.
    """
    problems: list[tuple[Origin, str]] = []
    fixes: list[str] = []
    encoded: dict[str, list[EncodedExample]] = {split: [] for split in splits}
    for split, examples in splits.items():
        for example in examples:
            try:
                encoded[split].append(encode(example, tokenizer, max_tokens))
            except DataError as error:
                if example.origin is None:
                    raise
                problems.append((example.origin, error.message))
                fixes.append(error.fix)
    if problems:
        raise bad_rows(problems, "; ".join(dict.fromkeys(fixes)))
    return encoded


def _ended(scored: list[int], example: Example, tokenizer: Tokenizer) -> list[int]:
    """The scored tokens, with an end token if the text ends with them and has none."""
    ends = tokenizer.eos_token_ids
    # A template may write a newline behind the end token of a turn; in a text an end token may divide two documents.
    ended = not ends.isdisjoint(scored if example.messages else scored[-1:])
    if ended or not ends or not example.ends_text:
        return scored
    own = tokenizer.eos_token_id
    return [*scored, min(ends) if own is None else own]


def _rows(asked: Sequence[Row]) -> tuple[tuple[Row, ...], tuple[tuple[int, int], ...]]:
    """The `rows` and `starts` of an `EncodedExample`.

    Args:
        asked: the row that would score each candidate by itself.
    """
    sequences = [row.tokens for row in asked]
    # For each sequence the longest that begins with it: that one is no prefix of another.
    holders = [max((s for s in sequences if s[: len(own)] == own), key=len) for own in sequences]
    read = list(dict.fromkeys(holders))
    starts = tuple((read.index(holder), row.first_position) for holder, row in zip(holders, asked, strict=True))
    firsts = [min(first for row, first in starts if row == number) for number in range(len(read))]
    return tuple(map(Row, read, firsts)), starts


def encode_prompt(example: Example, tokenizer: Tokenizer, max_tokens: int | None = None) -> list[int]:
    """The tokens of an example's prompt alone, as read before generating; one longer than `max_tokens` loses its
    beginning."""
    tokens = _tokens_of(example, tokenizer)("")
    return tokens if max_tokens is None else _keep_end(tokens, max_tokens, tokenizer)


def _tokens_of(example: Example, tokenizer: Any) -> Callable[[str], list[int]]:
    """A function from a candidate, or an empty text, to the tokens of prompt and candidate."""
    if not example.messages:
        return lambda candidate: _plain_tokens(tokenizer, example.prompt + candidate)
    if not getattr(tokenizer, "has_chat_template", False):
        raise DataError(
            "the prompts are conversations, and this model has no chat template",
            "use an instruction-tuned model, or --prompt-style plain and rows that are no conversations",
        )
    template = _Template(tokenizer, example)
    template.check_tools()

    def tokens(candidate: str) -> list[int]:
        if candidate and len(example.candidates) > 1:
            # The end of the turn does not distinguish candidates: it is not scored.
            text = template(_ANSWER).partition(_ANSWER)[0] + candidate
        else:
            text = template(candidate)
        # The template writes the special tokens itself.
        return list(tokenizer.encode(text, add_special_tokens=False))

    return tokens


def _plain_tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a text, without the end token that some tokenizers put behind every text, a prompt included."""
    tokens, ends = list(tokenizer.encode(text)), tokenizer.eos_token_ids
    if tokens[-1:] and tokens[-1] in ends and tokenizer.encode("a")[-1] in ends:
        tokens.pop()
    return tokens


class _Template:
    """The model's chat template, applied to the conversation of one example."""

    def __init__(self, tokenizer: Any, example: Example):
        self._tokenizer, self._example = tokenizer, example

    def __call__(self, answer: str) -> str:
        """The conversation with an answer; without one, up to where the assistant's begins.

        Raises:
            DataError: the template refuses the conversation; the message has its own words.
        """
        messages = self._messages(answer)
        try:
            return self._write(messages, self._example.tools, answer)
        except (
            Exception
        ) as error:  # a template is a program, which raises whatever its author or a row happens to cause
            said = " ".join(str(error).split())[:200] or type(error).__name__
        others = [message for message in messages if message["role"] != "system"]
        if len(others) < len(messages) and self._written(others, self._example.tools, answer):
            raise DataError(
                f"the model's chat template takes no system message: {said}",
                "move the text of the system message into the user's first one, or use another model",
            )
        raise DataError(
            f"the model's chat template refuses the conversation: {said}",
            "change the conversation or leave it out, or use another model",
        )

    def check_tools(self) -> None:
        """Raises DataError if the template leaves out tools, or calls of them, without a word, as many do."""
        messages, tools = self._messages(_ANSWER), self._example.tools
        without_calls = [{name: message[name] for name in message if name != "tool_calls"} for message in messages]
        left_out = []
        if tools and self(_ANSWER) == self._written(messages, (), _ANSWER):
            left_out.append("`tools`")
        if messages != without_calls and self(_ANSWER) == self._written(without_calls, tools, _ANSWER):
            left_out.append("`tool_calls`")
        if left_out:
            raise DataError(
                f"the model's chat template leaves out {' and '.join(left_out)}",
                "use a model whose template knows tools, or take them out of the rows",
            )

    def _messages(self, answer: str) -> list[dict[str, Any]]:
        turns = [message.to_dict() for message in self._example.messages]
        reply = self._example.reply or Message("assistant", answer)
        return [*turns, reply.to_dict()] if answer else turns

    def _written(self, messages: Sequence[dict[str, Any]], tools: Sequence[Any], answer: str) -> str:
        """As `_write`; an empty text where the template refuses."""
        try:
            return self._write(messages, tools, answer)
        except Exception:
            return ""

    def _write(self, messages: Sequence[dict[str, Any]], tools: Sequence[Any], answer: str) -> str:
        # Some templates would open a section for thoughts; the answer alone is wanted.
        return self._tokenizer.apply_chat_template(
            messages,
            tools=list(tools) or None,
            add_generation_prompt=not answer,
            tokenize=False,
            enable_thinking=False,
        )


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix of two sequences."""
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        count += 1
    return count


def _keep_end(context: list[int], room: int, tokenizer: Tokenizer) -> list[int]:
    if len(context) <= room:
        return context
    # The model expects a beginning-of-sequence token before any text: it stays.
    bos = getattr(tokenizer, "bos_token_id", None)
    if bos is not None and context[0] == bos and room > 1:
        return [bos, *context[len(context) - room + 1 :]]
    return context[len(context) - room :]
