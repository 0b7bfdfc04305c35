"""Tokens of prompts and candidates, padding, and a data order without state."""

from __future__ import annotations

import json
from functools import lru_cache

import numpy as np
import pytest
import tokenizers

from mlxzo.core.errors import DataError
from mlxzo.engine.batching import Shapes, batch_indices, by_length, make_batch
from mlxzo.engine.encoding import EncodedExample, encode, encode_prompt
from mlxzo.models.loading import load_tokenizer
from mlxzo.models.resolve import resolve
from mlxzo.tasks.base import Example, Message
from mlxzo.tasks.chat import in_style
from mlxzo.tasks.custom import OwnChats
from mlxzo.tasks.registry import get_task, task_names
from tests.engine.examples import (
    BATCHES,
    TOKENIZER,
    completion_examples,
    several_token_examples,
    single_token_examples,
)
from tests.tiny import CHAT_TEMPLATE, tiny_folder


def test_single_token_candidates_share_one_row():
    encoded = encode(single_token_examples()[0], TOKENIZER, 64)
    assert encoded.shared
    assert len(encoded.rows) == 1
    assert list(encoded.rows[0].tokens) == TOKENIZER.encode("The old clock struck nine It was")
    assert encoded.rows[0].first_position == len(encoded.rows[0].tokens) - 1


def test_longer_candidates_have_rows_of_their_own_and_lose_only_the_last_token():
    example = Example("wet grass It was", (" terrible and empty", " a moving story"), 0)
    encoded = encode(example, TOKENIZER, 64)
    assert not encoded.shared
    for row, scored, candidate in zip(encoded.rows, encoded.targets, example.candidates, strict=True):
        assert [*row.tokens, scored[-1]] == TOKENIZER.encode(example.prompt + candidate)
        assert row.tokens[row.first_position + 1 :] == scored[:-1]


def test_what_another_candidate_s_sequence_begins_with_is_not_read_again():
    example = Example("wet grass It was", (" a moving story", "!", " a moving tale", ".", " a mov", " a"), 2)
    encoded = encode(example, TOKENIZER, 64)
    assert not encoded.shared and len(encoded.rows) == 2
    assert encoded.starts[1] == encoded.starts[3]
    for (number, start), scored, candidate in zip(encoded.starts, encoded.targets, example.candidates, strict=True):
        row = encoded.rows[number]
        assert [*row.tokens[: start + 1], *scored] == TOKENIZER.encode(example.prompt + candidate)
        # What is scored is what the row goes on with.
        assert row.tokens[start + 1 : start + len(scored)] == scored[:-1]
        assert row.first_position <= start and start + len(scored) <= len(row.tokens)
    assert encoded.scored == sum(len(row.tokens) - row.first_position for row in encoded.rows)


def test_a_lone_completion_is_never_shared_even_if_it_is_one_token():
    assert not encode(Example("one two", ("!",), 0), TOKENIZER, 64).shared


def test_tokens_that_change_when_joined_belong_to_the_candidate():
    # Joined, "gre" + "at" is tokenised as one word, unlike the prompt alone.
    example = Example("It was gre", ("at", "y"), 0)
    encoded = encode(example, TOKENIZER, 64)
    for number, (scored, candidate) in enumerate(zip(encoded.targets, example.candidates, strict=True)):
        assert [*context(encoded, number), *scored] == TOKENIZER.encode(example.prompt + candidate)


def context(encoded: EncodedExample, candidate: int) -> tuple[int, ...]:
    """What comes before a candidate where it is read."""
    row, start = encoded.starts[candidate]
    return encoded.rows[row].tokens[: start + 1]


def test_a_long_prompt_loses_its_beginning():
    example = Example("wet grass " * 50 + "It was", (" terrible", " great"), 1)
    encoded = encode(example, TOKENIZER, 20)
    assert encoded.truncated
    assert all(len(row.tokens) <= 20 for row in encoded.rows)
    full = TOKENIZER.encode(example.prompt)
    kept = context(encoded, 0)
    assert list(kept) == full[-len(kept) :]


