"""The user's judge: what it says is taken at its word; what goes wrong costs answers, is told, and ends the run."""

import math
import sys
import textwrap
from datetime import date

import pytest

from mlxzo.core.config import RunConfig
from mlxzo.core.errors import ConfigError, RewardError
from mlxzo.engine.reward import Answer, Judge, with_failures_lowest
from mlxzo.engine.reward_command import check_code
from tests.variants import slow

ANSWERS = [
    Answer("How many?", "one two three", ("3",)),
    Answer("And now?", "", ()),
    Answer("Ünï?", "四 words\nhere", ()),
]


def judge(tmp_path, program, seconds=60.0):
    path = tmp_path / "judge.py"
    path.write_text("import json, sys, time\n" + textwrap.dedent(program))
    return Judge.of(f"{sys.executable} {path}", None, None, seconds)


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
        ("sys.stdin.readline(); print('[1]', flush=True); sys.stdin.read()", "answered '[1]'"),
        slow("import os; os.close(1); sys.stdin.read(); time.sleep(600)", "closed its output and did not end"),
        ("sys.stdin.readline(); print('[' * 60_000, flush=True); sys.stdin.read()", "answered '[[["),
        # A line of a log, after which the reply may come.
        ("for line in sys.stdin: print('{\"points\": 1}', flush=True)", "answered '{\"points\": 1}'"),
        # Replies without a score: the program goes on.
        ("for line in sys.stdin: print('{\"score\": NaN}', flush=True)", "answered '{\"score\": NaN}'"),
        ("for line in sys.stdin: print('{\"score\": true}', flush=True)", "answered '{\"score\": true}'"),
        ("for line in sys.stdin: print(json.dumps({'score': 10**400}), flush=True)", "answered"),
        ('for line in sys.stdin: print(\'{"error": "no such word"}\', flush=True)', "said 'no such word'"),
        # Each would shift the scores, or fill the memory.
        ('for line in sys.stdin: print(\'{"score": 1}\\n{"score": 2}\', flush=True)', "without being asked"),
        ("while True: print('{\"score\": 1}')", "without being asked"),
        # More than a pipe holds, after which it ends; without an end, it is ended when its time is up.
        ("for _ in range(100): print('e' * 10_000, file=sys.stderr)\nsys.exit(7)", "ended with exit code 7"),
        ("while True: print('e' * 10_000, file=sys.stderr)", "gave no score within 0.2 s"),
    ],
)
def test_a_judge_that_never_scores_is_told_and_ended(program, says, tmp_path):
    # Where the time has to pass, no reply comes; of a program that sleeps, it must be enough for its start.
    endless = program.startswith("while True: print('e'")
    seconds = 1.0 if "sleep" in program else 0.2 if endless else 60.0
    with judge(tmp_path, program, seconds=seconds) as it:
        with pytest.raises(RewardError) as error:
            it.scores(ANSWERS * 2)
        assert it._process is None and it.judged == it.failed == 6
    assert says in error.value.message and error.value.exit_code == 4
    assert error.value.message.startswith("the judge failed on 6 of the last 6 answers; the last time it ")
    details = error.value.details
    if endless:
        # It may be killed before it has started, or while it writes a line.
        assert len(details) <= 5 and all(set(line) == {"e"} and len(line) <= 1000 for line in details)
    elif "'e'" in program:
        assert details == ["e" * 1000] * 5
    else:
        assert details == (["no idea what to say"] if "exit(7)" in program else [])


MOODY = """
    for line in sys.stdin:
        answer = json.loads(line)["answer"]
        if answer == "crash":
            sys.exit("out of ideas")
        if answer == "hang":
            time.sleep(600)
        odd = {"garbage": "mumble", "log": '{"level": "info"}\\n{"score": 1}', "nan": '{"score": NaN}'}
        print(odd.get(answer, '{"score": %d}' % len(answer)), flush=True)
"""


@pytest.mark.parametrize("mood", ["crash", slow("hang"), "garbage", "log", "nan"])
def test_an_answer_that_the_judge_fails_on_costs_its_score_alone(mood, tmp_path):
    told = []
    with judge(tmp_path, MOODY, seconds=10.0 if mood == "hang" else 60.0) as it:
        it._tell = told.append
        answers = [Answer("?", text, ()) for text in ("a", mood, "abc", "abcd")]
        found = it.scores(answers)
        assert [*found[:1], *found[2:]] == [1.0, 3.0, 4.0] and math.isnan(found[1])
        assert (it.judged, it.failed) == (4, 1) and len(told) == 1
        assert told[0].startswith(
            "the judge has failed on 1 of 4 answers" if mood == "nan" else "the judge has failed on 1 of 2"
        )
        assert ("its last words: 'out of ideas'" in told[0]) == (mood == "crash")


SLOW_AND_EARLY = """
    print('{"score": 9}', flush=True)
    for number, line in enumerate(sys.stdin):
        time.sleep(0.1 if number else 0.6)
        print('{"score": 1}', flush=True)
"""


