"""docs/tasks.md and docs/data.md: the generated part is that of the tasks as they are, and the examples work."""

import ast
import json
import re

from bench.task_table import PAGE, page
from mlxzo.core.config import RunConfig
from mlxzo.tasks.registry import get_task, load_task, task_names
from mlxzo.tasks.reward_yaml import KINDS

TEXT = PAGE.read_text(encoding="utf-8")
DATA = PAGE.with_name("data.md").read_text(encoding="utf-8")


def test_the_generated_part_is_up_to_date():
    assert page(TEXT) == TEXT, "run `python -m bench.task_table`"
    assert all(f"| `{name}` |" in TEXT for name in task_names())


def test_the_task_in_a_file_and_its_table_are_read(tmp_path):
    (task,) = re.findall(r"```yaml\n(.*?)```", DATA, re.DOTALL)
    (table,) = re.findall(r"```\n(title,.*?)```", DATA, re.DOTALL)
    assert len(task.splitlines()) <= 20
    (tmp_path / "opinions.yaml").write_text(task)
    for split in ("train", "validation"):
        (tmp_path / f"{split}.csv").write_text(table)
    data = load_task(RunConfig(task=str(tmp_path / "opinions.yaml"), data=str(tmp_path)))
    assert [len(data.train), len(data.validation)] == [2, 2]
    assert data.task.labels == ("great", "dull")


def test_the_task_as_a_class_is_the_one_in_the_package():
    (shown,) = re.findall(r"template = (\'.*?\')\n    classes", TEXT)
    assert get_task("rte").template == ast.literal_eval(shown)
    assert json.dumps(get_task("rte").description) in TEXT


def test_the_task_with_judges_scores_as_the_page_says(tmp_path):
    (task,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "orders.yaml").write_text(task)
    reward = get_task(str(tmp_path / "orders.yaml")).reward
    (says,) = re.findall(r"Here `(.*?)` gets (\S+), the same\nwithout its count (\S+), and `(.*?)` (\S+)\.\n", TEXT)
    answers = {says[0]: says[1], '{"item": "tea"}': says[2], says[3]: says[4]}
    assert {answer: f"{reward(answer, ()):.1f}" for answer in answers} == answers
    kinds = re.findall(r"^\| `(\w+)` \|.*\|$", TEXT.split("| kind |")[1].split("\n\n")[0], re.MULTILINE)
    assert kinds == list(KINDS)
