"""The app as a process: no MLX, no terminal needed to be told so, and everything it needs in the package."""

import asyncio
import subprocess
import sys
from pathlib import Path

import tui
from tui.child import Child


def test_the_app_never_imports_mlx():
    program = (
        "import sys, tui.app, mlxzo.cli.commands.tui\n"
        "found = [name for name in sys.modules if name == 'mlx' or name.startswith(('mlx.', 'mlx_lm'))]\n"
        "print(found)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_is_printed_without_the_app():
    command = [sys.executable, "-X", "importtime", "-m", "mlxzo", "tui", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--demo" in done.stdout
    assert " textual" not in done.stderr and " mlx\n" not in done.stderr and "mlx.core" not in done.stderr


def test_without_a_terminal_it_says_what_to_use_instead():
    done = subprocess.run(
        [sys.executable, "-m", "mlxzo", "tui"], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 2 and "needs a terminal" in done.stderr and "mlxzo train" in done.stderr


def test_styles_and_recording_lie_in_the_package():
    folder = Path(tui.__file__).parent
    assert (folder / "theme.tcss").is_file() and (folder / "data" / "demo.jsonl").is_file()


def test_keys_and_paint_have_their_turn_while_answers_wait():
    """A child may write faster than its answers are read."""
    program = "for number in range(2_000): print('{}')"

    async def read(child, count):
        while await child.answer() is not None:
            count[0] += 1

    async def main():
        child = await Child.start(_command=(sys.executable, "-I", "-c", program))
        await child._process.wait()
        answers, turns = [0], 0
        reading = asyncio.create_task(read(child, answers))
        while not reading.done():
            await asyncio.sleep(0)
            turns += 1
        return answers[0], turns

    answers, turns = asyncio.run(main())
    assert answers == 2_000 and turns >= answers
