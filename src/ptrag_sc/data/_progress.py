"""When does a long step show a progress bar?"""

import logging
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from scvi import settings
from scvi.utils import track

DELAY = 2.0  # seconds without a bar

Item = TypeVar("Item")


def shown_if_slow(items: Iterable[Item], text: str, total: int) -> Iterator[Item]:
    """Yield items, from the third second on with a progress bar.

    ``scvi.settings.verbosity`` above ``logging.INFO`` turns it off.

    Parameters
    ----------
    items
        What is gone over.
    text
        What the bar says.
    total
        How many items there are, about.
    """
    start, done, rest = time.monotonic(), 0, iter(items)
    for item in rest:
        yield item
        done += 1
        if time.monotonic() - start > DELAY:
            break
    if done < total and settings.verbosity <= logging.INFO:
        yield from track(rest, text, total=total - done)
    else:
        yield from rest
