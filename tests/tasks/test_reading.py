"""Data files: what is tolerated, and how every malformed line is reported with its number."""

import json
import subprocess
import sys

import pytest

from mlxzo.core.config import RunConfig
from mlxzo.core.errors import DataError
from mlxzo.tasks.reading import MAX_LINE_BYTES
from mlxzo.tasks.registry import load_task

GOOD = '{"sentence": "a fine film", "label": 1}'
BAD = '{"sentence": "a dull film", "label": 0}'


def folder(path, train=(GOOD, BAD), validation=(BAD, GOOD), test=None):
    """Writes a data folder; a split is lines, bytes, or None for no file."""
    path.mkdir(exist_ok=True)
    for name, lines in (("train", train), ("validation", validation), ("test", test)):
        if lines is not None:
            content = lines if isinstance(lines, bytes) else "".join(f"{line}\n" for line in lines).encode()
            (path / f"{name}.jsonl").write_bytes(content)
    return path


def load(path, task="sst2", **options):
    return load_task(RunConfig(task=task, data=str(path), **options))


def failure(path, task="sst2"):
    with pytest.raises(DataError) as caught:
        load(path, task)
    assert caught.value.exit_code == 4
    assert caught.value.fix
    return caught.value


SQUAD = {"title": "t", "context": "c", "question": "q", "answers": {"text": ["a"]}}
COPA = {"premise": "p", "choice1": "a", "choice2": "b", "question": "cause", "label": 0}
RECORD = {"passage": "p", "query": "@placeholder q", "entities": ["a", "b"], "answers": ["a"]}
BAD_LINES = [
    ("sst2", '{"sentence": "a film", "label": 1', "not valid JSON: expecting ',' delimiter at character 34"),
    ("sst2", "a film,1", "not valid JSON: expecting value at character 1"),
    ("sst2", '["a film", 1]', "must be a JSON object, not a list"),
    ("sst2", '"a film"', "must be a JSON object, not text"),
    ("sst2", "null", "must be a JSON object, not null"),
    ("sst2", "17", "must be a JSON object, not a number"),
    ("sst2", "[" * 100_000, "not usable JSON: nested too deeply"),
    ("sst2", '{"label": ' + "9" * 5000 + "}", "not usable JSON: a number has too many digits"),
    ("sst2", '{"text": "a film", "label": 1}', "the field 'sentence' is missing; found text, label"),
    ("sst2", '{"sentence": "a film"}', "the field 'label' is missing; found sentence"),
    ("sst2", "{}", "the field 'sentence' is missing; found no fields"),
    ("sst2", '{"sentence": 5, "label": 1}', "'sentence' must be text, not a number"),
    ("sst2", '{"sentence": null, "label": 1}', "'sentence' must be text, not null"),
    ("sst2", '{"sentence": ["a"], "label": 1}', "'sentence' must be text, not a list"),
    ("sst2", '{"sentence": "  ", "label": 1}', "'sentence' is empty"),
    ("sst2", '{"sentence": "\\ud800", "label": 1}', "'sentence' holds half of a surrogate pair, which is no character"),
    ("sst2", '{"sentence": "a film", "label": -1}', "the label -1 is not 0 (negative) or 1 (positive)"),
    ("sst2", '{"sentence": "a film", "label": "good"}', "the label 'good' is not 0 (negative) or 1 (positive)"),
    ("sst2", '{"sentence": "a film", "label": true}', "the label True is not 0 (negative) or 1 (positive)"),
    ("boolq", '{"question": "q", "passage": "p", "answer": 1}', "the answer 1 is not true or false"),
    ("boolq", '{"question": "q", "passage": "", "answer": true}', "'passage' is empty"),
    ("squad", json.dumps(SQUAD | {"answers": {"text": []}}), "'text' is empty"),
    ("squad", json.dumps(SQUAD | {"answers": ["x"]}), "'answers' must be an object, not a list"),
    ("copa", json.dumps(COPA | {"question": "why"}), "the question 'why' is not cause or effect"),
    ("copa", json.dumps(COPA | {"label": 2}), "the label 2 is not 0 (choice1) or 1 (choice2)"),
    ("record", json.dumps(RECORD | {"query": "q"}), "'query' has no @placeholder"),
    ("record", json.dumps(RECORD | {"entities": ["a", 1]}), "'entities' must be text, not a number"),
    (
        "record",
        json.dumps(RECORD | {"entities": ["a"], "answers": ["a"]}),
        "'entities' names one entity, and a choice needs two",
    ),
    ("reviews", '{"text": "t", "label": "neutral"}', "the label 'neutral' is not negative or positive"),
]
GOOD_ROWS = {
    "sst2": (GOOD, BAD),
    "boolq": ('{"question": "q", "passage": "p", "answer": true}',) * 2,
    "reviews": ('{"text": "t", "label": "negative"}', '{"text": "u", "label": "positive"}'),
    "squad": (json.dumps(SQUAD),) * 2,
    "copa": (json.dumps(COPA),) * 2,
    "record": (json.dumps(RECORD),) * 2,
}


