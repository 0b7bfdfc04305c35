"""The user's judge: what it says is taken at its word, and whatever goes wrong with it is said in a sentence."""

import sys
import textwrap

import pytest

from mlxzo.core.errors import ConfigError, RewardError
from mlxzo.engine.reward import Answer, Judge

ANSWERS = [
    Answer("How many?", "one two three", ("3",)),
    Answer("And now?", "", ()),
    Answer("Ünï?", "四 words\nhere", ()),
]


def judge(tmp_path, program, seconds=60.0):
    path = tmp_path / "judge.py"
    path.write_text("import json, sys, time\n" + textwrap.dedent(program))
    return Judge.of(f"{sys.executable} {path}", None, seconds)


COUNTING = """
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps({"score": len(asked["answer"].split()), "why": "words"}), flush=True)
"""


def test_each_answer_gets_its_score_in_order_and_the_program_is_started_once(tmp_path):
    with judge(tmp_path, COUNTING) as it:
        assert it.scores(ANSWERS) == [3.0, 0.0, 3.0]
        first = it._process.pid
        assert it.scores(ANSWERS[1:]) == [0.0, 3.0] and it._process.pid == first
        process = it._process
    assert process.returncode == 0


def test_more_answers_than_a_pipe_holds_do_not_block(tmp_path):
    many = [Answer("p" * 500, "word " * 100, ())] * 2000
    with judge(tmp_path, COUNTING) as it:
        assert it.scores(many) == [100.0] * 2000


@pytest.mark.parametrize(
    "program, says",
    [
        ("sys.stdin.readline(); print('no idea what to say', file=sys.stderr); sys.exit(7)", "ended with exit code 7"),
        ("sys.stdin.readline(); print('not json', flush=True); sys.stdin.read()", "answered 'not json'"),
        (
            "sys.stdin.readline(); print('{\"score\": NaN}', flush=True); sys.stdin.read()",
            "answered '{\"score\": NaN}'",
        ),
        ("sys.stdin.readline(); print('{\"score\": true}', flush=True); sys.stdin.read()", "answered"),
        ("sys.stdin.readline(); print('{\"points\": 1}', flush=True); sys.stdin.read()", "answered"),
        ("sys.stdin.readline(); print('[1]', flush=True); sys.stdin.read()", "answered"),
        ("time.sleep(600)", "gave no score within 2 s (answer 1 of 3)"),
        ("import os; os.close(1); sys.stdin.read(); time.sleep(600)", "closed its output and does not end"),
        ("sys.stdin.readline(); print('[' * 60_000, flush=True); sys.stdin.read()", "answered '[[["),
        ("sys.stdin.readline(); print(json.dumps({'score': 10**400}), flush=True); sys.stdin.read()", "answered"),
        # Each would shift the scores, or fill the memory.
        ('for line in sys.stdin: print(\'{"score": 1}\\n{"score": 2}\', flush=True)', "without being asked"),
        ("while True: print('{\"score\": 1}')", "without being asked"),
        ("while True: print('e' * 10_000, file=sys.stderr)", "gave no score within 2 s"),
    ],
)
def test_a_judge_that_fails_is_told_and_ended(program, says, tmp_path):
    # Where the time has to pass, it is enough for the program to start on a busy machine.
    with judge(tmp_path, program, seconds=2.0 if "sleep" in program or "stderr)" in program else 60.0) as it:
        with pytest.raises(RewardError) as error:
            it.scores(ANSWERS)
        assert it._process is None
    assert says in error.value.message and error.value.exit_code == 4
    details = error.value.details
    if "'e'" in program:
        # The program is killed while it writes, so its last line may be a shorter one.
        assert details[:4] == ["e" * 1000] * 4 and len(details) == 5 and details[4].ljust(1000, "e") == "e" * 1000
    else:
        assert details == (["no idea what to say"] if "exit(7)" in program else [])


def test_a_command_that_is_none_is_refused():
    with pytest.raises(RewardError, match="'no-such-program' cannot be started"):
        Judge.of("no-such-program --x", None, 1.0).scores(ANSWERS)
    with pytest.raises(ConfigError, match="no closing quotation"):
        Judge.of("python 'score.py", None, 1.0)


def test_a_function_is_a_judge_in_a_process_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "rewards.py").write_text(
        "def words(prompt, answer, gold):\n    print('thinking')\n    return len(answer.split()) / 10\n"
        "def broken(prompt, answer, gold):\n    return 1 / 0\n"
    )
    monkeypatch.chdir(tmp_path)
    with Judge.of(None, "rewards:words", 60.0) as it:
        assert it.scores(ANSWERS) == [0.3, 0.0, 0.3]
    for name, says in (("rewards:broken", "ZeroDivisionError"), ("rewards:absent", "absent"), ("nowhere:f", "nowhere")):
        with Judge.of(None, name, 60.0) as it, pytest.raises(RewardError) as error:
            it.scores(ANSWERS)
        assert says in error.value.details[-1]
    assert "rewards" not in sys.modules
