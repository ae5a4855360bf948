"""The order of samples: exact properties over any fleet, and over plans that follow one another in an epoch."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emucsd.stannis.errors import NoRanks, PlanError
from emucsd.stannis.plan.balancer import balance
from emucsd.stannis.plan.order import Batch, order, samples, sizes, spent, union
from emucsd.stannis.plan.plan import Asked, Engine, Plan, Pool
from emucsd.stannis.plan.replan import join, lose
from tests.unit.fleet_rig import fleets, private, public, published

Fleet = tuple[list[Engine], list[Pool]]


def planned(fleet: Fleet, draw: st.DataObject) -> Plan:
    """A plan for a fleet, by any strategy that suits it."""
    strategies: tuple[Asked, ...] = ("auto", "duplicate", "shorten")
    strategy = draw.draw(st.sampled_from(strategies))
    return balance(*fleet, seed=draw.draw(st.integers(0, 1 << 62)), strategy=strategy)


@settings(max_examples=80)
@given(fleets(), st.data())
def test_an_epoch(fleet: Fleet, draw: st.DataObject) -> None:
    """Equal steps, batches within their limits and evenly filled, quotas kept, each sample once besides the repeats."""
    plan = planned(fleet, draw)
    epoch = draw.draw(st.integers(0, 5))
    readers = {pool.name: set(pool.at) for pool in plan.pools}
    seen: Counter[tuple[str, int]] = Counter()
    for share in plan.shares:
        steps = list(order(plan, epoch, share.rank))
        assert len(steps) == plan.steps == plan.steps_in(epoch)
        assert [len(step) for step in steps] == [sizes(plan, epoch, step)[share.rank] for step in range(plan.steps)]
        assert max(map(len, steps)) <= share.batch
        assert max(map(len, steps)) - min(map(len, steps)) <= 1
        mine = Counter(sample for step in steps for sample in step)
        assert all(share.node in readers[pool] for pool, _ in mine)
        assert Counter(pool for pool, _ in mine) == Counter({name: n for name, n in share.quota.items() if n})
        assert Counter(pool for (pool, _), count in mine.items() if count == 2) == Counter(share.repeated)
        assert not mine or max(mine.values()) <= 2
        seen += mine
    assert set(seen) == {(pool.name, index) for pool in plan.pools for index in range(pool.count)}
    assert sum(seen.values()) == plan.samples


@settings(max_examples=40)
@given(fleets(), st.data())
def test_union(fleet: Fleet, draw: st.DataObject) -> None:
    """The union of each step is the ranks' batches one after the other, from any step on."""
    plan = planned(fleet, draw)
    start = draw.draw(st.integers(0, plan.steps))
    ranks = [list(order(plan, 1, rank, start)) for rank in range(plan.world)]
    expected = [[sample for rank in ranks for sample in rank[step]] for step in range(plan.steps - start)]
    assert list(union(plan, 1, start)) == expected


def test_epochs_and_seeds_differ() -> None:
    """Each epoch and each seed has an order of its own; the same ones give the same order again."""
    fleet = published(2), [public(800, ["host", "csd0", "csd1"]), private(50, "csd1")]
    plans = [balance(*fleet, seed=seed) for seed in (0, 1)]
    orders = [[tuple(samples(plan, epoch, 1).indices.tolist()) for epoch in range(3)] for plan in plans]
    assert len({one for each in orders for one in each}) == 6
    assert tuple(samples(plans[1], 2, 1).indices.tolist()) == orders[1][2]


def test_golden() -> None:
    """The order does not depend on the release of NumPy: these indices are to stay for ever."""
    plan = balance([Engine("a", 4, 1.0), Engine("b", 2, 1.0)], [public(12, ["a", "b"])], seed=3)
    assert [[index for _, index in step] for step in order(plan, 0, 0)] == GOLDEN[0]
    assert [[index for _, index in step] for step in order(plan, 0, 1)] == GOLDEN[1]


GOLDEN = ([[11, 4, 2, 9], [8, 10, 0, 7]], [[5, 6], [3, 1]])


def test_shuffled_well() -> None:
    """Samples of a pool spread evenly over the steps, and pools mix within a step."""
    plan = balance([Engine("a", 100, 1.0), Engine("b", 100, 1.0)], [public(8_000, ["a", "b"]), private(2_000, "a")])
    mine = samples(plan, 0, 0)
    share = np.array([(mine.pools[low:high] == 1).mean() for low, high in pairwise(mine.bounds.tolist())])
    assert abs(share - 0.4).max() < 0.2  # 100 samples a step: 4 standard deviations
    first = mine.indices[mine.pools == 0][:1000]
    assert abs(first.mean() - 4000) < 300
    assert abs(np.corrcoef(np.arange(len(first)), first)[0, 1]) < 0.1


