"""Which block garbage collection empties next: the one with the highest score among a die's full blocks.

All arguments are plain numbers:

- ``valid``: pages of the block that are still needed and would have to be copied; less than ``pages``;
- ``pages``: of a block;
- ``age``: host pages written since the block's newest data was new;
- ``erases``: of the block so far.

``gc_score`` is the one in force; the others are there to be bound in its place.
"""

from __future__ import annotations


def greedy(valid: int, pages: int, age: int, erases: int) -> float:
    """The block that costs least to empty. Best where every page is as likely to be overwritten as any other."""
    return float(pages - valid)


def cost_benefit(valid: int, pages: int, age: int, erases: int) -> float:
    """Space gained for pages copied, times how long the block has been left alone (the log-structured file system's).

    An old block's other pages will hardly die soon: it is worth emptying now. A young one is worth waiting for.
    """
    return (pages - valid) * (age + 1.0) / (valid + 1.0)


gc_score = greedy
