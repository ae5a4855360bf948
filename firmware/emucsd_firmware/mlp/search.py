"""Kernel search: the smallest kernels with which the MLPs keep up with the lookups.

Minimise sum(kr_i kc_i) over all units, subject to T_bot' <= T_emb', T_top' <= T_emb' (and the sums' part of a
decomposed layer likewise), and to the FPGA's LUT, FF, BRAM and DSP. Rules, as published: weights go to BRAM first, what
does not fit to DRAM; the mini-batch doubles, 1, 2, 4, …, until both hold: lookups take twice as long then, fetching
weights does not.

Published is a heuristic (start with large kernels and trim, neighbours kept equally long). Here each stage's *frontier*
is computed: all (time, sum of kernels) of which none is worse than another in both. Of a unit it has a point a power of
two, of a pair the points where its longer one steps, of a stage their sums. Its point at the limit is the minimum,
exactly; that resources come within the budget is checked after it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from emucsd_firmware.mlp.budget import Resources
from emucsd_firmware.mlp.kernels import Engine, Kernel, Unit, in_stage, pairs
from emucsd_wire.rm import LayerGroup

MAX_MINIBATCH = 256
MAX_POINTS = 1024  # of a frontier: a dozen layers or so have fewer, of very deep models every second one is left out


class Point(NamedTuple):
    """One way to build some units: their time for a mini-batch, the sum of their kernels, and the kernels."""

    cycles: int
    size: int
    kernels: tuple[Kernel, ...]


class Design(NamedTuple):
    """Kernels and placement of all units."""

    samples: int
    limit: int  # cycles that each stage may take
    kernels: tuple[Kernel, ...]
    dram: frozenset[int]  # units whose weights lie there
    resources: Resources

    @property
    def size(self) -> int:
        """What the search minimises."""
        return sum(kernel.kr * kernel.kc for kernel in self.kernels)


class Search:
    """One model on one engine.

    :param emb_cycles: what the lookups of a sample take
    :param budget: what all units together may take
    """

    def __init__(
        self, units: Sequence[Unit], engine: Engine, budget: Resources, emb_cycles: float, *, compose: bool
    ) -> None:
        self.units = list(units)
        self.engine = engine
        self.budget = budget
        self.emb_cycles = emb_cycles
        self.compose = compose
        self._known: dict[tuple[int, int, bool], list[Point]] = {}
        self._stages: dict[tuple[LayerGroup, int, frozenset[int]], list[Point]] = {}
        self.groups = {stage: pairs(in_stage(units, stage), compose=compose) for stage in LayerGroup}

    # ---- what a design takes ----

    def limit(self, samples: int) -> int:
        """T_emb': cycles of a mini-batch's lookups."""
        return int(samples * self.emb_cycles)

    def resources(self, kernels: Sequence[Kernel], samples: int, dram: frozenset[int]) -> Resources:
        """All units' together."""
        total = Resources()
        for place, (unit, kernel) in enumerate(zip(self.units, kernels, strict=True)):
            total += self.engine.resources(unit, kernel, samples, dram=place in dram)
        return total

    def stage_cycles(self, stage: LayerGroup, design: Design, samples: int) -> int:
        """A stage's time for ``samples`` <= the design's mini-batch; the DRAM's reads of all stages included.

        All stages read from one DRAM. The one that reads most takes at least as long as all of their reads.
        """
        chosen = [(u, k, i in design.dram) for i, (u, k) in enumerate(zip(self.units, design.kernels, strict=True))]
        own = self.engine.stage_cycles(chosen, self.groups[stage], samples)
        read = {s: sum(self.units[i].words for i in in_stage(self.units, s) if i in design.dram) for s in LayerGroup}
        if samples and read[stage] and stage == max(read, key=lambda s: read[s]):
            return max(own, self.engine.fetch(sum(read.values())))
        return own

    def cycles(self, design: Design) -> int:
        """The longest stage's time for a whole mini-batch."""
        return max(self.stage_cycles(stage, design, design.samples) for stage in LayerGroup)

    # ---- placement ----

    def placements(self, samples: int) -> Iterator[frozenset[int]]:
        """Units in DRAM: first as few words as two greedy orders find, then always one more, the largest first."""
        held = [place for place, unit in enumerate(self.units) if unit.layer >= 0]
        held.sort(key=lambda place: (self.units[place].words, place))
        least = {place: self.engine.brams(self.units[place], Kernel(1, 1), samples, dram=False) for place in held}
        others = sum(
            self.engine.brams(unit, Kernel(1, 1), samples, dram=True)
            for place, unit in enumerate(self.units)
            if place not in least
        )
        found = []
        for order in (held, held[::-1]):
            room, outside = self.budget.bram - others, []
            for place in order:
                if least[place] <= room:
                    room -= least[place]
                else:
                    outside.append(place)
            found.append(frozenset(outside))
        dram = min(found, key=self.words)
        yield dram
        for place in reversed(held):
            if place not in dram:
                dram |= {place}
                yield dram

    def words(self, dram: frozenset[int]) -> int:
        """FP32 words of the units in DRAM."""
        return sum(self.units[place].words for place in dram)

    # ---- frontiers ----

    def _points(self, place: int, samples: int, *, dram: bool) -> list[Point]:
        """A unit's frontier. Of equal ones that with fewest DSPs; then whose columns just fill a tree's II."""
        if (place, samples, dram) in self._known:
            return self._known[place, samples, dram]
        unit, best = self.units[place], dict[int, tuple[tuple[int, ...], Kernel]]()
        for kernel in unit.kernels():
            memory = self.engine.brams(unit, kernel, samples, dram=dram)
            cycles = self.engine.cycles(unit, kernel, samples, dram=dram)
            lanes, filled = (
                kernel.kr * self.engine.trees(kernel),
                max(kernel.kc, self.engine.ii) // min(kernel.kc, self.engine.ii),
            )
            key = (cycles, lanes, filled, memory)
            size = kernel.kr * kernel.kc
            if size not in best or key < best[size][0]:
                best[size] = (key, kernel)
        found = _frontier(Point(key[0], size, (kernel,)) for size, (key, kernel) in best.items())
        self._known[place, samples, dram] = found
        return found

    def _pair(self, group: tuple[int, ...], samples: int, dram: frozenset[int]) -> list[Point]:
        """A pair's frontier: for each time that one of the two may take, the smallest of each that keeps to it."""
        ways = [self._points(place, samples, dram=place in dram) for place in group]
        floor = sum(self.engine.fetch(self.units[place].words) for place in group if place in dram)
        found = []
        for cycles in {max(point.cycles, floor) for way in ways for point in way}:
            chosen = [within(way, cycles) for way in ways]
            if all(chosen):
                points = [point for point in chosen if point]
                found.append(Point(cycles, sum(p.size for p in points), tuple(p.kernels[0] for p in points)))
        return _frontier(found)

    def frontier(self, stage: LayerGroup, samples: int, dram: frozenset[int]) -> list[Point]:
        """A stage's."""
        key = (stage, samples, dram.intersection(in_stage(self.units, stage)))
        if key in self._stages:
            return self._stages[key]
        total = [Point(0, 0, ())]
        for group in self.groups[stage]:
            pair = self._pair(group, samples, dram)
            sums = (Point(a.cycles + b.cycles, a.size + b.size, a.kernels + b.kernels) for a in total for b in pair)
            total = _thinned(_frontier(sums))
        self._stages[key] = total
        return total

    # ---- designs ----

    def smallest(self, samples: int, dram: frozenset[int], *, relax: bool = False) -> Design | None:
        """The smallest kernels with this mini-batch and placement that keep to T_emb' and to the budget.

        :param relax: where none does, the least limit for which there are some (resources fall as kernels do)
        """
        least = max(self.limit(samples), self.engine.fetch(self.words(dram)))
        if not relax and (least > self.limit(samples) or least == 0 < len(self.units)):
            return None
        frontiers = {stage: self.frontier(stage, samples, dram) for stage in LayerGroup}
        if not relax:
            return self._design(frontiers, samples, dram, least)
        limits = sorted({least, *(p.cycles for points in frontiers.values() for p in points if p.cycles > least)})
        place = bisect_left(limits, True, key=lambda limit: self._design(frontiers, samples, dram, limit) is not None)
        return self._design(frontiers, samples, dram, limits[place]) if place < len(limits) else None

    def _design(
        self, frontiers: dict[LayerGroup, list[Point]], samples: int, dram: frozenset[int], limit: int
    ) -> Design | None:
        kernels: dict[int, Kernel] = {}
        for stage, points in frontiers.items():
            point = within(points, limit)
            if point is None:
                return None
            kernels |= zip(in_stage(self.units, stage), point.kernels, strict=True)
        ordered = tuple(kernels[place] for place in range(len(self.units)))
        taken = self.resources(ordered, samples, dram)
        return Design(samples, limit, ordered, dram, taken) if taken.within(self.budget) else None

    def best(self, most: int) -> Design | None:
        """The first mini-batch of 1, 2, 4, … samples with which the MLPs keep up, or else the fastest.

        :param most: samples that a mini-batch may have
        :returns: None where nothing comes within the budget
        """
        best: Design | None = None
        for bit in range(min(most, MAX_MINIBATCH).bit_length()):
            samples, found = 1 << bit, []
            for dram in self.placements(samples):
                if design := self.smallest(samples, dram):
                    return design
                found.append(self.smallest(samples, dram, relax=True))
            best = self._fastest([best, *found])
            if best and best.samples * 4 <= samples:
                break  # doubled twice for nothing: fetching weights is not what takes the time
        return best

    def uniform(self, most: int) -> Design | None:
        """As ``best``, with one square kernel for all units (cut down to each): what one builds without a search."""
        sizes = [1 << bit for bit in range(min(most, MAX_MINIBATCH).bit_length())]
        sides = [1 << bit for bit in range(17)]
        found = []
        for samples in sizes:
            for dram in self.placements(samples):
                for side in sides:
                    kernels = tuple(unit.square(side) for unit in self.units)
                    design = Design(samples, 0, kernels, dram, self.resources(kernels, samples, dram))
                    if not design.resources.within(self.budget):
                        break
                    design = design._replace(limit=max(self.cycles(design), self.limit(samples)))
                    if design.limit == self.limit(samples):
                        return design
                    found.append(design)
        return self._fastest(found)

    def _fastest(self, designs: Sequence[Design | None]) -> Design | None:
        """The one of the shortest time for a sample; a larger mini-batch only where it gains more than 1 %."""
        best: Design | None = None
        for design in filter(None, designs):
            per_sample = design.limit / design.samples
            if best is None or per_sample < 0.99 * best.limit / best.samples:
                best = design
        return best


def within(points: Sequence[Point], limit: int) -> Point | None:
    """The smallest of a frontier (ascending time) that takes at most ``limit`` cycles."""
    place = bisect_right(points, limit, key=lambda point: point.cycles)
    return points[place - 1] if place else None


def _thinned(points: list[Point]) -> list[Point]:
    """No more than MAX_POINTS, with both ends."""
    while len(points) > MAX_POINTS:
        points = [*points[:-1:2], points[-1]]
    return points


def _frontier(points: Iterator[Point] | Sequence[Point]) -> list[Point]:
    """Those than which no other is both as short and as small: times ascend, sizes descend."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cycles, p.size)):
        if not kept or point.size < kept[-1].size:
            kept.append(point)
    return kept
