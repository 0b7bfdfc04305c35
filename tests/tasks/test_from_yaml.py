"""A task in a YAML file: read as text, every problem listed at once, nothing executed."""

import json

import pytest

from mlxzo.core.config import RunConfig
from mlxzo.core.errors import ConfigError, DataError
from mlxzo.tasks.registry import get_task, load_task

TICKETS = """\
name: tickets
description: support tickets
template: |
  {subject}
  {body}
  Urgent?
labels: {high: yes, low: no}
label_field: priority
"""


def read(path, text):
    path = path / "task.yaml"
    path.write_text(text, encoding="utf-8")
    return get_task(str(path))


def problems(path, text):
    with pytest.raises(ConfigError) as caught:
        read(path, text)
    assert caught.value.exit_code == 2
    return caught.value.details or [caught.value.message.split("task.yaml")[1].lstrip(": ")]


def test_a_task_is_read_as_written(tmp_path):
    task = read(tmp_path, TICKETS)
    assert (task.name, task.description, task.metric) == ("tickets", "support tickets", "accuracy")
    assert task.labels == ("yes", "no")
    assert task.fields == ("subject", "body", "priority")
    example = task.example_from_row({"subject": "Help", "body": "It {burns}", "priority": "low"})
    assert example.prompt == "Help\nIt {burns}\nUrgent?"
    assert example.candidates == (" yes", " no")
    assert example.target == 1
    assert task.example_prompt() == "<subject>\n<body>\nUrgent?"


@pytest.mark.parametrize(
    ("labels", "label", "word"),
    [
        ("[yes, no]", "no", "no"),
        ("{0: bad, 1: good}", 0, "bad"),
        ("{true: Yes, false: No}", True, "Yes"),
        ("\n  - on\n  - off", "off", "off"),
        ("{a: ' x', b: y}", "a", "x"),
    ],
)
def test_labels_are_text_whatever_yaml_would_make_of_them(tmp_path, labels, label, word):
    task = read(tmp_path, f"name: t\ntemplate: '{{text}} ='\nlabels: {labels}\n")
    example = task.example_from_row({"text": "x", "label": label})
    assert example.candidates[example.target] == f" {word}"


@pytest.mark.parametrize(
    ("template", "prompt", "candidate"),
    [
        ('"{text}\\n"', "x\n", "a"),
        ('"{text}: "', "x:", " a"),
        ("|\n  {text}\n  >", "x\n>", " a"),
        ("'{{{text}}}'", "{x}", " a"),
    ],
)
def test_the_end_of_a_template_decides_the_join(tmp_path, template, prompt, candidate):
    task = read(tmp_path, f"name: t\nlabels: [a, b]\ntemplate: {template}\n")
    example = task.example_from_row({"text": "x", "label": "a"})
    assert (example.prompt, example.candidates[0]) == (prompt, candidate)


def test_a_task_loads_with_data_and_reports_bad_rows(tmp_path):
    path = tmp_path / "task.yaml"
    path.write_text(TICKETS, encoding="utf-8")
    row = {"subject": "s", "body": "b", "priority": "high"}
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    data = load_task(RunConfig(task=str(path), data=str(tmp_path)))
    assert len(data.train) == len(data.validation) == 1
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({**row, "priority": "mid"}))
    with pytest.raises(DataError, match="line 2: the priority 'mid' is not high or low"):
        load_task(RunConfig(task=str(path), data=str(tmp_path)))
    with pytest.raises(ConfigError, match="tickets has no data of its own"):
        load_task(RunConfig(task=str(path)))


REPLIES = 'name: replies\ntemplate: "Q: {question}\\nA:"\nanswer_field: reply\n'


@pytest.mark.parametrize("reply", ["42 ", ["42", "forty-two", "42"]])
def test_answers_may_be_the_model_s_own_words(tmp_path, reply):
    task = read(tmp_path, REPLIES)
    assert (task.metric, task.more_metrics, task.fields) == ("f1", ("exact_match",), ("question", "reply"))
    assert (task.labels, task.writes) == ((), True)
    example = task.example_from_row({"question": "6 x 7?", "reply": reply})
    assert (example.prompt, example.candidates) == ("Q: 6 x 7?\nA:", (" 42\n",))
    assert example.answers == (("42",) if isinstance(reply, str) else ("42", "forty-two"))


