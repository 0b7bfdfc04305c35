"""Data files: what is tolerated, and how every malformed line is reported with its number."""

import json
import subprocess
import sys

import pyarrow
import pytest
from pyarrow import parquet

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
    content = f"{GOOD}\n".encode() + '{"sentence": "naïve", "label": 1}\n'.encode()
    content += '{"sentence": "café", "label": 1}\n'.encode("latin-1")
    assert failure(folder(tmp_path / "d", train=content)).message.endswith("line 3: not UTF-8 (byte 18 is 0xe9)")


def test_a_line_over_the_limit_is_refused_and_the_next_is_still_read(tmp_path):
    long = b'{"sentence": "' + b"x" * (MAX_LINE_BYTES + 2**20) + b'", "label": 1}\n'
    content = f"{GOOD}\n".encode() + long + b"nonsense\n"
    error = failure(folder(tmp_path / "d", train=content))
    assert error.details[0] == "line 2: longer than 16 MB"
    assert error.details[1].startswith("line 3: not valid JSON")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process cannot be kept from taking memory")
def test_a_line_of_half_a_gigabyte_is_refused_without_being_held(tmp_path):
    with (folder(tmp_path / "d") / "test.jsonl").open("wb") as file:
        file.truncate(2**29)
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
    there = {"train": "validation", "validation": "train"}[split]
    assert error.message.endswith(f"has no {split}.jsonl; found {there}.jsonl")
    assert "train.jsonl, validation.jsonl and, optionally, test.jsonl" in error.fix


def test_a_split_that_is_there_twice_is_refused(tmp_path):
    path = folder(tmp_path / "d")
    (path / "train.csv").write_text("sentence,label\nx,1\n")
    assert failure(path).message.endswith("has train.csv and train.jsonl for the same rows")


def test_a_missing_test_file_is_fine(tmp_path):
    assert load(folder(tmp_path / "d")).test == ()


def test_a_missing_folder_and_a_file_in_its_place_are_told_apart(tmp_path):
    assert failure(tmp_path / "nowhere").message.endswith("nowhere does not exist")
    path = folder(tmp_path / "d") / "train.jsonl"
    assert failure(path).message == f"{path} is a file, and rows are given as a folder"


def test_a_folder_in_place_of_a_file_is_reported(tmp_path):
    path = folder(tmp_path / "d", train=None)
    (path / "train.jsonl").mkdir()
    assert "train.jsonl cannot be read: Is a directory" in failure(path).message


TABLES = {
    "csv": 'sentence,label\n"a ""fine"" film,\nreally",1\nplain,0\n',
    "tsv": 'label\tsentence\n1\t"a ""fine"" film,\nreally"\n0\tplain\n',
}


def table(path, suffix, content):
    """A data folder whose training rows are in a file of another kind."""
    folder(path, train=None)
    (path / f"train.{suffix}").write_bytes(content.encode() if isinstance(content, str) else content)
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
            "line 3: has 1 cell, where the first line names 2 fields",
            "line 4: has 3 cells, where the first line names 2 fields",
        ],
    ),
    ('sentence,label\n"two\nlines",1\nx,7\n', ["line 4: the label '7' is not 0 (negative) or 1 (positive)"]),
    # A stray carriage return ends a line, as on old Macs; the csv module would name its own options here.
    ('sentence,label\n"a, b",1\ny\rz,0\n', ["line 3: has 1 cell, where the first line names 2 fields"]),
    ('sentence,label\nx,1\n"never closed,1\n', ["line 3: a quote opens here and is never closed"]),
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
    content = "sentence,label\nnaïve,1\n".encode() + "café,1\n".encode("latin-1")
    assert failure(table(tmp_path / "latin", "csv", content)).message.endswith("line 3: not UTF-8 (byte 4 is 0xe9)")
    path = table(tmp_path / "long", "csv", f"sentence,label\n{'x' * (MAX_LINE_BYTES + 9)},1\ny,1\n")
    assert failure(path).message.endswith("line 2: longer than 16 MB")


ROWS = [{"sentence": "a café, quite", "label": 1}, {"sentence": 'two\nlines "so"', "label": 0}]
CELLS = [(row["sentence"].replace('"', '""'), row["label"]) for row in ROWS]
COMMAS = "".join(f'"{text}",{label}\r\n' for text, label in [("sentence", "label"), *CELLS])
SEMICOLONS = COMMAS.replace('",', '";')
ARRAY = json.dumps(ROWS, indent=1, ensure_ascii=False)
AS_PEOPLE_HAVE_THEM = {
    "UTF-16 as Excel writes it": ("csv", COMMAS.replace('",', '"\t').encode("utf-16")),
    "UTF-16, big-endian": ("csv", b"\xfe\xff" + COMMAS.encode("utf-16-be")),
    "JSONL in UTF-16": ("jsonl", "\n".join(map(json.dumps, ROWS)).encode("utf-16")),
    "semicolons": ("csv", SEMICOLONS),
    "the separator named for Excel": ("csv", "sep=;\n" + SEMICOLONS),
    "commas in a TSV": ("tsv", COMMAS),
    "tabs in a CSV": ("csv", COMMAS.replace('",', '"\t')),
    "the line ends of old Macs": ("csv", COMMAS.replace("\r\n", "\r")),
    "an index of pandas": ("csv", COMMAS.replace('"sent', ',"sent').replace('"a', '0,"a').replace('"two', '1,"two')),
    "an empty last column": ("csv", COMMAS.replace("\r\n", ",\r\n")),
    "whole numbers as decimals": ("csv", COMMAS.replace(",1\r", ",1.0\r").replace(",0\r", ",0.0\r")),
    "a suffix in capitals": ("CSV", COMMAS),
    "an array": ("json", ARRAY),
    "an array on one line": ("json", "\ufeff" + json.dumps(ROWS)),
    "an array in JSONL": ("jsonl", ARRAY),
    "JSONL in JSON": ("json", "\n".join(map(json.dumps, ROWS))),
}


