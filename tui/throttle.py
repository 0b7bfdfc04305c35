"""When a screen that follows a run draws again: at once where something happened, else once in a while."""

from __future__ import annotations

import time
from collections.abc import Callable


class Throttle:
    """Holds back drawings that would come too close upon each other."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic):
        """A pace of one drawing in so many seconds."""
        self._seconds, self._clock = seconds, clock
        self.reset()

    def reset(self) -> None:
        """Has the next look draw, whatever it finds."""
        self._state: object = None
        self._happened: object = None
        self._drawn = float("-inf")

    def is_due(self, state: object, happened: object) -> bool:
        """Whether to draw now.

        Args:
            state: differs whenever there is anything new to show.
            happened: the part of it that is shown without delay.
        """
        if state == self._state:
            return False
        now = self._clock()
        if happened == self._happened and now - self._drawn < self._seconds:
            return False
        self._state, self._happened, self._drawn = state, happened, now
        return True
