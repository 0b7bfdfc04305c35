"""Judges that need no code: what each gives for an answer, and what is wrong with a `reward` that cannot be read."""

import random
import re
from decimal import Decimal

import pytest

from mlxzo.core.errors import ConfigError, DataError
from mlxzo.tasks.judges import Contains, Equals, LengthWithin, Matches, Reward, SameNumber, is_json, numbers
from mlxzo.tasks.registry import get_task
from tests.tasks.test_custom import load
from tests.tasks.test_custom import problems as row_problems


@pytest.mark.parametrize(
    "answer, score",
    [
        ('{"a": [1, 2.5, null]}', 1),
        (' "text" ', 1),
        ("7", 1),
        ("", 0),
        ("{'a': 1}", 0),
        ('{"a": 1} or so', 0),
        ('```json\n{"a": 1}\n```', 0),
        ("[NaN]", 0),
        ("-Infinity", 0),
        ("[" * 100_000, 0),
        ("9" * 10_000, 0),
    ],
)
def test_json_is_the_whole_answer(answer, score):
    assert is_json(answer) == score


@pytest.mark.parametrize(
    "judge, answer, score",
    [
        (Matches(re.compile("a+")), "aa", 1),
        (Matches(re.compile("a+")), "aab", 0),
        (Matches(re.compile("a+"), anywhere=True), "baab", 1),
        (Matches(re.compile("^a"), anywhere=True), "ba", 0),
        (LengthWithin(2, 4), "one two three", 1),
        (LengthWithin(4, 4), "one", 0.25),
        (LengthWithin(0, 4), "a b c d e", 0.75),
        (LengthWithin(0, 4), "a b c d e f g h i j", 0),
        (LengthWithin(0, 0), "a", 0),
        (LengthWithin(0, 0), "", 1),
        (LengthWithin(10, None, characters=True), "12345", 0.5),
        (Equals("The end."), "end", 1),
        (Equals("The end."), "the very end", 0),
        (Contains("New York"), "to NEW york, and back", 1),
        (Contains("5"), "it is 15", 0),
        (Contains("New York"), "new old york", 0),
    ],
)
def test_a_score_is_what_the_settings_say(judge, answer, score):
    assert judge(answer, ()) == score


@pytest.mark.parametrize(
    "judge, answer, gold, score",
    [
        (Equals(), "Paris!", ("Lyon", "paris"), 1),
        (Equals(), "Paris", (), 0),
        (Contains(), "It is Paris.", ("Lyon", "Paris"), 1),
        (Contains(), "anything", ("the",), 0),
        (SameNumber(), "2 + 2 = 4", ("4",), 1),
        (SameNumber(only=True), "2 + 2 = 4", ("4",), 0),
        (SameNumber(only=True), "it is 4.0", ("four, or 4",), 1),
        (SameNumber(), "none", ("4",), 0),
        (SameNumber(Decimal("0.1")), "0.3", ("0.2",), 1),
        (SameNumber(Decimal("0.1")), "0.31", ("0.2",), 0),
        (SameNumber(), "12345678901234567890", ("12345678901234567891",), 0),
        (SameNumber(), "1e999999999999999999999", ("2",), 0),
    ],
)
def test_a_score_compares_with_the_right_answers(judge, answer, gold, score):
    assert judge(answer, gold) == score


@pytest.mark.parametrize(
    "text, found",
    [
        ("3 apples, -4.5 degrees", ["3", "-4.5"]),
        ("1,234.5 and 12,34", ["1234.5", "12", "34"]),
        ("10-5 is 5, x5 is none", ["10", "5", "5"]),
        ("2e-3 or .5 or −7%", ["0.002", "0.5", "-7"]),
        ("1,2,3", ["1", "2", "3"]),
        ("none", []),
    ],
)
def test_numbers_are_found_as_people_write_them(text, found):
    assert numbers(text) == list(map(Decimal, found))