@pytest.mark.parametrize(
    ("example", "words"),
    [
        (Example("a prompt", ("",), 0), "adds no token"),
        (Example("", ("yes", "no"), 0), "prompt is empty"),
        (Example("a prompt", (" yes" * 40,), 0), "longer than max_tokens"),
        (Example("a prompt", (" yes", " no"), None), "no label"),
    ],
)
def test_examples_that_cannot_be_scored_are_refused(example, words):
    with pytest.raises(DataError, match=words):
        encode(example, TOKENIZER, 16)


@pytest.mark.parametrize("kind", BATCHES)
def test_every_scored_position_predicts_its_target(kind):
    for part in BATCHES[kind]().parts:
        rows, length = part.tokens.shape
        assert length % 8 == 0
        flat = part.tokens.reshape(-1)
        for entry in range(len(part.entry_mask)):
            places = part.positions[part.entry_position[entry]]
            scored = part.entry_mask[entry] > 0
            # Inside a candidate, the input after a scored position is the token scored there.
            inner = np.flatnonzero(scored)[:-1]
            assert np.array_equal(flat[places[inner] + 1], part.entry_target[entry][inner])
        assert len(part.rows) == rows


def encoded_examples() -> list:
    examples = several_token_examples() + single_token_examples() + completion_examples()
    return [encode(example, TOKENIZER, 64) for example in examples]


@pytest.mark.parametrize("shapes", [Shapes(), Shapes(16, 64), Shapes(8, 512, 2), Shapes(8, 8), Shapes(64, 4096)])
def test_micro_batches_hold_every_example_once_at_its_own_length_and_within_the_limits(shapes):
    examples = encoded_examples()
    batch = make_batch(examples, shapes)
    assert sorted(i for places in batch.places for i in places) == list(range(len(examples)))
    assert batch.size == len(examples)
    assert sum(len(part.rows) for part in batch.parts) == sum(len(e.rows) for e in examples)
    assert batch.token_count == sum(len(row.tokens) for e in examples for row in e.rows)
    assert batch.padded_token_count >= batch.token_count
    for part, places in zip(batch.parts, batch.places, strict=True):
        assert {shapes.padded(examples[i]) for i in places} == {part.tokens.shape[1]}
        assert list(part.target) == [examples[i].target for i in places]
        assert {examples[i].shared for i in places} == {part.shared}
        if len(places) > 1:
            assert part.tokens.size <= shapes.tokens
            assert shapes.rows is None or len(part.rows) <= shapes.rows


