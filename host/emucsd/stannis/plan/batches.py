"""Batches that make up a global batch: in proportion to those that were tuned, whole numbers, within each memory."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from emucsd.stannis.errors import PlanError
from emucsd.stannis.plan.plan import Engine


def tuned(engines: Sequence[Engine]) -> list[int]:
    """Each engine's own best batch, or what its memory takes."""
    return [min(engine.batch, engine.cap or engine.batch) for engine in engines]


def equal(engines: Sequence[Engine], global_batch: int | None) -> list[int]:
    """The same batch on every engine, as plain data parallelism has it.

    :param global_batch: None: as many samples a step as ``tuned`` has
    :returns: batches that sum up to ``global_batch`` at most
    """
    wanted = (global_batch or sum(tuned(engines))) // len(engines)
    return [min([max(wanted, 1), *(engine.cap for engine in engines if engine.cap)])] * len(engines)


def shared(engines: Sequence[Engine], global_batch: int) -> list[int]:
    """Batches whose sum is ``global_batch``, in proportion to the engines' own; none below 1, none above its cap.

    Rounded by largest remainders, the first engine first.

    :raises PlanError: more engines than samples, or more samples than all memories take
    """
    if global_batch < len(engines):
        raise PlanError(f"a global batch of {global_batch} for {len(engines)} ranks; at least 1 each: leave some out")
    room = most(engines)
    if room is not None and global_batch > room:
        raise PlanError(
            f"a global batch of {global_batch}; the engines' memories take {room} together: make it smaller"
        )
    fair = _filled(engines, global_batch)
    batches = [max(int(share), 1) for share in fair]
    by_remainder = sorted(range(len(engines)), key=lambda number: batches[number] - fair[number])
    missing = global_batch - sum(batches)
    while missing:  # one round, unless caps or those that got 1 for less leave more to do
        for number in by_remainder if missing > 0 else reversed(by_remainder):
            cap = engines[number].cap
            if missing > 0 and (cap is None or batches[number] < cap):
                batches[number] += 1
                missing -= 1
            elif missing < 0 and batches[number] > 1:
                batches[number] -= 1
                missing += 1
    return batches


def most(engines: Sequence[Engine]) -> int | None:
    """The largest global batch that all memories take; None: not known of all."""
    caps = [engine.cap for engine in engines]
    return None if None in caps else sum(cap for cap in caps if cap)


def _filled(engines: Sequence[Engine], global_batch: int) -> list[Fraction]:
    """Proportional shares; what passes a cap goes to those below theirs, in proportion again."""
    shares: dict[int, Fraction] = {}
    while True:
        free = [number for number in range(len(engines)) if number not in shares]
        left, weight = global_batch - sum(shares.values()), sum(engines[number].batch for number in free)
        over = {
            number: Fraction(cap)
            for number in free
            if (cap := engines[number].cap) is not None and left * engines[number].batch > cap * weight
        }
        if not over:
            shares |= {number: Fraction(left) * engines[number].batch / weight for number in free}
            return [shares[number] for number in range(len(engines))]
        shares |= over
