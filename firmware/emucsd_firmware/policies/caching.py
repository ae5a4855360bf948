"""Which rows enter the lookup engine's cache of hot rows.

Asked for each row that was looked up and is not in the cache. All arguments are plain numbers:

- ``touches``: how often it was looked up lately, this time included: 1 to 255. Counted in a small table that other rows
  share, so a row that was seen long ago starts from 1 again;
- ``empty``: 1 when its set of the cache has an empty place, else 0: then the row that was not used for longest leaves;
- ``ways``: places in a set.

``admit`` is the one in force; the others are there to be bound in its place.
"""

from __future__ import annotations


def second_touch(touches: int, empty: int, ways: int) -> bool:
    """Into an empty place at once, else at the second touch.

    Most rows that a recommendation model looks up in a while are looked up once in it: admitted at the first touch they
    would only push out rows that come back.
    """
    return empty != 0 or touches >= 2


def first_touch(touches: int, empty: int, ways: int) -> bool:
    """Every row at once: plain LRU. Best where what is popular changes quickly."""
    return True


admit = second_touch