@pytest.mark.parametrize(
    ("reply", "words"),
    [("two\nlines", "several lines"), ([], "is empty"), (42, "must be text, not a number"), ([42], "must be text")],
)
def test_an_answer_that_cannot_be_written_is_refused(tmp_path, reply, words):
    with pytest.raises(ValueError, match=words):
        read(tmp_path, REPLIES).example_from_row({"question": "6 x 7?", "reply": reply})


def test_every_problem_is_listed_at_once(tmp_path):
    text = "name: a b\ntemplat: '{text}'\nlabels: [x]\nlabel_feild: y\ndescription: [1]\n"
    assert problems(tmp_path, text) == [
        "line 2: no such key 'templat'; did you mean template?",
        "line 4: no such key 'label_feild'; did you mean label_field?",
        "template is missing",
        "description must be text (line 5)",
        "labels: at least two are needed",
        "name: 'a b' must be 1-50 letters, digits, dots, dashes or underscores",
    ]


HEAD = "name: t\nlabels: [a, b]\n"
BAD_FILES = [
    (HEAD + "template: '{text.__class__}'", "template: {text.__class__} is not a plain field name"),
    (HEAD + "template: '{text'", "template: a single { at character 1 (write {{ for a brace)"),
    (HEAD + "template: 'no field'", "template: names no field; put one of your fields in braces, such as {text}"),
    (HEAD + "template: '{text} {label}'", "template: {label} is the label, which would give the answer away"),
    (HEAD + "template: ''", "template is empty (line 3)"),
    (HEAD + "template: {text}", "template must be text (line 3)"),
    (HEAD + "template: '{text}'\nname: u", "line 4: 'name' is given twice"),
    ("name: t\ntemplate: '{x}'\nlabels: {a: x, a: y, b: z}", "line 3: 'a' is given twice"),
    ("name: t\ntemplate: '{x}'\nlabels: {a: x, b: x}", "labels: 'x' is used twice"),
    ("name: t\ntemplate: '{x}'\nlabels: a", "labels must be a mapping of label to word, or a list of words"),
    ("name: t\ntemplate: '{x}'\nlabels: [a, [b]]", "labels: a word must be text (line 3)"),
    ("name: t\ntemplate: '{x}'\nlabels: &l [a, *l]", "stands for more than 100,000 values"),
    ("name: t\ntemplate: '{x}'", "labels are missing, or answer_field or reward where the model writes its answers"),
    (
        HEAD + "template: '{x}'\nanswer_field: y",
        "answer_field has the model write its answers, and labels has it choose: leave one out",
    ),
    (
        "name: t\ntemplate: '{x} {y}'\nanswer_field: y",
        "template: {y} is what is asked for, which would give the answer away",
    ),
    ("- name", "must hold `key: value` lines"),
    ("", "must hold `key: value` lines"),
    ("name: 'x", "is not valid YAML at line 1, column 9: found unexpected end of stream"),
    ("[" * 5000, "is nested too deeply"),
    ("#" * 70_000, "is larger than 64 KB"),
]


@pytest.mark.parametrize(("text", "sentence"), BAD_FILES, ids=[case[1][:40] for case in BAD_FILES])
def test_a_bad_file_is_explained(tmp_path, text, sentence):
    assert problems(tmp_path, text) == [sentence]


def test_nothing_in_the_file_is_executed(tmp_path):
    marker = tmp_path / "executed"
    text = HEAD + f"template: !!python/object/apply:os.mkdir ['{marker}']\n"
    assert problems(tmp_path, text) == ["template must be text (line 3)"]
    assert not marker.exists()


def test_a_missing_file_is_explained(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        get_task(str(tmp_path / "nowhere.yaml"))
