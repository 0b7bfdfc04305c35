"""The app: its screens and the runs that they share, themes, the command palette, and closing."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.filter import LineFilter
from textual.screen import Screen
from textual.theme import Theme

from mlxzo.core.config import RunConfig
from mlxzo.core.errors import MlxzoError
from mlxzo.core.run_directory import BEST_STATE, RunDirectory
from mlxzo.experiments.queue import run_directory
from mlxzo.runtime.resume import resume_config

from .command_line import command_line
from .feed import Replay, RunFeed
from .preferences import Preferences
from .race_runner import RaceRunner, race
from .screens.dialogs import Choice, error_dialog
from .screens.export import ExportDialog
from .screens.help import HelpDialog
from .screens.monitor import Monitor
from .screens.race import Race
from .screens.runs import Runs
from .screens.setup import Setup
from .screens.try_it import TryIt
from .themes import curve_colours, themes
from .widgets.keys import described_bindings
from .widgets.navigation import SCREENS
from .widgets.text import PrintableText

_RACE_SECONDS = 0.5
_COPY_SECONDS = 2.0
DEMO = Path(__file__).parent / "data" / "demo.jsonl"


class MlxzoApp(App[None]):
    """The terminal app of mlxzo."""

    TITLE = "mlxzo"
    CSS_PATH = "theme.tcss"
    ENABLE_COMMAND_PALETTE = True
    HORIZONTAL_BREAKPOINTS: ClassVar = [(0, "-narrow"), (100, "-normal"), (160, "-wide")]
    VERTICAL_BREAKPOINTS: ClassVar = [(0, "-short"), (34, "-tall")]
    MODES: ClassVar = {"runs": Runs, "setup": Setup, "monitor": Monitor, "race": Race, "try_it": TryIt}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f1", "help", "Help", priority=True),
        Binding("question_mark", "help", "Help", show=False),
        *(
            Binding(pressed, f"go('{mode}')", name, show=False, priority=pressed == key)
            for mode, (key, letter, name) in SCREENS.items()
            for pressed in (key, letter)
        ),
        Binding("ctrl+p", "command_palette", "Commands", priority=True),
        Binding("f12", "shoot", "Screenshot", show=False, priority=True),
        Binding("P", "shoot", "Screenshot", show=False),
        Binding("ctrl+q", "quit", "Quit", priority=True),
    ]

    def __init__(
        self,
        *,
        root: str = RunConfig.out,
        run: RunDirectory | None = None,
        demo: bool = False,
        preferences: Preferences | None = None,
    ):
        """Shows the runs in the folder `root`.

        Args:
            run: opened in the monitor at once.
            demo: plays a recorded run instead.
            preferences: None for the user's own.
        """
        self._printable = PrintableText()
        super().__init__()
        self.preferences = preferences or Preferences()
        self.root = root
        self.race: list[RunFeed] = []
        self.racing: RaceRunner | None = None
        """The last race started from Setup."""
        self.tried: RunDirectory | None = run
        """The run that Try it takes: the last one opened, by its own key or in the monitor."""
        self._to_set_up: RunConfig | None = None
        self._followed: RunFeed | Replay | None = None
        self._feeds: dict[Path, RunFeed] = {}
        self.current: RunFeed | Replay | None = Replay(DEMO) if demo else None if run is None else self.feed(run)
        for theme in themes(truecolor=self.console.color_system != "256"):
            self.register_theme(theme)
        saved = self.preferences.theme
        self.theme = saved if saved in self.available_themes else "mlxzo"

    def _save_theme(self, theme: Theme) -> None:
        self.preferences.theme = theme.name

    def get_theme_variable_defaults(self) -> dict[str, str]:
        return curve_colours(dark=self.current_theme.dark)

    def on_mount(self) -> None:
        self.theme_changed_signal.subscribe(self, self._save_theme)
        self._race_timer = self.set_interval(_RACE_SECONDS, self._watch_race, pause=True)
        self.switch_mode("monitor" if self.current is not None else "runs")

    def feed(self, run: RunDirectory) -> RunFeed:
        """Returns the feed of a run; all screens share it."""
        return self._feeds.setdefault(run.path, RunFeed(run))

    def followed(self, mode: str) -> RunFeed | Replay | None:
        """Returns the run in the header of a screen: in the monitor the open one, else one that runs or ran last."""
        if mode == "monitor":
            return self.current
        known = [feed for feed in (self.current, *self.race, *self.started_here()) if feed is not None]
        for feed in known:
            feed.poll()
        if self._followed is None or not self._followed.running:
            self._followed = next((feed for feed in known if feed.running), self._followed)
        return self._followed

    def open_run(self, run: RunDirectory) -> None:
        """Shows a run in the monitor."""
        self.current = self.feed(run)
        self.tried = run
        self.switch_mode("monitor")

    def set_up(self, config: RunConfig) -> None:
        """Shows a configuration in Setup."""
        self._to_set_up = config
        if isinstance(self.screen, Setup):
            self.screen.show_requested()
        else:
            self.switch_mode("setup")

    def set_up_again(self, run: RunDirectory) -> None:
        """Shows the configuration of a run in Setup."""
        with self.reporting():
            self.set_up(dataclasses.replace(run.config, name=None))

    def take_setup(self) -> RunConfig | None:
        """Returns the configuration that Setup was asked to show, and forgets it."""
        config, self._to_set_up = self._to_set_up, None
        return config

    def start_run(self, config: RunConfig) -> None:
        """Starts a run and shows it in the monitor."""
        with self.reporting():
            run = RunDirectory.create(config)
            self.feed(run).start()
            self.open_run(run)

    def resume_run(self, run: RunDirectory) -> None:
        """Resumes an interrupted run and shows it in the monitor."""
        with self.reporting():
            resume_config(run, {})
            self.feed(run).start(resume=True)
            self.open_run(run)

    def start_race(self, values: Mapping[str, Any]) -> None:
        """Trains the run that these options describe by each method, one after the other, and shows the race."""
        if self.running_race is not None:
            self.notify("A race is running: F5 shows it, s there stops it.", severity="warning")
            return
        with self.reporting():
            racing = RaceRunner(race(values))
            racing.start()
            self.race = []
            self.racing = racing
            self._race_timer.resume()
            self.open_race(run_directory(each.config) for each in racing.planned)
            for feed, each in zip(self.race, racing.planned, strict=True):
                feed.label = each.label

    @property
    def running_race(self) -> RaceRunner | None:
        return self.racing if self.racing is not None and self.racing.running else None

    def _watch_race(self) -> None:
        """Reports the error that ended a race."""
        # Read first: the error is set before the race ends.
        running = self.running_race
        if self.racing is not None and self.racing.problem is not None:
            problem, self.racing.problem = self.racing.problem, None
            self.report(problem)
        if running is None:
            self._race_timer.pause()

    def copy_command_of(self, run: RunDirectory) -> None:
        """Copies the command line of a run on disk."""
        with self.reporting():
            self.copy(command_line(run.config))

    def copy_to_clipboard(self, text: str) -> None:
        """Copies a text: by the terminal, and on a Mac by the system too, since its Terminal.app copies nothing."""
        super().copy_to_clipboard(text)
        if sys.platform == "darwin":
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                subprocess.run(["pbcopy"], input=text.encode(), timeout=_COPY_SECONDS, check=False)

    def copy(self, text: str) -> None:
        """Copies a text to the clipboard and shows it."""
        self.copy_to_clipboard(text)
        self.notify(text, title="Copied")

    def open_race(self, runs: Iterable[RunDirectory]) -> None:
        """Shows runs on shared axes; beside the race that this app runs, if any."""
        going_on = self.race if self.running_race is not None else []
        self.race = list(dict.fromkeys([*going_on, *(self.feed(run) for run in runs)]))
        self.switch_mode("race")

    def open_try(self, run: RunDirectory) -> None:
        """Tries the tuned model of a run."""
        self.tried = run
        self.switch_mode("try_it")

    def open_export(self, run: RunDirectory) -> None:
        """Exports the best checkpoint of a run; a dialog asks for the format."""
        if (run.path / BEST_STATE).exists():
            self.push_screen(ExportDialog(run))
        else:
            self.notify("This run has no checkpoint yet: there is nothing to export.", severity="warning")

    def forget(self, run: RunDirectory) -> None:
        """Closes a run that was deleted."""
        feed = self._feeds.pop(run.path, None)
        if self.current is feed:
            self.current = None
        if self._followed is feed:
            self._followed = None
        self.race = [other for other in self.race if other is not feed]
        if self.tried == run:
            self.tried = None

    def started_here(self) -> list[RunFeed]:
        """Returns the running runs whose workers this app supervises."""
        return [f for f in self._feeds.values() if f.supervision is not None and f.supervision.running]

    def get_line_filters(self) -> Sequence[LineFilter]:
        """The filters of everything that is shown."""
        return [*super().get_line_filters(), self._printable]

    def notify(self, message: str, **options: Any) -> None:
        """Shows a message literally: brackets in paths and errors are no markup."""
        super().notify(message, **{**options, "markup": False})

    def report(self, problem: MlxzoError) -> None:
        """Shows an error and its fix."""
        self.push_screen(error_dialog(problem))

    @contextlib.contextmanager
    def reporting(self) -> Iterator[None]:
        """Shows the error that ends its block, if any."""
        try:
            yield
        except MlxzoError as problem:
            self.report(problem)

    def action_go(self, mode: str) -> None:
        """Switches the screen, unless a dialog is open."""
        if not self.screen.is_modal:
            self.switch_mode(mode)

    def action_help(self) -> None:
        if not isinstance(self.screen, HelpDialog):
            self.push_screen(HelpDialog(self.screen, self.focused))

    def action_shoot(self) -> None:
        """Saves the screen as an SVG in the current folder."""
        name = f"mlxzo-{datetime.now():%Y%m%d-%H%M%S}.svg"
        try:
            path = self.save_screenshot(name, str(Path.cwd()))
        except OSError as error:
            self.notify(f"The screenshot could not be saved: {error.strerror}", severity="error")
        else:
            self.notify(path, title="Screenshot saved")

    async def action_quit(self) -> None:
        names = [feed.title for feed in self.started_here()]
        if (running := self.running_race) is not None:
            names.append(f"a race, {running.position()}; waiting runs do not start without this window")
        if not names:
            self.exit()
            return
        if isinstance(self.screen, Choice):
            return
        listed = "\n".join(f"  {name}" for name in names)
        self.push_screen(
            Choice(
                "Close mlxzo",
                f"Still training:\n{listed}\n\nA run continues without this window; open it again from Runs.",
                {"leave": "Leave it running", "stop": "Stop it and save", "stay": "Stay here"},
            ),
            self._close,
        )

    def _close(self, choice: str | None) -> None:
        if choice == "stop":
            supervised = (*(feed.supervision for feed in self.started_here()), self.running_race)
            running = [each for each in supervised if each is not None]
            for each in running:
                each.stop()
            self.notify("Stopping after the current step")
            self.set_interval(0.1, lambda: None if any(each.running for each in running) else self.exit())
        elif choice == "leave":
            self.exit()

    def get_system_commands(self, screen: Screen) -> Iterable[SystemCommand]:
        """Every screen, every action of the present one, and two of Textual's own commands."""
        for mode, (key, letter, name) in SCREENS.items():
            yield SystemCommand(f"Go to {name}", f"{key.upper()} or {letter}", lambda mode=mode: self.action_go(mode))
        seen: set[str] = set()
        for node, binding, tooltip in described_bindings(screen):
            action = binding.action
            if action not in seen and not action.startswith(("go(", "app.go(", "command_palette")):
                seen.add(action)
                key = self.get_key_display(binding)
                yield SystemCommand(
                    binding.description,
                    f"{tooltip} ({key})" if tooltip else f"key {key}",
                    lambda action=action, node=node: self.call_later(self.run_action, action, node),
                )
        yield SystemCommand("Screenshot", "save the screen as an SVG in the current folder (F12)", self.action_shoot)
        yield SystemCommand("Theme", "change the colours", self.action_change_theme)