def test_an_epoch_sees_every_example_once_and_epochs_differ():
    count, size = 37, 5
    seen = [i for step in range(37) for i in batch_indices(count, size, 0, step)]
    epochs = [seen[start : start + count] for start in range(0, 5 * count, count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5


def test_any_step_can_be_asked_for_alone_and_the_seed_matters():
    assert batch_indices(100, 16, 3, 41) == batch_indices(100, 16, 3, 41)
    assert batch_indices(100, 16, 3, 41) != batch_indices(100, 16, 4, 41)


def test_a_batch_of_all_examples_has_one_order():
    assert batch_indices(10, 10, 0, 0) == batch_indices(10, 10, 5, 7) == list(range(10))
    # There are no more than all.
    assert batch_indices(10, 25, 0, 0) == list(range(10))


def test_micro_batches_joined_hold_the_same_candidates():
    words = ("!", ".", "?")
    examples = [Example(f"{'The old clock. ' * (1 + i % 4)}It was", words, i % 3) for i in range(12)]
    batch = make_batch([encode(example, TOKENIZER, 64) for example in examples], Shapes(rows=2))
    joined = batch.joined
    assert len(batch.parts) > 4 and batch.joined is joined
    tokens = np.concatenate([part.tokens.reshape(-1)[part.positions] for part in batch.parts])
    seen = []
    for part in batch.parts:
        flat = part.tokens.reshape(-1)[part.positions]
        for row, target in zip(part.candidate, part.target, strict=True):
            seen.append((flat[part.entry_position[row]].tolist(), part.entry_target[row].tolist(), target))
    for (before, targets, target), row, ours in zip(seen, joined.candidate, joined.target, strict=True):
        assert tokens[joined.entry_position[row]].tolist() == before
        assert joined.entry_target[row].tolist() == targets and ours == target
    # Losses of candidates of several tokens, or of unequal number, are taken by micro-batch.
    assert make_batch([encode(e, TOKENIZER, 64) for e in several_token_examples()], Shapes()).joined is None
    assert batch.picked([1, 2]) is batch.picked((1, 2)) and batch.picked([2]).parts == batch.parts[2:3]


def test_by_length_covers_all_examples_once():
    encoded = [encode(example, TOKENIZER, 64) for example in 4 * several_token_examples()]
    parts = [part for part, _ in by_length(encoded, 5, lambda part: make_batch(part, Shapes()))]
    indices = [i for part in parts for i in part]
    # Each of them has two rows.
    assert [len(part) for part in parts] == 10 * [2]
    assert sorted(indices) == list(range(len(encoded)))
    lengths = [encoded[i].length for i in indices]
    assert lengths == sorted(lengths)


def chat_tokenizer(tmp_path):
    return load_tokenizer(tiny_folder(tmp_path))


def test_a_conversation_is_put_into_the_model_s_own_template_and_only_its_last_turn_is_scored(tmp_path):
    tokenizer = chat_tokenizer(tmp_path)
    turns = (Message("system", "Be good."), Message("user", "Is it true?"))
    encoded = encode(Example("as plain text", ("Yes.",), 0, messages=turns), tokenizer, 64)
    (row,), (scored,) = encoded.rows, encoded.targets
    before = "<|im_start|>system\nBe good.<|im_end|>\n<|im_start|>user\nIs it true?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(row.tokens[: row.first_position + 1]) == before
    assert tokenizer.decode(scored) == "Yes.<|im_end|>\n"
    assert encode_prompt(Example("p", ("Yes.",), 0, messages=turns), tokenizer, 64) == list(
        row.tokens[: row.first_position + 1]
    )


@pytest.mark.parametrize("candidates", [(" terrible", " great"), (" Yes.", " a moving story", " No")])
def test_in_chat_style_a_candidate_follows_what_asks_for_it_and_is_scored_without_the_end_of_its_turn(
    tmp_path, candidates
):
    tokenizer = chat_tokenizer(tmp_path)
    encoded = encode(in_style(Example("wet grass It was\n", candidates, 0), "chat"), tokenizer, 64)
    asked = "<|im_start|>user\nwet grass It was<|im_end|>\n<|im_start|>assistant\n"
    for number, (scored, candidate) in enumerate(zip(encoded.targets, candidates, strict=True)):
        assert tokenizer.decode(context(encoded, number)) == asked
        assert tokenizer.decode(scored) == candidate.strip()
        joined = tokenizer.encode(asked + candidate.strip(), add_special_tokens=False)
        assert [*context(encoded, number), *scored] == joined


def test_in_chat_style_an_answer_of_its_own_words_is_learned_with_the_end_of_its_turn(tmp_path):
    tokenizer = chat_tokenizer(tmp_path)
    example = in_style(Example("Question: how many?\nAnswer:", (" seven\n",), 0, answers=("seven", "7")), "chat")
    encoded = encode(example, tokenizer, 64)
    assert tokenizer.decode(encoded.targets[0]) == "seven<|im_end|>\n"
    # What is read to write is what is read to score.
    prompt = tuple(encode_prompt(example, tokenizer))
    assert encoded.expected_after(prompt) == encoded.targets[0]
    assert encoded.expected_after(prompt[1:]) == ()


def test_plain_style_conversations_and_texts_stay_as_they_are():
    question = Example("a prompt", (" yes", " no"), 0)
    conversation = Example("p", ("Yes.",), 0, messages=(Message("user", "Is it?"),))
    assert in_style(question, "plain") is question
    assert [in_style(each, "chat") for each in (conversation, Example("", ("text ",), 0))] == [
        conversation,
        Example("", ("text ",), 0),
    ]


def test_a_conversation_needs_a_chat_template():
    with pytest.raises(DataError, match="no chat template"):
        encode(Example("p", ("Yes.",), 0, messages=(Message("user", "Is it?"),)), TOKENIZER, 64)


def test_a_text_without_a_prompt_is_scored_from_its_second_token_and_loses_its_end():
    text = "The old clock in the hall struck nine, and the rain stopped at last."
    tokens = TOKENIZER.encode(text)
    encoded = encode(Example("", (text,), 0), TOKENIZER, 64)
    assert encoded.rows[0].tokens == tuple(tokens[:-1]) and encoded.rows[0].first_position == 0
    assert encoded.targets == (tuple(tokens[1:]),)
    cut = encode(Example("", (text,), 0), TOKENIZER, 8)
    assert cut.truncated and cut.rows[0].tokens == tuple(tokens[:8]) and cut.targets == (tuple(tokens[1:9]),)


@pytest.mark.parametrize(
    ("example", "ends"),
    [
        (Example("Is it true?", (" Yes.",), 0, ends_text=True), [2]),
        (Example("Is it true?", (" Yes.<|im_end|>",), 0, ends_text=True), [2]),
        (Example("", ("The rain stopped.",), 0, ends_text=True), [2]),
        (Example("", ("One.<|im_end|>Two.",), 0, ends_text=True), [2, 2]),
        (Example("", ("O",), 0, ends_text=True), [2]),
        (Example("Is it true?", (" Yes.",), 0), []),
        (Example("Is it true?", (" Yes.", " No."), 0), []),
    ],
    ids=[
        "completion",
        "completion that ends",
        "text",
        "two documents",
        "one token",
        "the right choice alone",
        "choices",
    ],
)
def test_a_text_that_is_learned_ends_in_one_end_token(example, ends):
    encoded = encode(example, TOKENIZER, 64)
    assert [token for token in encoded.targets[0] if token == 2] == ends
    assert not ends or encoded.targets[0][-1] == 2
    if len(example.candidates[0]) > 1 and not example.prompt:
        cut = encode(example, TOKENIZER, 3)
        assert cut.truncated and cut.targets[0][-1] != 2


def test_an_end_token_that_the_tokenizer_adds_is_no_part_of_a_prompt(tmp_path):
    folder = tiny_folder(tmp_path)
    own = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    around = {
        "single": ["<|im_start|>", "$A", "<|im_end|>"],
        "special_tokens": [("<|im_start|>", 1), ("<|im_end|>", 2)],
    }
    own.post_processor = tokenizers.processors.TemplateProcessing(pair=None, **around)
    own.save(str(folder / "tokenizer.json"))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("Is it true?")[-1] == 2
    prompt = encode_prompt(Example("Is it true?", (" Yes.",), 0), tokenizer)
    assert prompt[0] == 1 and prompt[-1] != 2
    for ends, learned in ((False, " Yes."), (True, " Yes.<|im_end|>")):
        encoded = encode(Example("Is it true?", (" Yes.",), 0, ends_text=ends), tokenizer, 64)
        assert tokenizer.decode(encoded.targets[0]) == learned and context(encoded, 0) == tuple(prompt)


@pytest.mark.parametrize("end", ["<|im_end|>\n", "\n"], ids=["template ends turns", "template ends none"])
def test_a_conversation_ends_in_the_end_token_of_its_template_or_in_one_behind_it(tmp_path, end):
    folder = tiny_folder(tmp_path)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"chat_template": settings["chat_template"].replace("<|im_end|>\n", end)}))
    turns = (Message("user", "Is it true?"),)
    tokenizer = load_tokenizer(folder)
    encoded = encode(Example("p", ("Yes.",), 0, messages=turns, ends_text=True), tokenizer, 64)
    assert tokenizer.decode(encoded.targets[0]) == {"\n": "Yes.\n<|im_end|>"}.get(end, "Yes.<|im_end|>\n")