@pytest.mark.parametrize(("task", "line", "sentence"), BAD_LINES, ids=[case[2][:40] for case in BAD_LINES])
def test_a_bad_line_is_reported_with_file_number_and_reason(tmp_path, task, line, sentence):
    good = GOOD_ROWS[task]
    error = failure(folder(tmp_path / "d", train=good, validation=(*good, line)), task)
    assert error.message == f"{tmp_path / 'd' / 'validation.jsonl'}, line 3: {sentence}"
    assert error.details == []


def test_every_bad_line_is_reported_at_once_in_order(tmp_path):
    rows = [GOOD, '{"sentence": "x", "label": 9}', "", "nonsense", BAD, '{"label": 0}']
    error = failure(folder(tmp_path / "d", train=rows))
    assert error.message.endswith("train.jsonl: 3 lines cannot be used")
    assert [detail.split(":")[0] for detail in error.details] == ["line 2", "line 4", "line 6"]


def test_at_most_twenty_bad_lines_are_shown_and_the_rest_counted(tmp_path):
    rows = [json.dumps({"sentence": "x", "label": 2 + i // 2}) for i in range(57)]
    error = failure(folder(tmp_path / "d", train=rows))
    assert "57 lines cannot be used" in error.message
    assert len(error.details) == 21
    assert error.details[0] == "lines 1-2: the label 2 is not 0 (negative) or 1 (positive)"
    assert error.details[-1] == "and 17 more"


def test_bad_lines_of_all_files_are_reported_at_once_and_the_same_sentence_once(tmp_path):
    error = failure(folder(tmp_path / "one", train=["{", GOOD, "{", "{"]))
    assert error.message.endswith(
        "train.jsonl, lines 1, 3-4: not valid JSON: expecting property name enclosed in double quotes at character 2"
    )
    error = failure(folder(tmp_path / "two", train=[GOOD, "7"], validation=["7"]))
    assert error.message == (
        f"{tmp_path / 'two'}: must be a JSON object, not a number (train.jsonl, line 2; validation.jsonl, line 1)"
    )
    error = failure(folder(tmp_path / "three", train=[GOOD, "7", "null"], test=["7"] + 10 * [GOOD, "7"]))
    assert error.message == f"{tmp_path / 'three'}: 13 lines cannot be used"
    assert error.details == [
        "train.jsonl, line 2: must be a JSON object, not a number",
        "train.jsonl, line 3: must be a JSON object, not null",
        "test.jsonl, lines 1, 3, 5, 7, 9, 11, 13, 15 and 3 more: must be a JSON object, not a number",
    ]


def test_long_values_and_many_fields_are_cut_in_messages(tmp_path):
    row = {"sentence": "x", "label": "y" * 1_000_000}
    assert len(failure(folder(tmp_path / "a", train=[json.dumps(row)])).message) < 300
    row = {f"field{i}": 0 for i in range(5000)}
    message = failure(folder(tmp_path / "b", train=[json.dumps(row)])).message
    assert message.endswith("found field0, field1, field2, field3, field4, field5, field6, field7 and 4992 more")


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + f"{GOOD}\n{BAD}\n".encode(),
        f"{GOOD}\r\n{BAD}\r\n".encode(),
        f"\n\n{GOOD}\n   \n{BAD}".encode(),
        f'{GOOD}\n{BAD[:-1]}, "label": 0}}\n'.encode(),
    ],
    ids=["byte-order mark", "CRLF", "blank lines and no last newline", "key given twice"],
)
def test_harmless_oddities_read_as_the_plain_file_does(tmp_path, content):
    plain = load(folder(tmp_path / "plain"))
    odd = load(folder(tmp_path / "odd", train=content))
    assert odd.train == plain.train
    assert odd.sha256 == plain.sha256


def test_line_separators_inside_a_text_do_not_end_the_line(tmp_path):
    row = json.dumps({"sentence": "one\u2028two\x85three", "label": 1}, ensure_ascii=False)
    assert load(folder(tmp_path / "d", test=[row])).test[0].prompt == "one\u2028two\x85three It was"


def test_text_that_is_not_utf8_is_reported_by_line(tmp_path):
    content = f"{GOOD}\n".encode() + '{"sentence": "café", "label": 1}\n'.encode("latin-1")
    assert failure(folder(tmp_path / "d", train=content)).message.endswith("line 2: not UTF-8 (byte 18 is 0xe9)")


def test_a_line_over_the_limit_is_refused_and_the_next_is_still_read(tmp_path):
    long = b'{"sentence": "' + b"x" * (MAX_LINE_BYTES + 2**20) + b'", "label": 1}\n'
    content = f"{GOOD}\n".encode() + long + b"nonsense\n"
    error = failure(folder(tmp_path / "d", train=content))
    assert error.details[0] == "line 2: longer than 16 MB"
    assert error.details[1].startswith("line 3: not valid JSON")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process cannot be kept from taking memory")
def test_a_line_of_a_gigabyte_is_refused_without_being_held(tmp_path):
    with (folder(tmp_path / "d") / "test.jsonl").open("wb") as file:
        file.truncate(2**30)
    program = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29))\n"
        "from pathlib import Path\n"
        "from mlxzo.tasks.reading import read_rows\n"
        "print(read_rows(Path(sys.argv[1])).problems)\n"
    )
    path = tmp_path / "d" / "test.jsonl"
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True)
    assert done.stdout.strip() == "[(1, 'longer than 16 MB')]", done.stderr


