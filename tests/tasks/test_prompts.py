"""The prompts of the built-in tasks, as literal text, and the rules that join a prompt and a candidate."""

import pytest

from mlxzo.core.errors import ConfigError
from mlxzo.tasks.base import Example, TaskData, append, labelled
from mlxzo.tasks.classification import Classification
from mlxzo.tasks.metrics import METRICS
from mlxzo.tasks.registry import get_task, task_names
from mlxzo.tasks.template import Template


def test_sst2_asks_for_terrible_or_great():
    example = get_task("sst2").example_from_row({"sentence": "it is a triumph . ", "label": 1, "idx": 7})
    assert example.prompt == "it is a triumph . It was"
    assert example.candidates == (" terrible", " great")
    assert example.target == 1


@pytest.mark.parametrize(
    ("question", "asked"),
    [
        ("does it rain in spain", "Does it rain in spain?"),
        ("Does it rain in spain?", "Does it rain in spain?"),
        ("élan is a word", "Élan is a word?"),
    ],
)
def test_boolq_capitalises_the_question_and_ends_it_once(question, asked):
    row = {"question": question, "passage": "Rain falls in Spain.", "answer": False}
    example = get_task("boolq").example_from_row(row)
    assert example.prompt == f"Rain falls in Spain. {asked}\n"
    assert example.candidates == ("Yes", "No")
    assert example.target == 1


def test_boolq_true_is_yes():
    row = {"question": "is it so", "passage": "It is so.", "answer": True}
    example = get_task("boolq").example_from_row(row)
    assert example.candidates[example.target] == "Yes"


