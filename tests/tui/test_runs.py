"""The list of runs: what it says of each, filters, sorts, marks, opens, deletes; and many of them."""

import fcntl
import json
import os
import shlex

from mlxzo.cli.commands import train
from mlxzo.cli.main import Parser
from mlxzo.cli.options import config_values
from mlxzo.core.config import RunConfig
from mlxzo.core.options import flag
from tui.app import MlxzoApp
from tui.command_line import command_line
from tui.widgets.grid import Grid
from tui.widgets.text import sparkline

from .driving import drive, every_size, fills, screen_text, wait_for


def test_runs_are_listed_with_status_and_figures_at_every_size(make_run, root):
    make_run(name="done", model="smollm2-135m")
    make_run(name="dead", model="qwen3-0.6b", events=100)

    async def scenario(pilot):
        async for size in every_size(pilot):
            # Of a run that has no result yet, what was measured is on validation.
            for words in ("✗ died", "✓ finished", "62.8 %", "smollm2-135m", "qwen3-0.6b", "zero-shot", "53.0 % v"):
                await wait_for(pilot, words)
            await fills(pilot, size)

    drive(MlxzoApp(root=str(root)), scenario)


def test_an_empty_folder_says_how_to_begin(root):
    async def scenario(pilot):
        shown = await wait_for(pilot, "There are no runs in", "F3", "mlxzo quickstart", "n New run")
        # Nothing is offered that needs a run; Enter sets one up.
        line = shown.splitlines()[-1]
        assert "n New run" in line and "Mark" not in line and "Try" not in line
        await pilot.press("enter")
        await wait_for(pilot, "memory cap F7")

    drive(MlxzoApp(root=str(root)), scenario, (80, 24))


def test_what_empty_screens_say_is_whole_at_80_columns(root):
    async def scenario(pilot):
        await wait_for(pilot, "There are no runs in")
        for key, box in (("f2", "#no-runs"), ("f4", "#nothing"), ("f5", "#nothing"), ("f6", "#nothing")):
            await pilot.press(key)
            await wait_for(pilot, lambda box=box: pilot.app.screen.query_one(box).region.width > 0)
            widget = pilot.app.screen.query_one(box)
            assert widget.region.right <= 80 and widget.region.bottom <= 23, key
            # The first paragraph may hold the name of a folder, which wraps.
            words = " ".join(str(widget.content).split("\n\n", 1)[1].split())
            await wait_for(pilot, lambda words=words: words in " ".join(screen_text(pilot).replace("│", " ").split()))

    drive(MlxzoApp(root=str(root)), scenario, (80, 24))


def test_details_have_the_result_in_words_curves_and_names_that_break_at_hyphens(make_run, root):
    name = "gemma-3-270m-support_desk-bp-lora-last-8-with-a-long-name-of-its-own-s2"
    make_run(name=name, memory_cap="900MB", seed=2)

    async def scenario(pilot):
        async for size in every_size(pilot):
            words = ["test accuracy", "50.7 % -> 62.8 %", "validation accuracy", "50.0 % -> 74.0 %", "loss"]
            words += ["majority class", "█", "1.4661 -> 0.6269"]
            if size[0] > 80:
                words += ["state kept", "786.8 of 900.0 MB", "7 min 27 s"]
            for each in words:
                await wait_for(pilot, each)
            await fills(pilot, size)
        await pilot.resize_terminal(120, 40)

        def lines_of_name():
            rows = [line.split("│")[-2].split() for line in screen_text(pilot).splitlines() if line.count("│") > 2]
            words = [row[-1] for row in rows if row]
            first = next((place for place, word in enumerate(words) if word.startswith("gemma-")), 0)
            return words[first : first + 3]

        await wait_for(pilot, lambda: "".join(lines_of_name()) == name)
        assert all(part.endswith(("-", "_")) for part in lines_of_name()[:-1])

    drive(MlxzoApp(root=str(root)), scenario)


def test_a_sparkline_has_the_heights_of_its_values():
    assert sparkline([0.0, 1.0], 10) == "▁█" and sparkline([2.0] * 5, 3) == "▁▁▁"
    assert sparkline(range(64), 8) == "▁▂▃▄▅▆▇█" and sparkline([], 8) == sparkline([float("nan")], 8) == ""


def test_the_first_run_of_a_folder_appears_and_takes_the_keys(make_run, root):
    async def scenario(pilot):
        await wait_for(pilot, "There are no runs in")
        make_run(name="first")
        await wait_for(pilot, "✓ finished")
        await pilot.press("space")
        await wait_for(pilot, "1 marked")

    drive(MlxzoApp(root=str(root)), scenario)