def test_every_number_that_is_written_is_read_back():
    draw = random.Random(0)
    for _ in range(500):
        value = round(draw.uniform(-1e6, 1e6), draw.randrange(5))
        for text in (str(value), f"{value:,}", f"{value:e}"):
            assert [float(number) for number in numbers(f"So: {text}.")] == [float(text.replace(",", ""))]


def test_a_reward_is_the_weighted_mean():
    half, one = (lambda answer, gold: 0.5), (lambda answer, gold: 1.0)
    assert Reward(((1.0, half), (3.0, one)))("", ()) == 0.875
    draw = random.Random(1)
    for _ in range(200):
        parts = tuple((draw.uniform(0.01, 9), LengthWithin(draw.randrange(5), 5 + draw.randrange(5))) for _ in range(4))
        values = [score("a b c d e f g", ()) for _, score in parts]
        assert min(values) - 1e-12 <= Reward(parts)("a b c d e f g", ()) <= max(values) + 1e-12


SCHEMA = '{type: object, required: [item], properties: {item: {type: string, pattern: "^[a-z]+$"}}}'
HEAD = "name: t\ntemplate: 'Q: {q}'\n"


def read(path, reward, head=HEAD):
    (path / "task.yaml").write_text(f"{head}reward:\n{reward}", encoding="utf-8")
    return get_task(str(path / "task.yaml"))


def problems(path, reward, head=HEAD):
    with pytest.raises(ConfigError) as caught:
        read(path, reward, head)
    return caught.value.details or [caught.value.message.split("task.yaml: ")[1]]


@pytest.mark.parametrize("schema", [SCHEMA, "order.json", "{$ref: '#/$defs/a', $defs: {a: " + SCHEMA + "}}"])
def test_a_schema_is_inline_or_a_file_beside_the_task(schema, tmp_path):
    (tmp_path / "order.json").write_text(
        '{"type": "object", "required": ["item"], "properties": {"item": {"type": "string", "pattern": "^[a-z]+$"}}}'
    )
    reward = read(tmp_path, f"  - {{kind: json_schema, schema: {schema}}}\n").reward
    assert [reward(answer, ()) for answer in ('{"item": "cup"}', '{"item": "Cup"}', "{}", "cup")] == [1, 0, 0, 0]


@pytest.mark.parametrize(
    ("schema", "reference"),
    [
        ("{$ref: '#'}", "#"),
        ("{allOf: [{type: object}, {$ref: '#'}]}", "#"),
        ("{items: {$ref: '#/$defs/a'}, $defs: {a: {not: {$ref: '#/$defs/b'}}, b: {$ref: '#/$defs/a'}}}", "#/$defs/a"),
        ("{$schema: 'http://json-schema.org/draft-07/schema#', dependencies: {a: [b], b: {$ref: '#'}}}", "#"),
    ],
)
def test_a_schema_that_is_applied_to_the_same_value_without_end_is_refused(schema, reference, tmp_path):
    (problem,) = problems(tmp_path, f"  - kind: json_schema\n    schema: {schema}\n")
    assert f"schema: the reference '{reference}' leads back to itself" in problem


def test_a_schema_may_refer_to_itself_for_a_part_of_a_value(tmp_path):
    """The same definition twice, and one that holds itself as an item, end with the value."""
    schema = "{anyOf: [{$ref: '#/$defs/a'}, {$ref: '#/$defs/a'}], $defs: {a: {type: array, items: {$ref: '#'}}}}"
    reward = read(tmp_path, f"  - {{kind: json_schema, schema: {schema}}}\n").reward
    assert [reward(answer, ()) for answer in ("[[], [[]]]", "[[1]]")] == [1, 0]


def test_several_judges_have_weights_and_settings_that_tell_them_apart(tmp_path):
    task = read(tmp_path, "  - kind: json\n  - {kind: length, most: 2, weight: 3}\n")
    assert (task.metric, task.writes, task.more_metrics, task.fields) == ("reward", True, (), ("q",))
    assert [task.reward(answer, ()) for answer in ("1", "[1, 2, 3]", "a b c d e")] == [1.0, 0.625, 0.0]
    assert task.reward.description == "json, length (most 2, weight 3)"
    assert task.reward.settings == '[{"kind": "json"}, {"kind": "length", "most": "2", "weight": "3"}]'
    example = task.example_from_row({"q": "why?", "more": 1})
    assert (example.prompt, example.candidates, example.gold, example.written) == ("Q: why?", (), (), True)


