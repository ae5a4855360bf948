"""Tables for people: columns aligned, numbers to the right."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from emucsd.stannis.plan.plan import Plan, Share

WIDTH = 110


def columns(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Rows under a head; the first ``left`` columns flush left, the others right."""
    widths = [max(len(row[number]) for row in (head, *rows)) for number in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = (
            cell.ljust(width) if number < left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join(cells).rstrip()

    return "\n".join([line(head), "  ".join("-" * width for width in widths), *map(line, rows)])


def plan_table(plan: Plan) -> str:
    """A line a rank, then the sums and the reasons."""
    private = {pool.name for pool in plan.pools if pool.private}
    head = ("node", "rank", "batch", "private", "public", "repeated", "images/s", "s/step", "waits")
    rows = [_row(plan, share, private) for share in plan.shares]
    sums = (
        f"{plan.steps} steps an epoch, global batch {plan.global_batch}, {plan.unique:,} samples"
        + (f" and {plan.samples - plan.unique:,} repeats" if plan.samples > plan.unique else "")
        + f"; predicted {plan.images_per_second:.4g} images/s, {plan.step_seconds:.3g} s a step, "
        f"{_duration(plan.epoch_seconds)} an epoch"
    )
    notes = [sums, f"{plan.strategy}: {plan.why}", *(f"{node} left out: {why}" for node, why in plan.dropped.items())]
    if plan.rest is not None:
        notes.append(
            f"epoch {plan.rest.epoch} (from 0), {plan.rest.done:.0%} done, goes on for {plan.rest.steps} steps"
        )
    return columns(head, rows) + "\n" + "\n".join(textwrap.fill(note, WIDTH) for note in notes)


def _row(plan: Plan, share: Share, private: set[str]) -> tuple[str, ...]:
    own = sum(count for name, count in share.quota.items() if name in private)
    return (
        share.node,
        str(share.rank),
        str(share.batch),
        f"{own:,}",
        f"{share.unique - own:,}",
        f"{share.samples - share.unique:,}",
        f"{share.rate:.4g}",
        f"{share.seconds:.3g}",
        f"{plan.waiting(share.rank):.0%}",
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