def test_a_line_before_the_first_question_is_found_though_the_reply_it_displaced_comes_late(tmp_path):
    """Else the scores of one call, such as all of an evaluation, would be those of other answers."""
    with judge(tmp_path, SLOW_AND_EARLY) as it:
        assert all(map(math.isnan, it.scores(ANSWERS)))
        assert "without being asked" in it._last_failure[0]


def test_the_run_ends_once_more_than_half_of_the_last_answers_have_failed(tmp_path):
    good, bad = [Answer("?", "fine", ())], [Answer("?", "nan", ())]
    told = []
    with judge(tmp_path, MOODY) as it:
        it._tell = told.append
        it.scores(bad * 5)
        for _ in range(3):
            it.scores(good * 25)
            it.scores(bad * 25)
        with pytest.raises(RewardError, match="failed on 26 of the last 50 answers"):
            it.scores(bad)
    assert [text.split(",")[0] for text in told] == [
        "the judge has failed on 5 of 5 answers",
        "the judge has failed on 30 of 55 answers",
    ]


@pytest.mark.parametrize(
    "scores, counted",
    [
        ([0.5, math.nan, 1.0], [0.5, 0.0, 1.0]),
        ([-3.0, math.nan, -1.0], [-3.0, -3.0, -1.0]),
        ([math.nan], [0.0]),
        ([2.0], [2.0]),
        ([], []),
    ],
)
def test_a_failure_counts_as_the_lowest_score_and_at_most_0(scores, counted):
    assert with_failures_lowest(scores) == counted


def test_a_program_that_has_ended_between_two_calls_is_started_anew(tmp_path):
    with judge(tmp_path, "sys.stdin.readline(); print('{\"score\": 1}', flush=True)") as it:
        assert it.scores(ANSWERS[:1]) == [1.0]
        it._process.wait()
        assert it.scores(ANSWERS[:1]) == [1.0] and it.failed == 0


def test_a_command_that_is_none_is_refused_before_a_model_is_loaded(tmp_path):
    script = tmp_path / "score.py"
    script.write_text("print(1)")
    for command, says in (
        ("no-such-program --x", "there is no program 'no-such-program'"),
        (str(script), "that can be run"),
        ("python 'score.py", "no closing quotation"),
    ):
        config = RunConfig(model="m", task="custom", reward_command=command)
        with pytest.raises(ConfigError, match=says):
            check_code(config, allow_code=True)
        with pytest.raises(ConfigError, match=says):
            Judge.of(command, None, None, 1.0)


def test_a_program_that_is_gone_by_the_time_of_its_start_ends_the_run(tmp_path):
    with pytest.raises(RewardError, match="cannot be started"):
        Judge([str(tmp_path / "gone")], 1.0).scores(ANSWERS)


def test_a_function_is_a_judge_in_a_process_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "rewards.py").write_text(
        "import subprocess, sys\nprint('{\"score\": 9}')\n"
        "def words(prompt, answer, gold):\n    print('thinking')\n"
        "    subprocess.run([sys.executable, '-c', 'print(7)'])\n    return len(answer.split()) / 10\n"
        "def broken(prompt, answer, gold):\n    return 1 / 0\n"
        "def unit(prompt, answer, gold, fields):\n    return len(fields['unit'])\n"
    )
    monkeypatch.chdir(tmp_path)
    with Judge.of(None, "rewards:words", None, 60.0) as it:
        assert it.scores(ANSWERS) == [0.3, 0.0, 0.3]
    with Judge.of(None, "rewards:unit", None, 60.0) as it:
        assert it.scores([Answer("?", "", (), {"unit": "km", "day": date(2024, 2, 29)})]) == [2.0]
    for name, says in (("rewards:broken", "ZeroDivisionError"), ("rewards:absent", "absent"), ("nowhere:f", "nowhere")):
        with Judge.of(None, name, None, 60.0) as it, pytest.raises(RewardError) as error:
            it.scores(ANSWERS * 2)
        assert says in error.value.details[-1]
        # The traceback of an error is the user's code alone.
        assert not any("reward_host.py" in line or "<frozen" in line for line in error.value.details)
        assert ("cannot be loaded" in error.value.details[-1]) == (name != "rewards:broken")
    assert "rewards" not in sys.modules


HANGING = """\
name: hanging
reward:
  - kind: regex
    pattern: (a+)+b
"""


def test_the_judges_of_a_task_run_in_a_process_that_outlives_no_expression(tmp_path, monkeypatch):
    (tmp_path / "task.yaml").write_text(HANGING)
    (tmp_path / "yaml.py").write_text("raise SystemExit('not the module that was meant')")
    monkeypatch.chdir(tmp_path)
    with Judge.of(None, None, "task.yaml", 60.0) as it:
        assert it.scores([Answer("?", "aab", ())]) == [1.0]
        it._seconds = 0.2
        (hung,) = it.scores([Answer("?", "a" * 60, ())])
        it._seconds = 60.0
        assert math.isnan(hung) and it.scores([Answer("?", "aab", ())]) == [1.0]
