"""The app in a real terminal, by keys alone: from start to a finished run, and the tuned model tried."""

import contextlib
import os
import shutil
import subprocess
import sys
import time

import pytest

# Seconds, for machines with much else to do: of what takes a moment, and of what takes minutes.
_LONG, _VERY_LONG = 300, 3600

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")]


class Terminal:
    """A tmux server of its own with one window."""

    def __init__(self, folder, columns, lines):
        self._socket = f"mlxzo-test-{os.getpid()}"
        command = f"{sys.executable} -P -m mlxzo tui"
        self._tmux("new-session", "-d", "-x", str(columns), "-y", str(lines), "-c", str(folder), command)

    def _tmux(self, *words):
        # The size is the window's, not that of the terminal that the tests run in.
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        command = ["tmux", "-L", self._socket, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout

    def keys(self, *names):
        for name in names:
            self._tmux("send-keys", name)

    def type(self, text):
        self._tmux("send-keys", "-l", text)

    def resize(self, columns, lines):
        self._tmux("resize-window", "-x", str(columns), "-y", str(lines))

    def text(self):
        return self._tmux("capture-pane", "-p")

    def wait_for(self, holds, seconds=_LONG):
        """Waits until a text is on the screen, or something holds of what is; returns what is."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            shown = self.text()
            if holds(shown) if callable(holds) else holds in shown:
                return shown
            time.sleep(0.2)
        raise AssertionError(f"{holds!r} is not on the screen after {seconds} s:\n{self.text()}")

    def go_to(self, text, key):
        """Presses a key until the help of what has the focus begins with a text, each time when it has changed."""

        def help_line(shown):
            return shown.splitlines()[-3]

        for _ in range(30):
            before = help_line(self.text())
            if before.strip().startswith(text):
                return
            self.keys(key)
            # From button to button the line stays empty.
            with contextlib.suppress(AssertionError):
                self.wait_for(lambda shown, before=before: help_line(shown) != before, 3.0 if before.strip() else 1.0)
        raise AssertionError(f"{key} does not lead to {text!r}:\n{self.text()}")

    def close(self):
        subprocess.run(["tmux", "-L", self._socket, "kill-server"], check=False, capture_output=True)


def test_from_start_to_a_finished_run_and_the_tuned_model_by_keys_alone(tmp_path):
    terminal = Terminal(tmp_path, 120, 40)
    try:
        terminal.wait_for("There are no runs")
        terminal.keys("F3")
        terminal.wait_for("ready to start")
        # The line at the bottom says which field has the focus.
        terminal.go_to("steps: optimisation steps", "Tab")
        terminal.type("6")
        terminal.wait_for("steps               6")
        terminal.go_to("eval_every: ", "Down")
        terminal.type("3")
        terminal.wait_for("eval every          3")
        for split in ("train", "validation", "test"):
            terminal.go_to(f"{split}_examples: ", "Down")
            terminal.type("16")
            terminal.wait_for(f"{split} examples".ljust(20) + "16")
        terminal.wait_for("ready to start")
        terminal.keys("F9")
        terminal.wait_for("▶ ")
        shown = terminal.wait_for("✓ finished", _VERY_LONG)
        assert "6 steps" in shown
        for columns, lines in ((80, 24), (200, 60), (120, 40)):
            terminal.resize(columns, lines)
            terminal.wait_for(lambda shown, columns=columns: max(map(len, shown.splitlines())) == columns)
            for words in ("6 steps", "Loss", "Validation"):
                shown = terminal.wait_for(words)
            assert "Traceback" not in shown
        terminal.keys("F2")
        terminal.wait_for("by started")
        terminal.keys("t")
        terminal.wait_for("Ask both F9")
        terminal.keys("F9")
        # Two labels in each of the two panels.
        terminal.wait_for(lambda shown: shown.count(" %") >= 4, _VERY_LONG)
        terminal.keys("F2")
        terminal.wait_for("by started")
        terminal.keys("x")
        terminal.wait_for("● adapter")
        terminal.keys("Left", "Enter")
        terminal.wait_for("✓ exported", _VERY_LONG)
        assert [path.suffix for path in tmp_path.iterdir() if path.is_file()] == [".mlxzo"]
        terminal.keys("Escape")
        terminal.wait_for(lambda shown: "exported" not in shown)
        terminal.keys("C-q")
    finally:
        terminal.close()
