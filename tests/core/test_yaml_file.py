"""YAML files of users: keys given twice, lines, and files that stand for more than they hold."""

from itertools import pairwise

import pytest

from mlxzo.core.errors import ConfigError
from mlxzo.core.yaml_file import YamlFile, read_yaml

# Each letter stands for ten of the letter before it.
TENS = "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in pairwise("abcdefghi"))


@pytest.fixture
def write(tmp_path):
    def written(text):
        path = tmp_path / "file.yaml"
        path.write_text(text)
        return path

    return written


def test_a_key_that_is_given_twice_is_reported_with_its_line(write):
    with pytest.raises(ConfigError, match=r"file.yaml: line 3: steps: it is given more than once"):
        read_yaml(write("steps: 1\nlr: 2\nsteps: 3\n"))
    # Of an option that was renamed, both names are one key.
    with pytest.raises(ConfigError, match=r"file.yaml: line 2: activation_cache: it is given more than once"):
        read_yaml(write("prefix_cache: ram\nactivation_cache: off\n"))
    with pytest.raises(ConfigError) as caught:
        read_yaml(write("a: 1\nb: 1\nb: 2\na: 2\na: 3\n"))
    assert [text.split(":")[:2] for text in caught.value.details] == [
        ["line 3", " b"],
        ["line 4", " a"],
        ["line 5", " a"],
    ]


def test_a_path_leads_to_its_line_or_to_the_nearest_above_it(write):
    file = YamlFile.read(write("a: 1\nruns:\n  - x: 1\n    y: 2\n  - <<: {z: 3}\n    x: 4\n"))
    assert [file.line("a"), file.line("runs"), file.line("runs", 0, "y"), file.line("runs", 1)] == [1, 2, 4, 5]
    # Merged in, missing, or beyond the end of the list.
    assert [file.line("runs", 1, "z"), file.line("b"), file.line("runs", 7)] == [5, 1, 2]
    assert file.values()["runs"][1] == {"z": 3, "x": 4}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + TENS, "more than 100,000 values"),
        ("a: &a [1, *a]", "more than 100,000 values"),
        ("a: " + "[" * 1500, "nested too deeply"),
        ("a: " + "[" * 60 + "]" * 60, "nested too deeply"),
        ("a: 2001-02-30", "makes no sense: day is out of range"),
        ("a: " + "#" * 2_000_000, "larger than 1,024 KB"),
        ("a: !!python/object/apply:os.getcwd []", "not valid YAML at line 1, column 4"),
        ("a: {[1]: 2}", "not valid YAML at line 1, column 5: found unhashable key"),
    ],
)
def test_a_file_that_stands_for_more_than_it_holds_is_refused(write, text, words):
    with pytest.raises(ConfigError, match=words):
        read_yaml(write(text))