def test_calls_of_tools_are_learned_through_the_template_or_refused(tmp_path):
    folder = tiny_folder(tmp_path)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    calls = "{% for c in m.tool_calls or [] %}({{ c.function.name }} {{ c.function.arguments.branch }}){% endfor %}"
    template = (
        "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}"
        "{% for m in messages %}{{ m.role }}: {{ m.content }}"
        + calls
        + "<|im_end|>{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    path.write_text(json.dumps(settings | {"chat_template": template}))
    call = {"function": {"name": "hours", "arguments": '{"branch": 7}'}}
    turns = [{"role": "user", "content": "When?"}, {"role": "assistant", "tool_calls": [call]}]
    row = {"messages": turns, "tools": [{"function": {"name": "hours"}}]}
    example, tokenizer = OwnChats().example_from_row(row), load_tokenizer(folder)
    encoded = encode(example, tokenizer, 64)
    assert tokenizer.decode(context(encoded, 0)) == "[hours]user: When?<|im_end|>assistant: "
    assert tokenizer.decode(encoded.targets[0]) == "(hours 7)<|im_end|>"
    for lacking, left_out in (
        (template.replace(calls, ""), "`tool_calls`"),
        (CHAT_TEMPLATE, "`tools` and `tool_calls`"),
    ):
        path.write_text(json.dumps(settings | {"chat_template": lacking}))
        with pytest.raises(DataError, match=f"the model's chat template leaves out {left_out}"):
            encode(example, load_tokenizer(folder), 64)


def test_a_prompt_alone_is_what_comes_before_a_candidate_and_loses_its_beginning():
    example = Example("wet grass " * 50 + "It was", (" terrible",), 0)
    full = TOKENIZER.encode(example.prompt)
    assert encode_prompt(example, TOKENIZER, 10_000) == full
    assert encode_prompt(example, TOKENIZER, 20) == full[-20:]


@lru_cache
def real_tokenizer(model):
    return load_tokenizer(resolve(model))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["smollm2-135m", "gemma-3-270m"])