# Prompt and right candidate, as Malladi et al. 2023 have them (TREC and AG News: Zhao et al. 2021).
PROMPTS = {
    "rte": (
        {"premise": "It rained.", "hypothesis": "It was dry.", "label": 1},
        'It rained.\nDoes this mean that "It was dry." is true? Yes or No?\n',
        "No",
    ),
    "cb": (
        {"premise": "A: I doubt it rained.", "hypothesis": "it rained", "label": 2},
        'Suppose A: I doubt it rained. Can we infer that "it rained"? Yes, No, or Maybe?\n',
        "Maybe",
    ),
    "wsc": (
        {"text": "Ann saw Bea. She waved.", "span1_text": "Bea", "span2_text": "She", "label": 1},
        'Ann saw Bea. She waved.\nIn the previous sentence, does the pronoun "she" refer to Bea? Yes or No?\n',
        "Yes",
    ),
    "wic": (
        {"word": "bat", "sentence1": "A bat flew.", "sentence2": "He swung the bat.", "label": 0},
        'Does the word "bat" have the same meaning in these two sentences? Yes, No?\nA bat flew.\nHe swung the bat.\n',
        "No",
    ),
    "multirc": (
        {"paragraph": "It rained. ", "question": "Did it rain?", "answer": "Yes", "label": 1},
        'It rained.\nQuestion: Did it rain?\nI found this answer "Yes". Is that correct? Yes or No?\n',
        "Yes",
    ),
    "copa": (
        {
            "premise": "The dog barked.",
            "choice1": "The cat ran.",
            "choice2": "I woke up.",
            "question": "effect",
            "label": 1,
        },
        "The dog barked so",
        " I woke up.",
    ),
    "record": (
        {
            "passage": "News.\n@highlight\nA won",
            "query": "@placeholder is happy, said @placeholder.",
            "entities": ["B", "A"],
            "answers": ["A"],
        },
        "News.\n- A won\n-",
        " A is happy, said A.",
    ),
    "squad": (
        {"title": "T_1", "context": "C.", "question": " Q? ", "answers": {"text": ["an a", "an a", "a"]}},
        "Title: T_1\nContext: C.\nQuestion: Q?\nAnswer:",
        " an a\n",
    ),
    "drop": (
        {"passage": "P.", "question": "How many?", "answers_spans": {"spans": ["3"], "types": ["number"]}},
        "Passage: P.\nQuestion: How many?\nAnswer:",
        " 3\n",
    ),
    "trec": (
        {"text": "Who ?", "coarse_label": 3},
        "Classify the questions based on whether their answer type is a Number, Location, Person, Description, "
        "Entity, or Abbreviation.\n\nQuestion: Who ?\nAnswer Type:",
        " Person",
    ),
    "ag_news": (
        {"text": "Shares fell.", "label": 2},
        "Classify the news articles into the categories of World, Sports, Business, and Technology.\n\n"
        "Article: Shares fell.\nAnswer:",
        " Business",
    ),
    "sms_spam": ({"sms": "WIN", "label": 1}, "Message: WIN\nIs this message spam? Yes or No?\n", "Yes"),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_a_row_becomes_the_prompt_of_the_literature(name):
    row, prompt, right = PROMPTS[name]
    example = get_task(name).example_from_row(row)
    assert (example.prompt, example.candidates[example.target]) == (prompt, right)


def test_copa_continues_the_sentence_and_spares_the_pronoun_i():
    row = PROMPTS["copa"][0] | {"question": "cause", "choice1": "TV was on."}
    example = get_task("copa").example_from_row(row)
    assert example.prompt == "The dog barked because"
    assert example.candidates == (" tv was on.", " I woke up.")


def test_record_counts_every_answer_as_right_and_offers_each_entity_once():
    row = PROMPTS["record"][0] | {"entities": ["B", "A", "B"], "answers": ["C", "A"]}
    example = get_task("record").example_from_row(row)
    assert len(example.candidates) == 3
    assert example.candidates[example.target].startswith(" C ")
    assert example.gold == (" C is happy, said C.", " A is happy, said A.")


@pytest.mark.parametrize(("name", "alone"), [("copa", True), ("record", True), ("wic", False), ("squad", False)])
def test_where_candidates_differ_from_row_to_row_the_right_one_is_learned_by_itself(name, alone):
    row, prompt, right = PROMPTS[name]
    task = get_task(name)
    example = task.example_from_row(row)
    data = TaskData(task, (example,), (example,), (), "here", "")
    assert data.learned("accuracy") == data.train == (example,)
    (learned,) = data.learned("loss")
    assert learned == (Example(prompt, (right,), 0) if alone else example)
    assert not alone or not learned.written


def test_gold_answers_of_questions_are_kept_once_each():
    assert get_task("squad").example_from_row(PROMPTS["squad"][0]).gold == ("an a", "a")


@pytest.mark.parametrize("name", [name for name in task_names() if isinstance(get_task(name), Classification)])
def test_a_content_free_prompt_has_the_same_labels_and_no_text_of_a_row(name):
    task = get_task(name)
    example = task.content_free("N/A")
    assert tuple(candidate.strip() for candidate in example.candidates) == task.labels
    assert "N/A" in example.prompt.replace("n/a", "N/A") and "{" not in example.prompt


def test_reviews_keep_braces_in_the_text():
    example = get_task("reviews").example_from_row({"text": "The {label} fell {off}.", "label": "negative"})
    assert example.prompt.count("The {label} fell {off}.") == 1
    assert example.target == 0


@pytest.mark.parametrize("name", task_names())
def test_every_task_says_what_it_is_and_shows_a_prompt(name):
    task = get_task(name)
    assert task.name == name
    assert task.description
    assert task.metric in ("loss", *METRICS)
    assert Template(task.template).fields
    assert task.sample_row is None or set(task.fields) <= set(task.sample_row)
    assert task.example_prompt().strip()


@pytest.mark.parametrize("name", [name for name in task_names() if get_task(name).sample_row])
def test_prompts_never_end_in_a_space_and_candidates_carry_the_join(name):
    task = get_task(name)
    example = task.example_from_row(task.sample_row)
    assert not example.prompt.endswith(" ")
    assert {candidate[0] == " " for candidate in example.candidates} == {not example.prompt.endswith("\n")}
    if task.labels:
        assert tuple(candidate.strip() for candidate in example.candidates) == task.labels
    assert set(example.gold) <= {*example.candidates} or task.writes


@pytest.mark.parametrize(
    ("name", "near"), [("sst-2", "sst2"), ("review", "reviews"), ("BoolQ", "boolq"), ("zzz", None)]
)
def test_an_unknown_task_names_the_nearest_and_all(name, near):
    with pytest.raises(ConfigError) as caught:
        get_task(name)
    assert (f"did you mean {near}" in caught.value.message) == (near is not None)
    assert all(known in caught.value.fix for known in task_names())
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("prompt", "text", "expected"),
    [
        ("Answer:", "yes", ("Answer:", " yes")),
        ("Answer: ", "yes", ("Answer:", " yes")),
        ("Answer:\n", "yes", ("Answer:\n", "yes")),
        ("Answer:", "\nyes", ("Answer:", "\nyes")),
        ("Answer:", " yes", ("Answer:", " yes")),
        ("def f():\n    ", "return 1", ("def f():\n", "    return 1")),
        ("答え：", "はい", ("答え：", "はい")),
        ("Antwort:", "はい", ("Antwort:", "はい")),
    ],
)
def test_the_join_keeps_white_space_and_adds_one_space_where_there_is_none(prompt, text, expected):
    assert append(prompt, text) == expected
    assert "".join(expected) in (prompt + text, f"{prompt} {text}")


def test_all_candidates_of_an_example_share_its_prompt():
    example = labelled("Answer: ", ("yes", "no"), 1)
    assert (example.prompt, example.candidates, example.target) == ("Answer:", (" yes", " no"), 1)


def test_a_template_fills_fields_and_leaves_values_alone():
    template = Template("{{{a}}} {b_2}-{a}")
    assert template.fields == ("a", "b_2")
    assert template.render({"a": "{b_2}", "b_2": "}{"}) == "{{b_2}} }{-{b_2}"


@pytest.mark.parametrize(
    "text",
    ["{text.__class__}", "{text[0]}", "{0}", "{}", "{text!r}", "{text:>10}", "{ text }", "{te{x}t}", "{text", "text}"],
)
def test_a_template_refuses_all_but_plain_field_names(text):
    with pytest.raises(ValueError, match=r"plain field name|single"):
        Template(text)


def test_a_template_reports_all_its_problems_at_once():
    with pytest.raises(ValueError) as caught:
        Template("{a.b} and } and {1}")
    assert str(caught.value) == (
        "{a.b} is not a plain field name; a single } at character 11 (write }} for a brace); "
        "{1} is not a plain field name"
    )
