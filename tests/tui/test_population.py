"""A run of evolution strategies: what the monitor shows of the members' rewards and answers."""

import dataclasses
import io

import pytest
from rich.console import Console

from mlxzo.core import events
from tests.hostile import acting
from tui.app import MlxzoApp
from tui.feed import RunFeed
from tui.panels import facts_rows
from tui.widgets.chart import Chart
from tui.widgets.text import Clipped, one_line

from .driving import drive, every_size, fills, screen_text, wait_for
from .reward_run import MEMBERS, reward_events

OPTIONS = {"task": "orders.yaml", "data": "orders", "batch_size": 16, "queries": MEMBERS // 2}


@pytest.fixture
def reward_run(make_run):
    """Makes runs that have written these events."""

    def make(told, **options):
        run = make_run(events=0, **{**OPTIONS, "objective": "reward", "name": "orders", **options})
        run.events_path.write_text("".join(events.to_json(event, 1.7e9 + n) + "\n" for n, event in enumerate(told)))
        return run

    return make


def test_rewards_spread_and_answers_of_the_members_are_shown_at_every_size(reward_run, root):
    run = reward_run(reward_events(57))

    async def scenario(pilot):
        chart = pilot.app.screen.query_one("#loss", Chart)
        async for size in every_size(pilot):
            words = ["1 Mean reward of the members", "34 % changed", "2 Validation reward"]
            words += ["eps 0.0123"] if size[0] > 80 else ["mean 0."]
            if size[0] <= 80:
                await wait_for(pilot, *words)
                await pilot.press("6")
                await wait_for(pilot, "Members at step 56")
                pilot.app.screen.set_focus(pilot.app.screen.query_one("#samples"))
                await pilot.press("f")
                words = []
            words += ["Members at step 56: reward 0.", "  best     {", "  median   Sure! Here"]
            shown = await wait_for(pilot, *words)
            assert not acting(shown.replace("\n", ""))
            await fills(pilot, size)
            if size[0] <= 80:
                await pilot.press("f")
        every, mean = chart._lines
        assert (len(every.y), every.band) == (57, None) and mean.band is not None
        # Members differ by a cosine of amplitude 0.1 around the mean of the step, which is noisier than its mean.
        assert mean.band[-1] == pytest.approx(0.1 / 2**0.5, rel=0.05)
        assert abs(every.y[1:] - every.y[:-1]).mean() > 3 * abs(mean.y[1:] - mean.y[:-1]).mean()
        await pilot.press("end")
        for text in ("Validation, before training and now", "  ? before Sure! Here is", '  ? now    {"item": "coffee"'):
            await wait_for(pilot, text)

    drive(MlxzoApp(root=str(root), run=run), scenario)


@pytest.mark.parametrize(("changed", "words"), [(0.04, "4 % changed: too few"), (0.93, "93 % changed: too many")])
def test_a_population_that_tells_nothing_is_told_in_words(reward_run, root, changed, words):
    run = reward_run(reward_events(30, changed=changed))

    async def scenario(pilot):
        async for _ in every_size(pilot):
            await wait_for(pilot, words)
        await wait_for(pilot, words + " to learn from")

    drive(MlxzoApp(root=str(root), run=run), scenario)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        (0.34, "0.0123, changes 34 % of the answers"),
        (0.05, "0.0123, changes 5 % of the answers: too few to learn from"),
    ],
)
def test_the_facts_have_the_size_of_the_population_and_what_eps_changes(reward_run, changed, text):
    feed = RunFeed(reward_run(reward_events(12, changed=changed)))
    feed.poll()
    rows = facts_rows(feed)
    assert ("population", "16 members, 256 answers a step") in rows and ("eps", text) in rows


def test_a_run_by_f1_has_shares_on_its_axis_and_none_yet_says_what_will_come(reward_run, root):
    told = [each for each in reward_events(4) if not isinstance(each, events.Evaluated | events.Samples)]
    told[1] = dataclasses.replace(told[1], objective="f1")
    run = reward_run([], objective="f1", task="squad", data=None, estimator="es")

    async def scenario(pilot):
        await wait_for(pilot, "rewards appear with the first step")
        await wait_for(pilot, "1 Mean f1 of the members")
        with run.events_path.open("a") as file:
            file.writelines(events.to_json(event, 1.7e9 + n) + "\n" for n, event in enumerate(told))
        await wait_for(pilot, "Members at step 1: f1 ")
        chart = pilot.app.screen.query_one("#loss", Chart)
        await wait_for(pilot, lambda: "%" in "".join(strip.text for strip in chart._strips or ()))

    drive(MlxzoApp(root=str(root), run=run), scenario)


def test_another_run_opened_after_it_has_its_loss_again(reward_run, make_run, root):
    first, second = reward_run(reward_events(12)), make_run(name="reviews")

    async def scenario(pilot):
        chart = pilot.app.screen.query_one("#loss", Chart)
        await wait_for(pilot, "1 Mean reward of the members")
        assert "standard deviation over the members" in chart.help
        pilot.app.open_run(second)
        await wait_for(pilot, "1 Loss", lambda: "members" not in screen_text(pilot).lower())
        assert chart.help.startswith("The objective at each step")

    drive(MlxzoApp(root=str(root), run=first), scenario)


def rendered(part: Clipped, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(part)
    return console.file.getvalue().splitlines()


def test_a_text_is_cut_to_its_lines_at_either_end():
    text = one_line("one two\nthree\x1b[31m four five")
    assert text == "one two ⏎ three�[31m four five"
    assert rendered(Clipped("one two three four", 2, label="  best "), 14) == ["  best one two", "       three…"]
    assert rendered(Clipped("one two three four", 2, label="  best "), 30) == ["  best one two three four"]
    assert rendered(Clipped("one two three four five", 1, end=True), 11) == ["…four five"]
    # A word that is longer than its lines is cut within, and wide characters count twice.
    assert rendered(Clipped("a" * 30, 2), 10) == ["a" * 10, "a" * 9 + "…"]
    assert rendered(Clipped("日本語日本語", 1), 7) == ["日本語…"]
    assert rendered(Clipped("", 1, label="  best "), 20) == ["  best "]


def test_details_of_a_run_have_the_reward_in_place_of_the_loss_and_every_row_its_own_name(reward_run, root):
    """Two rows were called `validation reward`, one to the last evaluation and one to the state kept."""
    worse = events.Evaluated("validation", "validation", 25, "reward", 0.3, 0.7, 50, None, 4.0, False)
    reward_run([*reward_events(24), worse])

    async def scenario(pilot):
        shown = await wait_for(pilot, "training reward", "0.200 -> 0.364, n = 50", "0.200 -> 0.300", "evaluations")
        assert shown.count("│ validation reward") == 1 and "loss" not in shown

    drive(MlxzoApp(root=str(root)), scenario, (200, 60))
