"""Own data: the rows decide what task they are, and rows of another form are named by line."""

import json
import unicodedata

import pytest

from mlxzo.core.config import RunConfig
from mlxzo.core.errors import ConfigError, DataError
from mlxzo.tasks.registry import get_task, load_task


def load(path, train, validation=None, task="custom"):
    path.mkdir(exist_ok=True)
    for name, rows in (("train", train), ("validation", validation or train)):
        lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
        (path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return load_task(RunConfig(task=task, data=str(path), train_examples=None))


def problems(path, train, validation=None):
    with pytest.raises(DataError) as caught:
        load(path, train, validation or train[:1])
    return caught.value.details or [caught.value.message.split(".jsonl")[1].lstrip(",: ")]


def labelled(*labels):
    return [{"text": f"text {i}", "label": label} for i, label in enumerate(labels)]


def test_labels_are_inferred_from_the_training_rows_and_sorted(tmp_path):
    data = load(tmp_path, labelled("spam", "ham", "spam", " eggs "))
    assert data.task.labels == ("eggs", "ham", "spam")
    assert data.task.metric == "accuracy"
    assert {example.candidates for example in data.train} == {(" eggs", " ham", " spam")}
    answers = {example.prompt: example.candidates[example.target] for example in data.train}
    assert answers["text 1\nAnswer:"] == " ham"
    assert answers["text 3\nAnswer:"] == " eggs"


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ((0, 1, 2), ("0", "1", "2")),
        ((True, False), ("false", "true")),
        ((1, "1", "x"), ("1", "x")),
        ((1.0, "2.0", 1), ("1", "2")),
    ],
)
def test_numbers_and_truth_values_are_labels_as_json_spells_them(tmp_path, labels, words):
    assert load(tmp_path, labelled(*labels)).task.labels == words


def test_labels_of_the_same_characters_are_one_however_they_are_composed(tmp_path):
    names = [unicodedata.normalize(form, "fâché") for form in ("NFC", "NFD")]
    data = load(tmp_path / "own", labelled(names[0], "content", names[1]), labelled(names[1]))
    assert data.task.labels == ("content", names[0])
    task = tmp_path / "moods.yaml"
    task.write_text(f"name: moods\ntemplate: '{{größe}}'\nlabels: {{{names[1]}: {names[1]}, b: c}}\n", encoding="utf-8")
    field = unicodedata.normalize("NFD", "größe")
    rows = [{field: "t", "label": name} for name in (*names, "b")]
    assert [example.gold for example in load(tmp_path / "yaml", rows, rows[:2], str(task)).validation] == [
        (" fâché",)
    ] * 2


def test_completions_are_read_from_prompt_and_completion(tmp_path):
    rows = [
        {"prompt": "Capital of France:", "completion": "Paris"},
        {"prompt": "Q: 2+2\nA: ", "completion": "4\n"},
        {"prompt": "Say it:\n", "completion": "it"},
    ]
    data = load(tmp_path, rows)
    assert data.task.metric == "loss"
    assert data.task.labels == ()
    found = {(example.prompt, *example.candidates) for example in data.train}
    assert found == {("Capital of France:", " Paris"), ("Q: 2+2\nA:", " 4\n"), ("Say it:\n", "it")}
    assert {example.target for example in data.train} == {0}


def test_rows_of_the_other_form_are_named_by_line(tmp_path):
    rows = [*labelled("a", "b"), {"prompt": "p", "completion": "c"}, *labelled("a"), {"prompt": "p", "completion": "c"}]
    sentence = "has prompt and completion, where the training file began with text and label"
    assert problems(tmp_path, rows) == [f"lines 3, 5: {sentence}"]
    assert problems(tmp_path, labelled("a", "b"), rows[2:3]) == [f"line 1: {sentence}"]
    assert problems(tmp_path, rows[2:3], labelled("a")) == [
        "line 1: has text and label, where the training file began with prompt and completion"
    ]