@pytest.mark.parametrize("name", [name for name in task_names() if get_task(name).sample_row])
def test_on_real_tokenizers_a_candidate_begins_where_its_prompt_ends(model, name):
    tokenizer, task = real_tokenizer(model), get_task(name)
    example = task.example_from_row(task.sample_row)
    prompt = tokenizer.encode(example.prompt)
    for candidate in example.candidates:
        joined = tokenizer.encode(example.prompt + candidate)
        # The prompt is split as it would be alone, so what is scored is the candidate and all of it.
        assert joined[: len(prompt)] == prompt
        assert tokenizer.decode(joined[len(prompt) :]).strip() == candidate.strip()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in task_names() if get_task(name).sample_row])
def test_in_a_real_chat_template_a_candidate_begins_where_the_assistant_is_asked(name):
    tokenizer, task = real_tokenizer("smollm2-135m"), get_task(name)
    example = in_style(task.example_from_row(task.sample_row), "chat")
    encoded, prompt = encode(example, tokenizer, 512), tuple(encode_prompt(example, tokenizer))
    assert tokenizer.decode(prompt).endswith("<|im_start|>assistant\n")
    for number, (scored, candidate) in enumerate(zip(encoded.targets, example.candidates, strict=True)):
        assert context(encoded, number) == prompt
        assert tokenizer.decode(scored).removesuffix("<|im_end|>\n") == candidate