def test_repeats_come_last() -> None:
    """A sample is taken a second time when its pool's share is through, not beside its first time."""
    engines = [Engine("a", 10, 1.0), Engine("b", 10, 1.0)]
    plan = balance(engines, [private(300, "a"), private(200, "b")], strategy="duplicate")
    assert plan.shares[1].repeated == {"of b": 100}
    mine = samples(plan, 0, 1).indices.tolist()
    assert sorted(mine[:200]) == list(range(200))
    assert mine[200:] == mine[:100]


def test_a_million_samples() -> None:
    """A rank of a thousand finds its part of two million samples without a loop over them."""
    csds = [f"csd{number}" for number in range(999)]
    plan = balance(published(999), [public(2_000_000, ["host", *csds]), *(private(300, node) for node in csds)])
    mine = samples(plan, 0, 500)
    assert len(mine.indices) == plan.shares[500].samples
    assert len(np.unique(mine.indices[mine.pools == 0])) == plan.shares[500].quota["public"]


# -- plans that follow one another in an epoch


def through(plan: Plan, epoch: int, steps: int) -> list[Batch]:
    """All ranks' samples of the first steps of an epoch, or of what is left of it."""
    return [step for step, _ in zip(union(plan, epoch), range(steps), strict=False)]


@settings(max_examples=80)
@given(fleets(most=5, samples=120), st.data())
def test_each_sample_once_whoever_leaves(fleet: Fleet, draw: st.DataObject) -> None:
    """Ranks leave and come back in the middle of an epoch: what the plans deal together is each sample once, but for
    private ones whose rank is away at the end."""
    engines, pools = fleet
    plan = balance(engines, pools, strategy="shorten", seed=draw.draw(st.integers(0, 99)))
    seen: Counter[tuple[str, int]] = Counter()
    for _ in range(draw.draw(st.integers(0, 4))):
        step = draw.draw(st.integers(0, plan.steps_in(2)))
        seen += Counter(sample for batch in through(plan, 2, step) for sample in batch)
        node = draw.draw(st.sampled_from([engine.node for engine in engines]))
        try:
            if node in plan.nodes:
                after = lose(plan, node, epoch=2, step=step)
            else:
                engine = next(engine for engine in engines if engine.node == node)
                brings = [pool for pool in pools if node in pool.at]
                after = join(plan, engine, brings, epoch=2, step=step)
                assert {pool.name for pool in brings} <= {pool.name for pool in after.pools}
        except NoRanks:
            return
        assert after.generation == plan.generation + 1
        assert after.progress(2, 0) == pytest.approx(plan.progress(2, step)) or step == plan.steps_in(2)
        plan = Plan.from_json(after.to_json())
        rest = [list(order(plan, 2, rank)) for rank in range(plan.world)]
        assert {len(steps) for steps in rest} == {plan.steps_in(2)}
        assert all(len(batch) <= share.batch for share, steps in zip(plan.shares, rest, strict=True) for batch in steps)
    seen += Counter(sample for batch in union(plan, 2) for sample in batch)
    there = {(pool.name, index) for pool in plan.pools for index in range(pool.count)}
    assert there <= set(seen)
    assert set(seen.values()) <= {1}
    assert sum(1 for _ in union(plan, 3)) == plan.steps


def test_spent() -> None:
    """What was trained is a few ranges of a pool's order; all of it at the end, none at the begin."""
    plan = balance(published(2), [public(1_000, ["host", "csd0", "csd1"]), private(70, "csd1")])
    assert spent(plan, 0, 0) == {}
    for step in (-1, plan.steps + 1):
        with pytest.raises(PlanError, match=f"step {step} of epoch 0, which has {plan.steps}"):
            lose(plan, "csd1", epoch=0, step=step)
    assert spent(plan, 0, plan.steps) == {"public": ((0, 1_000),), "of csd1": ((0, 70),)}
    half = spent(plan, 0, 1)
    assert len(half["public"]) <= plan.world
    assert sum(end - first for ranges in half.values() for first, end in ranges) == sum(sizes(plan, 0, 0))
    engines = [Engine(node, 10, 1.0) for node in "abc"]
    twice = balance(engines, [private(300, "a"), public(400, ["b", "c"])])
    assert twice.strategy == "duplicate"
    assert spent(twice, 0, 25) == {"of a": ((0, 250),), "public": ((0, 400),)}
    assert lose(twice, "a", epoch=0, step=25).steps_in(0) == 0  # what is left are repeats