def test_a_row_with_two_forms_is_named_whichever_form_the_file_has(tmp_path):
    both = {"text": "t", "label": "a", "prompt": "p", "completion": "c"}
    assert problems(tmp_path, [*labelled("a", "b"), both])[0].startswith("line 3: has the fields of two forms")
    (problem,) = problems(tmp_path, [both], [{"label": "alone"}])[:1]
    assert problem.startswith("train.jsonl, line 1: needs text and label, prompt and completion,")


def test_rows_of_no_form_are_named_with_what_they_hold(tmp_path):
    rows = [{"completion": "alone"}, {"label": "alone"}]
    needs = "needs text and label, prompt and completion, messages, text alone or prompt alone"
    assert problems(tmp_path, rows, [{"other": 1}]) == [
        f"train.jsonl, line 1: {needs}; found completion",
        f"train.jsonl, line 2: {needs}; found label",
        f"validation.jsonl, line 1: {needs}; found other",
    ]
    with pytest.raises(DataError) as caught:
        load(tmp_path, [{"conversations": []}])
    assert caught.value.fix == "name the fields of every row so, or name yours in a task YAML (docs/data.md)"


def message(role, content):
    return {"role": role, "content": content}


CHAT = {"messages": [message("system", "Be kind."), message("user", "Hello?"), message("assistant", "Hello!")]}


def test_of_a_conversation_the_last_message_is_learned(tmp_path):
    (example,) = load(tmp_path, [CHAT]).train
    assert [(turn.role, turn.content) for turn in example.messages] == [("system", "Be kind."), ("user", "Hello?")]
    assert example.candidates == ("Hello!",)
    assert load(tmp_path, [CHAT]).task.metric == "loss"


CALL = {"type": "function", "function": {"name": "hours", "arguments": '{"branch": "7"}'}}
TOOLS = [{"type": "function", "function": {"name": "hours", "parameters": {}}}]


def test_conversations_hold_what_those_of_mlx_lm_do(tmp_path):
    parts = [{"type": "text", "text": "When does "}, {"type": "text", "text": "it open?"}]
    asked = [message("system", ""), message("user", parts)]
    call = {"role": "assistant", "content": None, "tool_calls": [CALL], "name": None}
    told = {"role": "tool", "content": "", "tool_call_id": "c0"}
    rows = [
        {"messages": [*asked, call], "tools": TOOLS},
        {"messages": [*asked, call, told, message("assistant", "At 9.")]},
    ]
    one, two = load(tmp_path / "a", rows, rows).validation
    one, two = sorted((one, two), key=lambda example: len(example.messages))
    assert [turn.to_dict() for turn in one.messages] == [message("system", ""), message("user", "When does it open?")]
    calls = [{"type": "function", "function": {"name": "hours", "arguments": {"branch": "7"}}}]
    assert one.reply.to_dict() == {"role": "assistant", "content": "", "tool_calls": calls}
    assert list(one.tools) == TOOLS and json.loads(one.candidates[0]) == calls
    assert two.messages[2].to_dict() == one.reply.to_dict() and two.messages[3].to_dict() == told
    assert two.candidates == ("At 9.",) and two.reply is None
    other = [{**rows[0], "tools": json.dumps(TOOLS * 2)}, rows[1]]
    assert load(tmp_path / "a", rows).sha256 != load(tmp_path / "b", other).sha256


def test_the_conversation_is_part_of_the_data_s_hash(tmp_path):
    other = {"messages": [message("user", "Be kind.\nuser: Hello?"), message("assistant", "Hello!")]}
    assert load(tmp_path / "a", [CHAT]).sha256 != load(tmp_path / "b", [other]).sha256