def test_the_line_of_keys_says_how_many_it_has_no_room_for_and_help_lists_them(make_run, root):
    make_run(name="one")

    async def scenario(pilot):
        shown = (await wait_for(pilot, "✓ finished")).splitlines()[-1]
        # Of keys only those that do something for this run: it has no checkpoint, and there is no batch.
        assert "c Race" in shown and "Set up again" not in shown
        assert not any(word in shown for word in ("Export", "Try", "Batch", "Resume"))
        assert int(shown.partition("Help +")[2].split()[0]) > 0
        await pilot.resize_terminal(200, 60)
        await wait_for(pilot, lambda: "Set up again" in screen_text(pilot).splitlines()[-1])
        assert "Help +" not in screen_text(pilot).splitlines()[-1]
        await pilot.press("f1")
        await wait_for(pilot, "Set up again: opens Setup with the options of this run")

    drive(MlxzoApp(root=str(root)), scenario, (80, 24))


def test_filter_open_and_come_back_by_keys_alone(make_run, root):
    make_run(name="one", model="smollm2-135m")
    make_run(name="two", model="qwen3-0.6b")

    async def scenario(pilot):
        await wait_for(pilot, "qwen3-0.6b")
        await pilot.press("slash", *"smol")
        await wait_for(pilot, "1 of 2")
        assert "qwen3-0.6b" not in screen_text(pilot)
        await pilot.press("enter", "enter")
        await wait_for(pilot, "✓ finished  120 steps")
        assert pilot.app.current.run.id == "one"
        await pilot.press("f2")
        await wait_for(pilot, "1 of 2")

    drive(MlxzoApp(root=str(root)), scenario)


def test_sorted_by_result_the_best_comes_first_and_of_losses_that_is_the_lowest(make_run, root):
    """Of losses the highest came first."""
    values = {"worse": ("loss", 3.2), "best": ("loss", 1.5), "unmeasured": None}
    for name, told in values.items():
        run = make_run(name=name, events=0)
        if told is not None:
            metric, value = told
            run.write_json("result.json", {"steps": 4, "test": {"metric": metric, "value": value}})

    async def scenario(pilot):
        await wait_for(pilot, "1.500")
        grid = pilot.app.screen.query_one(Grid)
        place = screen_text(pilot).splitlines()[grid.region.y].index("tuned") - grid.region.x
        await pilot.click(grid, offset=(place, 0))
        await wait_for(pilot, "by tuned")
        assert [path.name for path in grid.items] == ["best", "worse", "unmeasured"]

    drive(MlxzoApp(root=str(root)), scenario)


def test_open_and_sort_by_mouse_alone(make_run, root):
    make_run(name="one", model="smollm2-135m")
    make_run(name="two", model="qwen3-0.6b")

    async def scenario(pilot):
        await wait_for(pilot, "qwen3-0.6b")
        grid = pilot.app.screen.query_one(Grid)
        place = screen_text(pilot).splitlines()[grid.region.y].index("model") - grid.region.x
        await pilot.click(grid, offset=(place, 0))
        await wait_for(pilot, "by model")
        assert [path.name for path in grid.items] == ["two", "one"]
        await pilot.click(grid, offset=(5, 2))
        assert grid.item.name == "one"
        await pilot.click(grid, offset=(5, 2), times=2)
        await wait_for(pilot, "✓ finished  120 steps")
        await pilot.click("Tab:first-of-type")
        await wait_for(pilot, "by model")

    drive(MlxzoApp(root=str(root)), scenario)


def test_deleting_asks_first_and_then_deletes(make_run, root):
    run = make_run(name="one")
    make_run(name="two")

    async def scenario(pilot):
        await wait_for(pilot, "finished")
        grid = pilot.app.screen.query_one(Grid)
        await pilot.press("end" if grid.items[-1] == run.path else "home", "d")
        await wait_for(pilot, "Delete this run?")
        # The button in focus keeps it.
        await pilot.press("enter")
        assert run.path.exists()
        await pilot.press("d", "right", "enter")
        await wait_for(pilot, lambda: len(grid.items) == 1)
        assert not run.path.exists()

    drive(MlxzoApp(root=str(root)), scenario)