@pytest.mark.parametrize(("suffix", "content"), AS_PEOPLE_HAVE_THEM.values(), ids=AS_PEOPLE_HAVE_THEM)
def test_files_as_people_have_them_read_as_the_plain_one(tmp_path, suffix, content):
    plain = load(folder(tmp_path / "plain", train=map(json.dumps, ROWS)))
    assert load(table(tmp_path / "odd", suffix, content)).sha256 == plain.sha256


def test_parquet_reads_as_the_same_rows_do(tmp_path):
    path = folder(tmp_path / "odd", train=None)
    parquet.write_table(pyarrow.table({name: [row[name] for row in ROWS] for name in ROWS[0]}), path / "train.parquet")
    assert load(path).sha256 == load(folder(tmp_path / "plain", train=map(json.dumps, ROWS))).sha256
    parquet.write_table(pyarrow.table({"sentence": ["x", None], "label": [1.0, 0.5]}), path / "train.parquet")
    assert failure(path).message.endswith("train.parquet, row 2: 'sentence' must be text, not null")


BARE_QUOTES = 'sentence\tlabel\na film\t1\n"Great, I thought\t0\nfine\t1\nHe said "no"\t0\n"quoted"\t1\n'


def test_quotes_in_tsv_are_characters_where_every_line_is_a_row(tmp_path):
    data = load(table(tmp_path / "bare", "tsv", BARE_QUOTES))
    assert {example.prompt.removesuffix(" It was") for example in data.train} == {
        "a film",
        '"Great, I thought',
        "fine",
        'He said "no"',
        "quoted",
    }
    assert data.remarks == ("train.tsv: a quote opens in line 3 and does not close: quotes are read as characters",)
    # With a line that is no row, the quotes might as well be those of cells with line ends: none is guessed.
    error = failure(table(tmp_path / "doubtful", "tsv", BARE_QUOTES + "cut off\n"))
    assert error.details == [
        "line 3: text follows a closing quote: double the quotes inside a quoted cell",
        "line 7: has 1 cell, where the first line names 2 fields",
    ]
    swallowed = 'sentence\tlabel\n"Great\t0\nfine\t1\nThe end"\t1\nshort\n'
    error = failure(table(tmp_path / "swallowed", "tsv", swallowed))
    assert error.details[0] == "line 2: a quote opens here, and the rows up to its end would be one cell"


def test_remarks_say_what_a_table_is_not_read_plainly_for(tmp_path):
    path = table(tmp_path / "d", "csv", ';sentence;label\n0;x; 1\n1;"y;";0\n')
    assert load(path).remarks == (
        "train.csv: cells are separated by semicolons",
        "train.csv: the first column has no name and is passed over, as an index that pandas writes is",
        "train.csv: spaces around labels, such as ' 1', are left out (rows: 1)",
    )
    assert load(folder(tmp_path / "plain")).remarks == ()


NO_USE = [
    ("csv", "sentence,label\ncafé,1\nthé,0\n".encode("cp1252"), "not UTF-8: line 2 has 'café' if it is Windows-1252"),
    ("jsonl", '{"sentence": "日本", "label": 1}'.encode("shift-jis") * 3, "is not UTF-8: line 1 has"),
    ("csv", "sentence,label\nx,1\n".encode("utf-16-le"), "holds NUL bytes: UTF-16 without a byte-order mark, it seems"),
    ("csv", "sentence,label\nx,1\n".encode("utf-16")[:-1], "is not valid UTF-16: truncated data"),
    ("csv", b"PK\x03\x04rest", "is a zip archive, as an Excel workbook is, and no text"),
    ("json", '{\n "sentence": "x",\n "label": 1\n}', "is no JSON array of objects, nor has it one object on each line"),
    ("json", '[\n {"sentence": "x", "label": 1},\n\n 7\n]', "line 4: must be a JSON object, not a number"),
    (
        "json",
        '[\n {"sentence": "x", "label": 1}\n {"sentence": "y"}\n]',
        "line 3: not valid JSON: the array lacks a comma",
    ),
    ("json", '[\n {"sentence": "x", "label": 1},\n {"sentence": }\n]', "line 3: not valid JSON: expecting value at"),
    ("json", "[]", "is empty"),
    ("parquet", b"PAR1", "is no readable parquet file"),
]


@pytest.mark.parametrize(("suffix", "content", "sentence"), NO_USE, ids=[case[2][:40] for case in NO_USE])
def test_a_file_that_is_of_no_use_is_diagnosed_once(tmp_path, suffix, content, sentence):
    error = failure(table(tmp_path / "d", suffix, content))
    assert sentence in error.message and len(error.details) < 2
