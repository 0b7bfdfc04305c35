"""Setting up a run: the form follows the options' one definition, and Start says why it is disabled."""

from pathlib import Path

import pytest
import yaml
from textual.widgets import Button, Input

from mlxzo.core.config import RunConfig, options
from mlxzo.memory.components import Component
from mlxzo.memory.forecast import forecast
from mlxzo.tasks.registry import load_task
from tests.tiny import tiny_folder
from tui.app import MlxzoApp
from tui.planning import predict, sizes
from tui.screens.setup import Setup
from tui.setup_check import check, preview
from tui.widgets.cap import CapSlider, PeakBar, round_sizes, with_small_ones_merged
from tui.widgets.form import Field, Pick

from .driving import drive, every_size, fills, screen_text, wait_for


def setup(root, scenario):
    async def begin(pilot):
        await pilot.press("f3")
        await wait_for(pilot, "ready to start")
        return await scenario(pilot)

    return drive(MlxzoApp(root=str(root)), begin)


def test_models_plan_and_start_are_in_view_at_every_size(root):
    async def scenario(pilot):
        async for size in every_size(pilot):
            pilot.app.screen.query_one("#model-list").focus()
            for words in ("smollm2-135m", "Task · reviews", "memory cap", "weights", "predicted peak", "Start F9"):
                await wait_for(pilot, words)
            # The keyboard alone reaches the options.
            await pilot.press(*["tab"] * 5)
            await wait_for(pilot, "steps")
            await fills(pilot, size)

    setup(root, scenario)


def test_every_option_can_be_set_on_the_screen_and_f1_explains_it(root):
    async def scenario(pilot):
        fields = {field.name_of_option: field for field in pilot.app.screen.query(Field)}
        # The rest has a place of its own: lists, the field of the data folder, the cap, the folder of the app.
        elsewhere = {"model", "task", "data", "memory_cap", "out"}
        # The app starts runs in one process.
        elsewhere |= {f.name for f in options() if f.metadata["option"].group == "ranks"}
        assert set(fields) == {f.name for f in options()} - elsewhere
        for f in options():
            if f.name in fields:
                assert f.metadata["option"].help in fields[f.name].help
        assert pilot.app.screen.values() == {"model": "smollm2-135m", "task": "reviews", "out": str(root)}
        pilot.app.screen.query_one("#value-eps", Input).focus()
        await pilot.press("f1")
        await wait_for(pilot, "─ Help ─", "perturbation scale")
        await pilot.press("escape")
        await wait_for(pilot, "Plan")

    setup(root, scenario)


