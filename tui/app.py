"""The app: its places, what they share (the runs that are open), themes, commands, and how it closes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
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
from .themes import THEMES, curve_colours
from .widgets.navigation import PLACES

_RACE_SECONDS = 0.5
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
        *(Binding(key, f"go('{mode}')", name, show=False, priority=True) for mode, (key, name) in PLACES.items()),
        Binding("ctrl+p", "command_palette", "Commands", priority=True),
        Binding("f12", "shoot", "Screenshot", show=False, priority=True),
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
        """The app over the runs in the folder `root`; `run` is opened at once, `demo` plays a recorded one.

        `preferences` are those of the user where none are given.
        """
        super().__init__()
        self.preferences = preferences or Preferences()
        self.root = root
        self.current: RunFeed | Replay | None = Replay(DEMO) if demo else RunFeed(run) if run is not None else None
        self.race: list[RunFeed] = []
        self.racing: RaceRunner | None = None
        """The race that was started last from Setup."""
        self.tried: RunDirectory | None = None
        self._to_set_up: RunConfig | None = None
        self._feeds: dict[Path, RunFeed] = {}
        if run is not None:
            self._feeds[run.path] = self.current
        for theme in THEMES:
            self.register_theme(theme)
        kept = self.preferences.theme
        self.theme = kept if kept in self.available_themes else "mlxzo"

    def _keep_theme(self, theme: Theme) -> None:
        self.preferences.theme = theme.name

    def get_theme_variable_defaults(self) -> dict[str, str]:
        return curve_colours(dark=self.current_theme.dark)

    def on_mount(self) -> None:
        self.theme_changed_signal.subscribe(self, self._keep_theme)
        self._race_timer = self.set_interval(_RACE_SECONDS, self._look_after_race, pause=True)
        self.switch_mode("monitor" if self.current is not None else "runs")

    # Runs that are open

    def feed(self, run: RunDirectory) -> RunFeed:
        """The one feed of a run, however many screens show it."""
        return self._feeds.setdefault(run.path, RunFeed(run))

    def open_run(self, run: RunDirectory) -> None:
        """Shows a run in the monitor."""
        self.current = self.feed(run)
        self.switch_mode("monitor")

    def set_up(self, config: RunConfig) -> None:
        """Shows a configuration in Setup, to be changed and started."""
        self._to_set_up = config
        if isinstance(self.screen, Setup):
            self.screen.show_requested()
        else:
            self.switch_mode("setup")

    def set_up_again(self, run: RunDirectory) -> None:
        """Shows the configuration of a run in Setup."""
        try:
            self.set_up(dataclasses.replace(run.config, name=None))
        except MlxzoError as problem:
            self.report(problem)

    def take_setup(self) -> RunConfig | None:
        """The configuration that Setup was asked to show, once."""
        config, self._to_set_up = self._to_set_up, None
        return config

    def start_run(self, config: RunConfig) -> RunFeed | None:
        """Starts a run and watches it; None, and a dialog, where it cannot be started."""
        try:
            feed = self.feed(RunDirectory.create(config))
            feed.start()
        except MlxzoError as problem:
            self.report(problem)
            return None
        self.current = feed
        self.switch_mode("monitor")
        return feed

    def resume_run(self, run: RunDirectory) -> None:
        """Goes on with a run that was interrupted, and watches it; a dialog says why where that cannot be."""
        feed = self.feed(run)
        try:
            run.settle(resume_config(run, {}))
            feed.start(resume=True)
        except MlxzoError as problem:
            self.report(problem)
        else:
            self.open_run(run)

    def start_race(self, values: Mapping[str, Any]) -> None:
        """Trains the run that options describe by each method, one after the other, and shows them together."""
        if self._races:
            self.notify("A race is going on: F5 shows it, and s stops it there.", severity="warning")
            return
        try:
            racing = RaceRunner(race(values))
            racing.start()
        except MlxzoError as problem:
            self.report(problem)
            return
        self.racing = racing
        self._race_timer.resume()
        self.race = [self.feed(run_directory(each.config)) for each in racing.planned]
        for feed, each in zip(self.race, racing.planned, strict=True):
            feed.label = each.label
        self.switch_mode("race")

    def _look_after_race(self) -> None:
        """Tells why a race ended that could not go on."""
        # Asked first: what ends a race is known before it has ended.
        over = not self._races
        if self.racing.problem is not None:
            problem, self.racing.problem = self.racing.problem, None
            self.report(problem)
        if over:
            self._race_timer.pause()

    def copy_command(self, config: RunConfig) -> None:
        """Puts the command line of a run on the clipboard."""
        line = command_line(config)
        self.copy_to_clipboard(line)
        self.notify(line, title="Copied")

    def open_race(self, runs: Iterable[RunDirectory]) -> None:
        """Shows runs on shared axes."""
        self.race = [self.feed(run) for run in runs]
        self.switch_mode("race")

    def open_try(self, run: RunDirectory) -> None:
        """Prompts what a run made."""
        self.tried = run
        self.switch_mode("try_it")

    def open_export(self, run: RunDirectory) -> None:
        """Asks in which form a run's best state is to be written, and writes it."""
        if (run.path / BEST_STATE).exists():
            self.push_screen(ExportDialog(run))
        else:
            self.notify("This run has saved no state yet, so there is nothing to export.", severity="warning")

    def forget(self, run: RunDirectory) -> None:
        """Lets go of a run that was deleted."""
        feed = self._feeds.pop(run.path, None)
        if self.current is feed:
            self.current = None
        self.race = [other for other in self.race if other is not feed]
        if self.tried == run:
            self.tried = None

    def started_here(self) -> list[RunFeed]:
        """The runs whose workers this app looks after and which still go on."""
        return [f for f in self._feeds.values() if f.supervision is not None and f.supervision.running]

    def notify(self, message: str, **options: Any) -> None:
        """Shows a message as it is written: brackets in paths and errors are no markup."""
        super().notify(message, **{**options, "markup": False})

    def report(self, problem: MlxzoError) -> None:
        """Shows an error, with what to do about it."""
        self.push_screen(error_dialog(problem))

    # Actions

    def action_go(self, mode: str) -> None:
        """Goes to a place, unless a dialog waits for an answer."""
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
        if self._races:
            names.append(f"a race, {self.racing.position()}; of what waits, nothing starts without this window")
        if not names:
            self.exit()
            return
        if isinstance(self.screen, Choice):
            return
        listed = "\n".join(f"  {name}" for name in names)
        self.push_screen(
            Choice(
                "Close mlxzo",
                f"Still training:\n{listed}\n\nLeft alone, a run goes on without this window; open it again from Runs.",
                {"leave": "Leave it running", "stop": "Stop it and save", "stay": "Stay here"},
            ),
            self._close,
        )

    def _close(self, choice: str | None) -> None:
        if choice == "stop":
            going_on = [feed.supervision for feed in self.started_here()]
            if self._races:
                going_on.append(self.racing)
            for each in going_on:
                each.stop()
            self.notify("Stopping after the step in hand")
            self.set_interval(0.1, lambda: None if any(each.running for each in going_on) else self.exit())
        elif choice == "leave":
            self.exit()

    @property
    def _races(self) -> bool:
        return self.racing is not None and self.racing.running

    def get_system_commands(self, screen: Screen) -> Iterable[SystemCommand]:
        """Every place and every action of the screen, and what Textual offers."""
        for mode, (key, name) in PLACES.items():
            yield SystemCommand(f"Go to {name}", key.upper(), lambda mode=mode: self.action_go(mode))
        seen: set[str] = set()
        for node, binding, enabled, tooltip in screen.active_bindings.values():
            action = binding.action
            if (
                enabled
                and binding.description
                and action not in seen
                and not action.startswith(("go(", "app.go(", "command_palette"))
            ):
                seen.add(action)
                key = self.get_key_display(binding)
                yield SystemCommand(
                    binding.description,
                    f"{tooltip} ({key})" if tooltip else f"key {key}",
                    lambda action=action, node=node: self.call_later(self.run_action, action, node),
                )
        yield SystemCommand("Screenshot", "save the screen as an SVG in the current folder (F12)", self.action_shoot)
        yield SystemCommand("Theme", "change the colours", self.action_change_theme)
