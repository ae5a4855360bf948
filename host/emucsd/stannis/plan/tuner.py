"""The tuner: batches with which engines of unequal speed take equal time for a step. Algorithm 1 of the Stannis paper.

    Tune(newport, host, C):
        for each batch size of a list: benchmark it on Newport; keep the best and its time
        while |time_host - time_newport| > time_newport / E:
            BS_host += BS_host * (time_newport - time_host) / C
            benchmark the host with BS_host

The paper prints the condition as ``(time_host time_newport) < (time_newport / E)``: a minus sign is missing here and in
the step, and it is the condition for the loop to end.

E: "a fixed 20 % margin": with E = 4 the loop ends, coming from above, at time_host = 1.25 time_newport, where Newport
waits for 20 % of the step. Table I bears it out: the times of its four pairs are 1.25, 1.28, 1.39 and 1.27 apart, all
with the host as the slower one: its batch came down from above. That is the cheap side: a host that waits for drives
wastes ten times as much as a drive that waits for the host. So the search here starts from above: at twice the batch
that one measurement suggests.

C: seconds; it sets the grain. The default makes the last step before the margin 1/40 of the batch, whatever E is.

It ends, though measurements scatter: a batch whose step took too short bounds all further ones from below, one that
took too long or did not fit from above, and each further batch lies strictly between these whole numbers. After 32
steps by the rule the way between the bounds is halved instead: a C that is much too large costs benchmarks, not days.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import count

from emucsd.stannis.errors import DoesNotFit, MemoryExceeded, PlanError
from emucsd.stannis.plan.measured import Bench, Measured
from emucsd.stannis.plan.tuning import Trial, Tuned, Tuning

__all__ = ["BATCHES", "MARGIN", "TOLERANCE", "Bench", "Measured", "tune", "tune_all", "tune_fixed"]

# not 1: batch norm can't train on one sample whose planes have shrunk to a pixel
BATCHES = (2, 4, 8, 12, 16, 20, 25, 32, 40, 50, 64)
MARGIN = 4.0  # E
CLOSER = 10.0  # E where benchmarks are cheap against the run: at most 1/11 of a step is waited
GRAIN = 40.0
FLAT = 2  # sizes without a better rate after which a curve counts as flat
TOLERANCE = 0.05  # of the best rate, that a smaller batch may lack
BATCH_MOST = 1 << 16
_RULED = 32  # steps by the published rule
_CAP_GRAIN = 16  # the memory's limit is found to 1/16


def tune(
    newport: Bench,
    host: Bench,
    *,
    batches: Sequence[int] = BATCHES,
    margin: float = MARGIN,
    c: float | None = None,
    start: int | None = None,
    tolerance: float = TOLERANCE,
) -> Tuning:
    """Algorithm 1: Newport's best batch of a list, and the host's that takes as long.

    :param newport: the slower engine's benchmark
    :param host: the faster one's
    :param batches: Newport's list; of those within ``tolerance`` of the best rate the smallest is chosen
    :param margin: E
    :param c: C, seconds; None: 40 / E times Newport's time
    :param start: the host's first batch; None: from one measurement, so that it comes down from above
    :returns: kinds ``newport`` and ``host``
    :raises DoesNotFit: not even one sample fits an engine
    :raises PlanError: a margin or C that is not positive, no batches
    """
    run = _Run(margin, c)
    slow = run.best("newport", newport, batches, tolerance)
    fast = run.matched("host", host, slow, start)
    return run.tuning("newport", {"newport": slow, "host": fast})


def tune_all(
    benches: Mapping[str, Bench],
    *,
    batches: Sequence[int] = BATCHES,
    margin: float = CLOSER,
    c: float | None = None,
    tolerance: float = TOLERANCE,
    flat: int | None = FLAT,
    allow_missing: bool = False,
) -> Tuning:
    """Algorithm 1 for any number of kinds of engines: the slowest is Newport, each other one is a host to it.

    :param benches: kind -> benchmark; engines that are alike are one kind, measured once
    :param batches: of the slowest; the first of them is measured on all, to find out which that is
    :param flat: stop with the list after so many sizes whose rate is that of a smaller one (``tolerance``); None: never
    :param allow_missing: go on without kinds that not even one sample fits
    :raises DoesNotFit: ... or that is an error
    :raises PlanError: as ``tune``; no kind at all
    """
    run = _Run(margin, c)
    if not benches:
        raise PlanError("no engine to tune; name at least one")
    rates: dict[str, float] = {}
    for kind, bench in benches.items():
        try:
            rates[kind] = run.first(kind, bench, min(batches, default=1)).rate
        except DoesNotFit as problem:
            if not allow_missing:
                raise
            run.missing[kind] = str(problem)
    if not rates:
        raise DoesNotFit("the model fits none of the engines: " + "; ".join(run.missing.values()))
    slowest = min(rates, key=lambda kind: rates[kind])
    slow = run.best(slowest, benches[slowest], batches, tolerance, flat)
    others = {kind: run.matched(kind, benches[kind], slow) for kind in rates if kind != slowest}
    return run.tuning(slowest, {slowest: slow, **others})


def tune_fixed(benches: Mapping[str, Bench], batches: Mapping[str, int], *, allow_missing: bool = False) -> Tuning:
    """No search: each kind at the batch that the user wants, measured.

    :param allow_missing: go on without kinds that it doesn't fit
    :raises DoesNotFit: ... or that is an error
    """
    run = _Run(MARGIN, None)
    tuned = {}
    for kind, bench in benches.items():
        if run.measure(kind, bench, batches[kind], "as asked") is None:
            if not allow_missing:
                raise run.unfit(kind, batches[kind])
            run.missing[kind] = str(run.unfit(kind, batches[kind]))
            continue
        tuned[kind] = run.tuned(kind, batches[kind])
    if not tuned:
        raise DoesNotFit("the model fits none of the engines: " + "; ".join(run.missing.values()))
    return run.tuning(max(tuned, key=lambda kind: tuned[kind].seconds), tuned)


class _Run:
    """Benchmarks as they are made, and what is concluded."""

    def __init__(self, margin: float, c: float | None) -> None:
        if margin <= 0 or (c is not None and c <= 0):
            raise PlanError(f"margin E = {margin}, C = {c}; both above 0")
        self.margin, self.c = margin, c
        self.trials: list[Trial] = []
        self.points: dict[str, dict[int, Measured]] = {}
        self.passed: dict[str, MemoryExceeded] = {}
        self.missing: dict[str, str] = {}

    # -- measuring

    def measure(self, kind: str, bench: Bench, batch: int, why: str) -> Measured | None:
        """One benchmark, unless its result is known. :returns: None: the memory is too small"""
        points = self.points.setdefault(kind, {})
        if batch in points or batch >= self.ceiling(kind):
            return points.get(batch)
        try:
            found = bench(batch)
        except MemoryExceeded as problem:
            self.passed[kind] = MemoryExceeded(str(problem), batch, problem.needed, problem.limit, problem.node)
            self.trials.append(Trial(kind, batch, None, problem.needed, why))
            return None
        points[batch] = found
        self.trials.append(Trial(kind, batch, found.seconds, found.memory_bytes, why))
        return found

    def ceiling(self, kind: str) -> int:
        """The smallest batch that is known to be too large."""
        return self.passed[kind].batch if kind in self.passed else BATCH_MOST + 1

    def first(self, kind: str, bench: Bench, batch: int) -> Measured:
        """A batch, or the largest half, quarter … of it that fits. :raises DoesNotFit: not even 1"""
        found = self.measure(kind, bench, batch, "first")
        while found is None:
            if batch == 1:
                raise self.unfit(kind, 1)
            batch //= 2
            found = self.measure(kind, bench, batch, "half: memory")
        return found

    def unfit(self, kind: str, batch: int) -> DoesNotFit:
        """What to say of an engine whose memory is too small."""
        problem = self.passed[kind]
        lacking = f"; {problem.missing:,} bytes are missing" if problem.missing else ""
        return DoesNotFit(
            f"{kind}: the model with a batch of {batch} passes its memory{lacking} ({problem}); leave that engine out, "
            "or take a smaller model, image or batch",
            batch,
            problem.needed,
            problem.limit,
            problem.node or kind,
        )

    # -- searching

    def best(self, kind: str, bench: Bench, batches: Sequence[int], tolerance: float, flat: int | None = None) -> Tuned:
        """The smallest batch of a list whose rate is within ``tolerance`` of the best."""
        if not batches or min(batches) < 1:
            raise PlanError(f"batches {tuple(batches)}; at least one, each from 1")
        known = 0.0  # the best rate that was worth a larger batch
        worse = 0
        for batch in sorted(set(batches)):
            found = self.measure(kind, bench, batch, "list")
            if found is None:
                break  # larger ones won't fit either
            worse = 0 if found.rate * (1 - tolerance) > known else worse + 1
            known = known if worse else found.rate
            if worse == flat:
                break
        if not self.points[kind]:
            self.first(kind, bench, max(min(batches) // 2, 1))
        points = self.points[kind]
        enough = max(found.rate for found in points.values()) * (1 - tolerance)
        return self.tuned(kind, min(batch for batch, found in points.items() if found.rate >= enough))

    def matched(self, kind: str, bench: Bench, slow: Tuned, start: int | None = None) -> Tuned:
        """The batch whose step takes as long as ``slow``'s, within the margin."""
        target, c = slow.seconds, self._c(slow.seconds)
        batch, why = (start, "start") if start else self._above(kind, bench, slow)
        fast = (size for size, found in self.points.get(kind, {}).items() if found.seconds < target)
        low, high = max(fast, default=0), self.ceiling(kind)  # a further batch lies strictly between
        for steps in count():
            found = self.measure(kind, bench, batch, why)
            lacks = target - found.seconds if found is not None else -math.inf
            if abs(lacks) <= target / self.margin:
                return self.tuned(kind, batch)
            low, high = (batch, high) if lacks > 0 else (low, batch)
            if high - low <= 1 or (kind in self.passed and high - low <= low // _CAP_GRAIN):
                break
            if found is None or steps >= _RULED:
                wanted, why = min((low + high) // 2, 2 * batch), "half way"
            else:
                wanted, why = _moved(batch, lacks / c), "Algorithm 1"
            batch = min(max(wanted, low + 1), high - 1)
        if not self.points[kind]:
            raise self.unfit(kind, 1)
        return self.tuned(kind, min(self.points[kind], key=lambda one: abs(self.points[kind][one].seconds - target)))

    def _above(self, kind: str, bench: Bench, slow: Tuned) -> tuple[int, str]:
        """Where to start: at twice the batch that the rate at ``slow``'s own suggests."""
        found = self.first(kind, bench, slow.batch)
        if found.seconds >= slow.seconds * (1 - 1 / self.margin):
            return found.batch, "start"
        above = max(round(2 * slow.seconds * found.rate), 1)
        return min(above, self.ceiling(kind) - 1), "start, from above"

    def _c(self, target: float) -> float:
        return self.c if self.c is not None else GRAIN / self.margin * target

    # -- concluding

    def tuned(self, kind: str, batch: int) -> Tuned:
        """The conclusion for one kind."""
        points = self.points[kind]
        curve = tuple((size, points[size].seconds) for size in sorted(points))
        return Tuned(batch, points[batch].seconds, max(points) if kind in self.passed else None, curve)

    def tuning(self, slowest: str, tuned: dict[str, Tuned]) -> Tuning:
        """The conclusion for all."""
        return Tuning(slowest, tuned, tuple(self.trials), self.margin, self._c(tuned[slowest].seconds), self.missing)


def _moved(batch: int, by: float) -> int:
    """BS += BS * by, as a whole number: by 1 at least, to the half or the double at most."""
    wanted = round(batch + batch * min(max(by, -0.5), 1.0))
    return wanted if wanted != batch else batch + (1 if by > 0 else -1)