def test_right_answers_are_measured_beside_the_reward(tmp_path):
    task = read(tmp_path, "  - kind: number\n", HEAD + "answer_field: sum\n")
    assert (task.metric, task.more_metrics, task.fields) == ("reward", ("f1", "exact_match"), ("q", "sum"))
    assert task.example_from_row({"q": "2 + 2", "sum": "4"}).candidates == (" 4\n",)
    with pytest.raises(ValueError, match="the right answer 'four' has no number to compare with"):
        task.example_from_row({"q": "2 + 2", "sum": "four"})


BAD = [
    ("  json\n", "line 4: reward must be a list of judges, each with its kind: json, json_schema, regex, length, "),
    ("  - json\n", "line 4: reward: expected `kind: ...` and its settings"),
    ("  - weight: 1\n", "line 4: reward: kind is missing; there are json, json_schema, regex, length, exact, contains"),
    ("  - kind: jsn\n", "line 4: reward: no such kind 'jsn'; did you mean json?"),
    ("  - kind: beauty\n", "line 4: reward: no such kind 'beauty'; there are json,"),
    ("  - kind: json\n    wieght: 2\n", "line 5: reward json: no such key 'wieght'; did you mean weight?"),
    ("  - kind: json\n    schema: a\n", "line 5: reward json: no such key 'schema'; the judge json has: kind, weight"),
    (
        "  - kind: length\n    most: 3\n    min: 1\n",
        "line 6: reward length: no such key 'min'; the judge length has: unit, least, most, kind, weight",
    ),
    ("  - kind: json\n    weight: 0\n", "line 5: reward json: weight: it must be above 0"),
    ("  - kind: json\n    weight: 1e308\n", "line 5: reward json: weight: it must be at most 1,000,000"),
    (
        "  - kind: json\n    weight: nan\n",
        "line 5: reward json: weight: expected a number above 0 and at most 1,000,000, not 'n",
    ),
    (
        "  - kind: json\n    weight: -1\n",
        "line 5: reward json: weight: expected a number above 0 and at most 1,000,000",
    ),
    ("  - kind: json_schema\n", "line 4: reward json_schema: schema: it is missing"),
    ("  - kind: json_schema\n    schema: no.json\n", "line 5: reward json_schema: schema: 'no.json' does not exist"),
    ("  - kind: json_schema\n    schema: bad.json\n", "schema: 'bad.json' is not valid JSON at line 1, column 2"),
    ("  - kind: json_schema\n    schema: {type: text}\n", "schema: it is no JSON Schema: at type: 'text' is not valid"),
    ("  - kind: json_schema\n    schema: {$schema: 'x:y'}\n", "schema: there is no draft 'x:y' of JSON Schema"),
    ("  - kind: json_schema\n    schema: {$schema: []}\n", "schema: $schema must be the address of a draft, not []"),
    ("  - kind: json_schema\n    schema: {$dynamicRef: '#a'}\n", "schema: it refers to '#a', which it does not hold"),
    (
        "  - kind: json_schema\n    schema: {properties: {a: {$ref: 'https://example.com/a.json'}}}\n",
        "schema: it refers to 'https://example.com/a.json', which it does not hold; nothing is fetched",
    ),
    ("  - kind: json_schema\n    schema: {$ref: '#/$defs/a'}\n", "schema: it refers to '#/$defs/a', which it does not"),
    ("  - kind: json_schema\n    schema: {const: 2024-01-01}\n", "schema: it makes no sense: "),
    ("  - kind: regex\n    match: search\n", "line 4: reward regex: pattern: it is missing"),
    ("  - kind: regex\n    pattern: '('\n", "line 5: reward regex: pattern: '(' is no regular expression: missing )"),
    ("  - kind: regex\n    pattern: a\n    match: part\n", "match: expected full or search, not 'part'"),
    ("  - kind: length\n", "line 4: reward length: least: give least, most or both"),
    ("  - kind: length\n    least: 3\n    most: 2\n", "line 5: reward length: least: 3 is more than most, 2"),
    (
        "  - kind: length\n    most: many\n",
        "line 5: reward length: most: expected a whole number from 0 to 999,999,999",
    ),
    (
        "  - kind: length\n    least: 1000000000\n",
        "least: expected a whole number from 0 to 999,999,999, not '1000000000'",
    ),
    ("  - kind: exact\n", "line 4: reward exact: text: it is missing, and so is answer_field"),
    ("  - kind: contains\n    text: the ...\n", "'the ...' has punctuation and articles alone, which are not compared"),
    ("  - kind: number\n", "line 4: reward number: it compares with the right answer: name its field by answer_field"),
]