def test_a_run_that_was_resumed_since_the_question_is_not_deleted(make_run, root):
    run = make_run(name="one", events=100)

    async def scenario(pilot):
        await wait_for(pilot, "died")
        await pilot.press("d")
        await wait_for(pilot, "Delete this run?")
        with run.held():
            await pilot.press("right", "enter")
            await wait_for(pilot, "the run one is running")
        assert run.config.name == "one"

    drive(MlxzoApp(root=str(root)), scenario)


def test_the_command_line_of_a_run_makes_the_same_run_again():
    for values in (
        {},
        {"scope": "lora", "lr": 0.002, "steps": 50, "memory_cap": "2GB", "seed": 3},
        {"method": "bp", "scope": "lora/last-8", "train_examples": "all"},
        {"task": "my task.yaml", "update": "sgd", "queries": 4, "activation_cache": "off"},
        {"task": "orders.yaml", "objective": "reward", "scope": "norms", "pull": 0.1},
        {"task": "squad", "objective": "f1", "estimator": "spsa", "lr": 0.5},
        {"steps": 50, "patience": 10},
    ):
        config = RunConfig.from_mapping(values).resolved()
        parser = Parser()
        train.add_arguments(parser)
        words = shlex.split(command_line(config))
        assert words[:2] == ["mlxzo", "train"] and (flag("steps") in words) == ("steps" in values)
        assert RunConfig.from_mapping(config_values(parser.parse_args(words[2:]))).resolved() == config
        # A line that is short, and names nothing that follows by itself.
        assert values or words[2:] == ["--model", config.model, "--task", config.task]


def test_a_batch_tells_how_far_it_is_and_lists_its_runs_alone(make_run, root):
    make_run(name="sweep-a")
    make_run(name="sweep-b", events=100, estimator="spsa")
    make_run(name="alone")
    summary = root / "sweep" / "summary.jsonl"
    summary.parent.mkdir()
    records = [{"id": "sweep-a", "status": "finished", "seconds": 600}, {"id": "sweep-c", "status": "not run"}]
    records.append({"id": "sweep-e", "status": "does not fit", "seconds": None})
    # What is no record, or torn, is passed over.
    summary.write_text("".join(json.dumps(r) + "\n" for r in records) + '[3]\n{"status": 1}\n{"id": "sweep-d')

    async def scenario(pilot):
        await wait_for(pilot, "✓ 1 of 4 done · ✗ 2 failed · ○ 1 waiting")
        grid = pilot.app.screen.query_one(Grid)
        assert len(grid.items) == 3
        await pilot.press("b")
        await wait_for(pilot, "2 of 3 ·")
        assert {path.name for path in grid.items} == {"sweep-a", "sweep-b"}
        await wait_for(pilot, "✗ died        b  ")
        # A worker takes up the run that had died, at step 31 of 300: with the one that waits, 1.9 runs of 600 s each.
        with (root / "sweep-b" / "worker.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            os.utime(root / "sweep-b" / "events.jsonl")
            await wait_for(pilot, "▶ 1 running · ○ 1 waiting")
            await wait_for(pilot, "about 19 min left")
        await pilot.press("b")
        await wait_for(pilot, lambda: len(grid.items) == 3)

    drive(MlxzoApp(root=str(root)), scenario)


def test_a_thousand_runs_are_listed_and_moved_through(make_run, root):
    """How fast: `python -m bench.tui`."""
    first = make_run(name="first")
    for number in range(1000):
        folder = root / f"copy-{number:04d}"
        folder.mkdir()
        for name in ("config.yaml", "result.json"):
            os.link(first.path / name, folder / name)

    async def scenario(pilot):
        await wait_for(pilot, "✓ finished")
        grid = pilot.app.screen.query_one(Grid)
        await wait_for(pilot, lambda: len(grid.items) == 1001)
        before = screen_text(pilot)
        await pilot.press(*["pagedown"] * 5)
        await wait_for(pilot, lambda: screen_text(pilot) != before)
        await pilot.press("end")
        await wait_for(pilot, lambda: grid.item == grid.items[-1])

    drive(MlxzoApp(root=str(root)), scenario)


def test_timers_that_fire_while_the_app_closes_do_nothing(root):
    """The app ended with an error where a file was to be looked at again just then."""
    app, looks = MlxzoApp(root=str(root)), []

    async def scenario(pilot):
        for key, name in (("f2", "_refresh_if_seen"), ("f3", "_check_changed_files")):
            await pilot.press(key)
            await wait_for(pilot, lambda name=name: hasattr(app.screen, name))
            looks.append(getattr(app.screen, name))

    drive(app, scenario)
    assert len(looks) == 2
    for look in looks:
        look()