def test_a_text_is_learned_whole(tmp_path):
    data = load(tmp_path, [{"text": "Once upon a time."}, {"text": "The end."}])
    assert {(example.prompt, example.candidates) for example in data.train} == {
        ("", ("Once upon a time.",)),
        ("", ("The end.",)),
    }


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ("hello", "'messages' must be a list, not text"),
        ([message("user", "a")], "'messages' must end with a message of the assistant that answers another"),
        (
            [message("user", [{"type": "image_url", "image_url": {}}]), message("assistant", "a")],
            "message 1: 'content' has a part that is no text but 'image_url', and a model is trained on text alone",
        ),
        ([message("user", ""), message("assistant", "a")], "message 1: 'content' is empty"),
        (
            [
                message("user", "a"),
                {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
            ],
            "message 2: the arguments of a tool call are no valid JSON: '{'",
        ),
        (
            [message("user", "a"), {"role": "assistant", "tool_calls": "f()"}],
            "message 2: 'tool_calls' must be a list of objects",
        ),
        ([message("assistant", "a")], "'messages' must end with a message of the assistant that answers another"),
        (
            [message("user", "a"), message("robot", "b")],
            "message 2: the role 'robot' is not system, user, assistant or tool",
        ),
        ([message("user", None), message("assistant", "b")], "message 1: 'content' must be text, not null"),
        (["a", message("assistant", "b")], "message 1: it must be an object, not text"),
    ],
)
def test_a_bad_conversation_is_named(tmp_path, messages, sentence):
    assert problems(tmp_path, [CHAT, {"messages": messages}]) == [f"line 2: {sentence}"]


def test_mixed_formats_are_named_by_line(tmp_path):
    rows = [{"text": "a"}, CHAT, {"text": "b", "label": "x"}, {"prompt": "p", "completion": "c"}]
    began = "where the training file began with text"
    assert problems(tmp_path, rows) == [
        f"line 2: has messages, {began}",
        f"line 3: has text and label, {began}",
        f"line 4: has prompt and completion, {began}",
    ]


BAD_ROWS = [
    ({"text": "t", "label": "c"}, "the label 'c' is not a or b"),
    ({"text": "t", "label": None}, "'label' must be text, not null"),
    ({"text": "t", "label": 0.5}, "'label' must be text, not a number"),
    ({"text": "t", "label": ["a"]}, "'label' must be text, not a list"),
    ({"text": "t", "label": " "}, "'label' is empty"),
    ({"text": "", "label": "a"}, "'text' is empty"),
    ({"text": "t"}, "the field 'label' is missing; found text"),
]


@pytest.mark.parametrize(("row", "sentence"), BAD_ROWS, ids=[case[1] for case in BAD_ROWS])
def test_bad_rows_are_named_in_validation(tmp_path, row, sentence):
    assert problems(tmp_path, labelled("a", "b"), [*labelled("a", "b"), row]) == [f"line 3: {sentence}"]


@pytest.mark.parametrize(
    "row", [{"prompt": "p", "completion": ""}, {"prompt": " ", "completion": "c"}, {"prompt": "p"}]
)
def test_bad_completions_are_named(tmp_path, row):
    assert problems(tmp_path, [{"prompt": "p", "completion": "c"}, row])[0].startswith("line 2: ")


def test_bad_training_rows_come_before_doubts_about_the_labels(tmp_path):
    assert problems(tmp_path, [*labelled("a"), {"text": "t", "label": None}])[0].startswith("line 2: 'label' must be")
    assert problems(tmp_path, [*labelled("a"), "{"])[0].startswith("line 2: not valid JSON")


def test_one_label_and_a_label_for_every_row_are_no_classification(tmp_path):
    assert "every row has the label 'a'" in problems(tmp_path, labelled("a", "a"))[0]
    assert "30 different labels in 30 rows" in problems(tmp_path, labelled(*(f"l{i}" for i in range(30))))[0]


def test_own_data_needs_a_folder():
    with pytest.raises(ConfigError) as caught:
        load_task(RunConfig(task="custom"))
    assert "--data DIR" in caught.value.fix
    assert get_task("custom").example_prompt() == "<text>\nAnswer:"


def test_labels_that_differ_by_capitals_alone_are_told():
    rows = [{"text": "a", "label": label} for label in ("Billing ", "billing", "billing", "other")]
    remarks = get_task("custom").for_rows(rows).remarks(rows)
    assert remarks[1:] == ["the labels 'Billing' and 'billing' differ by capitals alone, and are two"]