def test_values_are_set_by_keys_and_mouse_and_a_wrong_one_disables_start_and_says_why(root):
    async def scenario(pilot):
        steps = pilot.app.screen.query_one("#value-steps", Input)
        start = pilot.app.screen.query_one("#start", Button)
        steps.focus()
        await pilot.press(*"-5")
        await wait_for(pilot, "✗ steps: expected")
        assert start.disabled
        await wait_for(pilot, "✗ expected a")
        await pilot.press("f9")
        assert isinstance(pilot.app.screen, Setup)
        await pilot.press("backspace", "backspace", *"20")
        await wait_for(pilot, "ready to start")
        assert not start.disabled and pilot.app.screen.values()["steps"] == "20"
        # By mouse alone.
        await pilot.click("#value-method", offset=(12, 0))
        await wait_for(pilot, "Backpropagation")
        assert pilot.app.screen.query_one("#value-method", Pick).value == "bp"
        slider = pilot.app.screen.query_one(CapSlider)
        await pilot.click(slider, offset=(slider.size.width // 2, 0))
        assert pilot.app.screen.values()["memory_cap"] == pilot.app.screen.query_one("#cap", Input).value != ""

    setup(root, scenario)


def test_the_cap_moves_the_fit_of_every_model_and_refuses_what_cannot_fit(root):
    async def scenario(pilot):
        assert not any("smollm2" in line and "✗" in line for line in screen_text(pilot).splitlines())
        pilot.app.screen.query_one("#cap", Input).focus()
        await pilot.press(*"400MB")
        await wait_for(pilot, "needs a cap of")
        assert pilot.app.screen.query_one("#start", Button).disabled
        # What would fit is a button each, and a digit.
        shown = await wait_for(pilot, "1  model smollm2-135m-4bit", "2  memory cap")
        assert "--" not in shown
        # The marks of all models follow a moment later.
        await wait_for(pilot, lambda: (_fits(pilot, "smollm2-135m "), _fits(pilot, "smollm2-135m-4bit ")) == ("✗", "✓"))
        # The slider and the field are one.
        slider = pilot.app.screen.query_one(CapSlider)
        place = slider.place
        slider.focus()
        await pilot.press("right")
        assert slider.place == place + 1
        await wait_for(pilot, "260 MB")
        await pilot.press("1")
        await wait_for(pilot, "ready to start")
        assert pilot.app.screen.values()["model"] == "smollm2-135m-4bit"
        await pilot.press("end")
        await wait_for(pilot, "ready to start")
        assert pilot.app.screen.query_one("#cap", Input).value == ""

    setup(root, scenario)


def _fits(pilot, model):
    """The mark in a model's line of the list, whose frame ends the line; '' while there is none."""
    line = next(line for line in screen_text(pilot).splitlines() if model in line and "│" in line)
    return next((character for character in line.split("│")[1] if character in "✓✗"), "")


def test_problems_of_own_data_are_shown_by_line(root, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_text('{"text": "good", "label": "yes"}\n{"text": "bad", "label": "no"}\nnot json\n')
    (data / "validation.jsonl").write_text('{"text": "fine", "label": "yes"}\n')

    async def scenario(pilot):
        screen = pilot.app.screen
        screen.query_one("#task-list").focus()
        await pilot.press("end")
        shown = await wait_for(pilot, "has no rows of its own")
        assert "--data" not in shown and "in the field above" in " ".join(shown.replace("│", " ").split())
        screen.query_one("#data", Input).focus()
        screen.query_one("#data", Input).value = str(data)
        await wait_for(pilot, "line 3", "not valid JSON", lambda: screen.query_one("#start", Button).disabled)
        # A file that was corrected is read again by itself.
        (data / "train.jsonl").write_text('{"text": "good", "label": "yes"}\n{"text": "bad", "label": "no"}\n')
        shown = await wait_for(pilot, "2 training, 1 validation", "answers: no / yes")
        assert "Task custom" not in shown
        # With another task their labels are wrong, and one key takes them for what they are.
        screen.query_one("#task-list").focus()
        await pilot.press("home")
        await wait_for(pilot, "^t Task custom")
        assert screen.query_one("#start", Button).disabled
        await pilot.press("ctrl+t")
        await wait_for(pilot, "answers: no / yes")
        assert screen.values()["task"] == "custom" and "Task custom" not in screen_text(pilot)

    setup(root, scenario)


TICKETS = """\
name: tickets
template: |
  {subject}
  {body}
  Urgent?
labels: {high: yes, low: no}
label_field: priority
"""
ROWS = "subject,body,priority\nHelp,It burns,high\nThanks,All is well,low\n"


@pytest.fixture
def tickets(tmp_path, monkeypatch):
    """A task of one's own in the current folder: tickets.yaml, and its rows in rows/."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tickets.yaml").write_text(TICKETS)
    (tmp_path / "rows").mkdir()
    for split in ("train", "validation"):
        (tmp_path / "rows" / f"{split}.csv").write_text(ROWS)
    return tmp_path


async def _name_by_keys(pilot, task, data):
    """From the list of models to the file of a task and the folder of its rows, by keys alone."""
    pilot.app.screen.query_one("#model-list").focus()
    await pilot.press("tab", "tab", *task, "tab", *data)


def test_a_task_of_ones_own_is_set_up_and_trained_by_keys_alone(root, tickets, fake_workers):
    fake_workers("emit('phase', phase='train')\nfor i in range(1, 10): step(i)\nfinish()")
    task, rows = tickets / "tickets.yaml", tickets / "rows" / "train.csv"
    task.write_text(TICKETS.replace("label_field", "labels_field"))
    rows.write_text(ROWS + "Again,No end,perhaps\n")

    async def scenario(pilot):
        await _name_by_keys(pilot, "tickets.yaml", "")
        # What is wrong with either file is told by line, the task's first; Start waits for both.
        await wait_for(pilot, "line 7: no such key", "'labels_field'; did you mean")
        task.write_text(TICKETS)
        await pilot.press("shift+tab", *"tickets.yaml", "tab", *"rows")
        await wait_for(pilot, "line 4: ", "'perhaps'", lambda: pilot.app.screen.query_one("#start", Button).disabled)
        rows.write_text(ROWS)
        await pilot.press("backspace", "s")
        await wait_for(pilot, "ready to start")
        for words in ("Task · tickets.yaml", "2 training, 2 validation", "answers: yes / no"):
            await wait_for(pilot, words)
        await pilot.press("f9")
        await wait_for(pilot, "✓ finished")
        config = pilot.app.current.run.config
        assert (Path(config.task).name, Path(config.data).name) == ("tickets.yaml", "rows")
        # Set up again, both are there; a task of the list takes the place of the file.
        pilot.app.set_up_again(pilot.app.current.run)
        await wait_for(pilot, "Task · tickets.yaml")
        pilot.app.screen.query_one("#task-list").focus()
        await pilot.press("down")
        await wait_for(pilot, lambda: pilot.app.screen.values()["task"] == "support_desk")

    setup(root, scenario)


@pytest.mark.slow
@pytest.mark.variant
def test_a_task_of_ones_own_trains_a_tiny_model(root, tickets):
    model = tiny_folder(tickets / "model")

    async def scenario(pilot):
        pilot.app.set_up(RunConfig(model=str(model), scope="norms", steps=4, eval_every=2, batch_size=2))
        await _name_by_keys(pilot, "tickets.yaml", "rows")
        await wait_for(pilot, "Task · tickets.yaml")
        await wait_for(pilot, "ready to start")
        await pilot.press("f9")
        await wait_for(pilot, "✓ finished", seconds=600)
        assert pilot.app.current.history.loaded.task == "tickets"
        assert pilot.app.current.history.steps["step"].tolist() == [1, 2, 3, 4]

    setup(root, scenario)


def test_the_cap_has_a_key_defaults_are_values_and_small_components_are_one(root):
    """In the fields stood `as many as the`, `by method, scop` and `1e+07`."""

    def part(name, size):
        return Component(name, size, "")

    parts = [part("runtime", 500), part("weights", 480), part("heap", 5), part("saving", 15)]
    merged = with_small_ones_merged(parts)
    assert [(each.name, each.bytes) for each in merged] == [("runtime", 500), ("weights", 480), ("other", 20)]
    # One small component is no clearer under another name.
    assert with_small_ones_merged(parts[:3]) == parts[:3]

    async def scenario(pilot):
        screen = pilot.app.screen
        # From the task the keyboard goes to the cap, and a key goes there from anywhere.
        screen.query_one("#data").focus()
        await pilot.press("tab")
        assert isinstance(screen.focused, CapSlider)
        for origin, key in (("#value-lr", "f7"), ("#model-list", "L")):
            screen.query_one(origin).focus()
            await pilot.press(key)
            assert isinstance(screen.focused, CapSlider)
        await wait_for(pilot, "260 MB")
        # The mark of the answer in the example is on the word alone.
        example = check(screen.values())
        marked = [preview(example).plain[span.start : span.end] for span in preview(example).spans[-1:]]
        assert "…" not in preview(example).plain
        assert marked == [example.data.train[0].candidates[example.data.train[0].target].strip()]
        # Components.
        await wait_for(pilot, "other", "134.5M parameters,")
        bar = screen.query_one(PeakBar)
        assert len({(bar.mark(each).plain, bar.mark(each).style) for each in merged}) == 3
        assert bar.mark(part("weights", 1)) == bar.mark(part("weights", 9))
        # Defaults fit beside the cursor, as numbers have all their digits.
        for field in screen.query(Field):
            if isinstance(field.control, Input):
                room = field.control.size.width
                assert not room or len(field.control.placeholder) < room, field.name_of_option
        assert screen.query_one("#value-steps", Input).placeholder == "no limit"
        assert screen.query_one("#value-queries", Input).placeholder == "32"
        pilot.app.set_up(RunConfig(lr=0.0012345678, max_seconds=1e7))
        assert screen.query_one("#value-lr", Input).value == "0.0012345678"
        assert screen.query_one("#value-max_seconds", Input).value == "10000000"

    setup(root, scenario)


def test_saved_options_come_back_and_a_broken_file_is_a_dialog(root, tmp_path):
    path = tmp_path / "run.yaml"

    async def scenario(pilot):
        pilot.app.set_up(RunConfig(scope="lora", lr=0.003, memory_cap="2GB", train_examples=None))
        await wait_for(pilot, lambda: pilot.app.screen._checked.config and pilot.app.screen._checked.config.lr == 0.003)
        await pilot.press("ctrl+s")
        pilot.app.screen.query_one(Input).value = str(path)
        await pilot.press("enter")
        await wait_for(pilot, "Saved")
        saved = yaml.safe_load(path.read_text())
        assert (saved["scope"], saved["lr"], saved["memory_cap"], saved["train_examples"]) == (
            "lora",
            0.003,
            "2GB",
            None,
        )
        # A file that is there already is not replaced unasked.
        path.write_text("stepz: 3\n")
        await pilot.press("ctrl+s", "enter")
        await wait_for(pilot, "There is such a file already")
        await pilot.press("enter")
        assert path.read_text() == "stepz: 3\n"
        # What was saved last is suggested.
        await pilot.press("ctrl+o")
        assert pilot.app.screen.query_one(Input).value == str(path)
        await pilot.press("enter")
        await wait_for(pilot, "did you mean steps?", "What to do")

    setup(root, scenario)


def test_options_that_do_not_fit_or_name_nothing_are_refused_with_a_reason(root):
    assert "did you mean" in check({"model": "smolm2-135m", "out": str(root)}).reason
    assert check({"scope": "nrms", "out": str(root)}).reason
    assert check({"memory_cap": "10MB", "out": str(root)}).reason
    assert check({"memory_cap": "2GB", "out": str(root)}).reason == ""


def test_sizes_of_the_slider_rise_to_the_machine_s_memory():
    sizes = round_sizes(24 * 10**9)
    assert sizes == sorted(set(sizes)) and sizes[0] < 300 * 10**6 and sizes[-1] == 24 * 10**9


@pytest.mark.parametrize("method", ["mezo", "bp"])
def test_the_prediction_is_that_of_the_command_line(method):
    config = RunConfig(model="gemma-3-270m", method=method, memory_cap="2GB").resolved()
    shown = predict(config, config.model, sizes(load_task(config), config))
    assert shown.footprint_bytes == forecast(config, None).footprint_bytes


def test_judges_of_a_task_are_shown_and_prompts_alone_need_them(root, tmp_path):
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text('{"prompt": "one two"}\n')
    task = tmp_path / "task.yaml"
    task.write_text("name: own\nreward:\n  - {kind: length, most: 3}\n")
    values = {"task": str(task), "data": str(tmp_path), "out": str(root)}
    assert "which the objective loss needs" in check(values).reason
    checked = check({**values, "objective": "reward"})
    assert checked.reason == "" and preview(checked).plain.endswith("judged by: length (most 3)\none two …")