@pytest.mark.parametrize("reward, says", BAD, ids=[says[:40] for _, says in BAD])
def test_a_reward_that_cannot_be_read_is_explained(tmp_path, reward, says):
    (tmp_path / "bad.json").write_text("{")
    (problem,) = problems(tmp_path, reward)
    assert says in problem


def test_every_problem_of_a_reward_is_listed_with_its_line(tmp_path):
    found = problems(
        tmp_path, "  - kind: number\n    tolerance: wide\n    which: first\n  - kind: jso\n", "name: a b\n"
    )
    assert [text.split(":")[0] for text in found] == ["line 4", "line 5", "line 3", "line 6", "name"]


def test_labels_have_the_model_choose(tmp_path):
    (problem,) = problems(tmp_path, "  - kind: json\n", HEAD + "labels: [a, b]\n")
    assert problem == "reward is of answers that it writes, and labels has it choose: leave one out"


def test_rows_of_prompts_need_no_template(tmp_path):
    read(tmp_path, "  - kind: json\n", "name: t\n")
    asked = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello?"}]
    rows = [{"prompt": "One: "}, {"messages": asked}]
    data = load(tmp_path / "data", rows, task=str(tmp_path / "task.yaml"))
    found = {example.prompt: [turn.content for turn in example.messages] for example in data.train}
    assert found == {"One:": [], "system: Be kind.\nuser: Hello?\nassistant:": ["Be kind.", "Hello?"]}
    with pytest.raises(DataError) as error:
        load(tmp_path / "none", [{"text": "One: "}], task=str(tmp_path / "task.yaml"))
    assert error.value.fix == 'each row needs "prompt" or "messages"'


def test_own_prompts_are_read_without_a_task_file(tmp_path):
    data = load(tmp_path / "prompts", [{"prompt": "One: ", "unit": "km"}])
    assert (data.task.name, data.task.metric, data.task.fields) == ("custom", "reward", ("prompt",))
    assert [(example.prompt, example.candidates) for example in data.train] == [("One:", ())]
    asked = {"role": "user", "content": "Hello?"}
    (example,) = load(tmp_path / "chats", [{"messages": [asked]}]).train
    assert (example.prompt, example.candidates, len(example.messages)) == ("user: Hello?\nassistant:", (), 1)
    # Among rows with answers, one without is a row that lacks it.
    rows = [{"prompt": "a"}, {"prompt": "b", "completion": "c"}]
    assert row_problems(tmp_path / "lacking", rows, rows[1:]) == [
        "line 1: the field 'completion' is missing; found prompt"
    ]
    with pytest.raises(DataError, match="must end with a message of the user"):
        load(tmp_path / "system", [{"messages": [{"role": "system", "content": "Be kind."}]}])


def test_the_hash_of_the_data_covers_the_judges(tmp_path):
    hashes = set()
    for most in ("2", "3"):
        read(tmp_path, f"  - {{kind: length, most: {most}}}\n")
        hashes.add(load(tmp_path / "data", [{"q": "why?"}], task=str(tmp_path / "task.yaml")).sha256)
    assert len(hashes) == 2
