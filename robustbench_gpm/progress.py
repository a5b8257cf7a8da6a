"""Progress of long work on the terminal: rate, time left, and the figures so far."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from tqdm import tqdm


class Bar(Protocol):
    """What a caller does with a bar: advance it and say how things stand."""

    def update(self, n: int) -> object:
        """Advance by n units."""
        ...

    def set_postfix_str(self, text: str) -> object:
        """Show `text` behind the bar."""
        ...


@contextmanager
def bar(title: str, total: int, unit: str, *, show: bool) -> Iterator[Bar]:
    """A bar on standard error. In a log file, where nothing can be redrawn, it writes seldom."""
    interval = 0.1 if sys.stderr.isatty() else 10.0
    with tqdm(
        total=total, desc=title, unit=unit, disable=not show, mininterval=interval, leave=True
    ) as shown:
        yield shown
