"""Standard streams that are closed, or whose terminal goes away: the work of a command does not depend on them."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import Any, TextIO


def prepare_streams() -> None:
    """Opens the standard streams that the command was started without, and lets the others outlive their terminal.

    Else the next file to be opened, such as a journal, would get a closed stream's descriptor, and what is printed.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free descriptor, which is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123
        elif mode == "w" and stream.isatty() and not isinstance(stream, _TerminalStream):
            setattr(sys, name, _TerminalStream(stream))


def terminals() -> list[int]:
    """The standard descriptors that are terminals. After a hangup the system no longer tells."""
    return [descriptor for descriptor in range(3) if os.isatty(descriptor)]


def silence(descriptors: Sequence[int]) -> None:
    """Connects descriptors to the null device. Safe in a signal handler."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in descriptors:
        os.dup2(null, descriptor)
    os.close(null)


class _TerminalStream:
    """A text stream to a terminal. Once that is gone, what is written is dropped."""

    def __init__(self, stream: TextIO):
        self._stream, self._terminals = stream, terminals()

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        """Silences the terminal after the error of one that hung up; raises any other."""
        if error.errno != errno.EIO:
            raise error
        silence(self._terminals)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
