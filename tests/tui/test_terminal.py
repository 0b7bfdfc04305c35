"""The app in a real terminal, by keys alone: from start to a finished run, and the tuned model tried."""

import os
import shutil
import subprocess
import sys
import time

import pytest

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
            time.sleep(0.2)

    def type(self, text):
        self._tmux("send-keys", "-l", text)

    def resize(self, columns, lines):
        self._tmux("resize-window", "-x", str(columns), "-y", str(lines))

    def text(self):
        return self._tmux("capture-pane", "-p")

    def wait_for(self, text, seconds):
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            if text in (shown := self.text()):
                return shown
            time.sleep(0.5)
        raise AssertionError(f"{text!r} is not on the screen after {seconds} s:\n{self.text()}")

    def go_to(self, text, key):
        """Presses a key until a text is on the screen, each time when what the last one did can be seen."""
        for _ in range(20):
            before = self.text()
            if text in before:
                return
            self.keys(key)
            limit = time.monotonic() + 20
            while self.text() == before and time.monotonic() < limit:
                time.sleep(0.2)
            time.sleep(0.5)
        raise AssertionError(f"{key} does not lead to {text!r}:\n{self.text()}")

    def close(self):
        subprocess.run(["tmux", "-L", self._socket, "kill-server"], check=False, capture_output=True)


def test_from_start_to_a_finished_run_and_the_tuned_model_by_keys_alone(tmp_path):
    terminal = Terminal(tmp_path, 120, 40)
    try:
        terminal.wait_for("There are no runs", 60)
        terminal.keys("F3")
        terminal.wait_for("ready to start", 60)
        # The line at the bottom says which field has the focus.
        terminal.go_to("steps: optimisation steps", "Tab")
        terminal.type("6")
        terminal.wait_for("steps               6", 30)
        terminal.go_to("eval_every: ", "Down")
        terminal.type("3")
        terminal.wait_for("eval every          3", 30)
        terminal.wait_for("ready to start", 60)
        terminal.keys("F9")
        terminal.wait_for("▶ ", 120)
        shown = terminal.wait_for("✓ finished", 1200)
        assert "step 6 of 6" in shown
        for columns, lines in ((80, 24), (200, 60), (120, 40)):
            terminal.resize(columns, lines)
            time.sleep(1.5)
            shown = terminal.wait_for("step 6 of 6", 20)
            assert "Loss" in shown and "Validation" in shown and "Traceback" not in shown
        terminal.keys("F2")
        terminal.wait_for("✓ finished", 30)
        terminal.keys("t")
        terminal.wait_for("The customer is", 30)
        terminal.keys("F9")
        shown = terminal.wait_for("Tuned", 30)
        # Both panels go on from the last line of the prompt, which stands above them as well.
        limit = time.monotonic() + 300
        while terminal.text().count("The customer is") < 3:
            assert time.monotonic() < limit, terminal.text()
            time.sleep(1)
        terminal.keys("C-q")
    finally:
        terminal.close()
