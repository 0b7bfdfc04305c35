"""The prompts of the built-in tasks, as literal text, and the rules that join a prompt and a candidate."""

import pytest

from mlxzo.errors import ConfigError
from mlxzo.tasks.base import append, labelled
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


def test_reviews_keep_braces_in_the_text():
    example = get_task("reviews").example_from_row({"text": "The {label} fell {off}.", "label": "negative"})
    assert example.prompt.count("The {label} fell {off}.") == 1
    assert example.target == 0


@pytest.mark.parametrize("name", task_names())
def test_every_task_says_what_it_is_and_shows_a_prompt(name):
    task = get_task(name)
    assert task.name == name
    assert task.description
    assert task.metric in ("accuracy", "loss")
    assert Template(task.template).fields
    assert task.example_prompt().strip()


@pytest.mark.parametrize("name", [name for name in task_names() if get_task(name).sample_row])
def test_prompts_never_end_in_a_space_and_candidates_carry_the_join(name):
    task = get_task(name)
    example = task.example_from_row(task.sample_row)
    assert not example.prompt.endswith(" ")
    for word, candidate in zip(task.labels, example.candidates, strict=True):
        assert candidate == (word if example.prompt.endswith("\n") else f" {word}")


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