def test_a_line_of_exactly_the_limit_is_read(tmp_path):
    head, tail = b'{"sentence": "', b'", "label": 1}'
    line = head + b"x" * (MAX_LINE_BYTES - len(head) - len(tail)) + tail + b"\r\n"
    assert len(load(folder(tmp_path / "d", test=line)).test) == 1


@pytest.mark.parametrize("content", [b"", b"\n\n  \n", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_an_empty_file_is_reported(tmp_path, split, content):
    error = failure(folder(tmp_path / "d", **{split: content}))
    assert error.message.endswith(f"{split}.jsonl is empty")


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_missing_file_is_reported_with_what_a_folder_holds(tmp_path, split):
    error = failure(folder(tmp_path / "d", **{split: None}))
    assert error.message.endswith(f"has no {split}.jsonl")
    assert "train.jsonl, validation.jsonl and, optionally, test.jsonl" in error.fix


def test_a_split_that_is_there_twice_is_refused(tmp_path):
    path = folder(tmp_path / "d")
    (path / "train.csv").write_text("sentence,label\nx,1\n")
    assert failure(path).message.endswith("has both train.jsonl and train.csv")


def test_a_missing_test_file_is_fine(tmp_path):
    assert load(folder(tmp_path / "d")).test == ()


def test_a_missing_folder_and_a_file_in_its_place_are_told_apart(tmp_path):
    assert failure(tmp_path / "nowhere").message.endswith("nowhere does not exist")
    path = folder(tmp_path / "d") / "train.jsonl"
    assert failure(path).message == f"{path} is a file, and --data takes a folder"


def test_a_folder_in_place_of_a_file_is_reported(tmp_path):
    path = folder(tmp_path / "d", train=None)
    (path / "train.jsonl").mkdir()
    assert "train.jsonl cannot be read: Is a directory" in failure(path).message


TABLES = {
    "csv": 'sentence,label\n"a ""fine"" film,\nreally",1\nplain,0\n',
    "tsv": 'label\tsentence\n1\t"a ""fine"" film,\nreally"\n0\tplain\n',
}


def table(path, suffix, text, encode="utf-8"):
    """A data folder whose training rows are a table."""
    folder(path, train=None)
    (path / f"train.{suffix}").write_bytes(text.encode(encode))
    return path


@pytest.mark.parametrize("suffix", TABLES)
@pytest.mark.parametrize("odd", [False, True], ids=["plain", "byte-order mark, CRLF and blank lines"])
def test_a_table_reads_as_the_same_rows_in_jsonl_do(tmp_path, suffix, odd):
    rows = [{"sentence": 'a "fine" film,\nreally', "label": 1}, {"sentence": "plain", "label": 0}]
    lines = [json.dumps(row) for row in rows]
    text = TABLES[suffix]
    if odd:
        text = "\ufeff" + text.replace("plain", "plain").replace("0\n", "0\n\n\n").replace("\n", "\r\n")
    from_table = load(table(tmp_path / "t", suffix, text))
    assert from_table.sha256 == load(folder(tmp_path / "j", train=lines)).sha256


BAD_TABLES = [
    (
        "sentence,label\nx,1\ny\nz,1,2\n",
        [
            "line 3: has 1 cells, where the first line names 2 fields",
            "line 4: has 3 cells, where the first line names 2 fields",
        ],
    ),
    ('sentence,label\n"two\nlines",1\nx,7\n', ["line 4: the label '7' is not 0 (negative) or 1 (positive)"]),
    ('sentence,label\nx,1\n"never closed,1\n', ["line 3: not a row of a table: unexpected end of data"]),
    ("sentence,sentence\nx,1\n", ["line 1: the first line must name each field once; found ['sentence', 'sentence']"]),
    ("text,label\nx,1\n", ["line 2: the field 'sentence' is missing; found text, label"]),
    ("sentence,label\n", ["is empty"]),
    ("", ["is empty"]),
]


@pytest.mark.parametrize(("text", "sentences"), BAD_TABLES, ids=[case[1][0][:40] for case in BAD_TABLES])
def test_a_bad_table_is_reported_by_line(tmp_path, text, sentences):
    error = failure(table(tmp_path / "d", "csv", text))
    said = error.details or [error.message.split("train.csv")[1].lstrip(", ")]
    assert said == sentences


def test_a_table_that_is_not_utf8_or_has_an_endless_line_is_reported_by_line(tmp_path):
    path = table(tmp_path / "latin", "csv", "sentence,label\nx,1\ncafé,1\n", "latin-1")
    assert failure(path).message.endswith("line 3: not UTF-8 (byte 4 is 0xe9)")
    path = table(tmp_path / "long", "csv", f"sentence,label\n{'x' * (MAX_LINE_BYTES + 9)},1\ny,1\n")
    assert failure(path).message.endswith("line 2: longer than 16 MB")
