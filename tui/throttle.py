"""Limits how often a screen that follows a run draws: at once for events, at a limited rate for steps."""

from __future__ import annotations

import time
from collections.abc import Callable


class Throttle:
    """Decides when to draw."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic):
        """At most one drawing in so many seconds, events excepted."""
        self._seconds, self._clock = seconds, clock
        self.reset()

    def reset(self) -> None:
        """Makes the next `is_due` true."""
        self._state: object = None
        self._happened: object = None
        self._drawn = float("-inf")

    def is_due(self, state: object, happened: object) -> bool:
        """True if it is time to draw.

        Args:
            state: differs whenever there is anything new to draw.
            happened: the part of it that is drawn without delay.
        """
        if state == self._state:
            return False
        now = self._clock()
        if happened == self._happened and now - self._drawn < self._seconds:
            return False
        self._state, self._happened, self._drawn = state, happened, now
        return True
