"""The balancer: Eq. 1 under any reach, exact; strategies and their predicted rates; plans without and with a rank."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations, product

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from emucsd.stannis.errors import NoRanks, PlanError
from emucsd.stannis.plan import batches as batch_sizes
from emucsd.stannis.plan.balancer import balance
from emucsd.stannis.plan.flow import Flow
from emucsd.stannis.plan.order import sizes
from emucsd.stannis.plan.plan import Engine, Plan, Pool
from emucsd.stannis.plan.replan import join, lose, replan
from emucsd.stannis.plan.spread import spread
from tests.unit.fleet_rig import fleets, private, public, published

Case = tuple[list[int], list[list[int]], list[int]]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Pools' counts, who reads them, ranks' batches."""
    ranks = draw(st.integers(1, 5))
    reach = draw(st.lists(st.lists(st.integers(0, ranks - 1), min_size=1, unique=True), min_size=1, max_size=7))
    counts = draw(st.lists(st.integers(0, 60), min_size=len(reach), max_size=len(reach)))
    return counts, reach, draw(st.lists(st.integers(1, 12), min_size=ranks, max_size=ranks))


# -- who gets how many


@settings(max_examples=150)
@given(cases())
def test_every_sample_is_dealt_once(case: Case) -> None:
    """Each pool is dealt whole, to ranks that read it."""
    counts, reach, batches = case
    quotas = spread(counts, reach, batches).quotas
    for pool, count in enumerate(counts):
        dealt = {rank: quota[pool] for rank, quota in enumerate(quotas) if pool in quota}
        assert sum(dealt.values()) == count
        assert set(dealt) <= set(reach[pool])
        assert all(samples > 0 for samples in dealt.values())


@settings(max_examples=150)
@given(cases())
def test_fewest_steps(case: Case) -> None:
    """No deal needs fewer steps: Hall's bound, taken over all sets of ranks, is met."""
    counts, reach, batches = case
    bound = 0
    for size in range(1, len(batches) + 1):
        for ranks in combinations(range(len(batches)), size):
            samples = sum(count for count, readers in zip(counts, reach, strict=True) if set(readers) <= set(ranks))
            bound = max(bound, -(-samples // sum(batches[rank] for rank in ranks)))
    deal = spread(counts, reach, batches)
    assert deal.steps == bound
    assert all(sum(quota.values()) <= bound * batch for quota, batch in zip(deal.quotas, batches, strict=True))


@settings(max_examples=150)
@given(cases())
def test_fairest(case: Case) -> None:
    """Within a group ranks have batch * steps (Eq. 1) to less than a sample; no pool could go to a rank with fewer."""
    counts, reach, batches = case
    deal = spread(counts, reach, batches)
    level: dict[int, Fraction] = {}
    for group in deal.groups:
        for rank in group.ranks:
            level[rank] = group.steps
            assert abs(sum(deal.quotas[rank].values()) - batches[rank] * group.steps) < 1
    assert sorted(level) == list(range(len(batches)))
    for rank, quota in enumerate(deal.quotas):
        for pool in quota:
            assert all(level[other] >= level[rank] for other in reach[pool])


def test_eq_1() -> None:
    """Where all read all, each rank's share is its batch times the same steps, as Eq. 1 has it."""
    assert spread([9150], [[0, 1, 2]], [315, 25, 575]).quotas == ({0: 3150}, {0: 250}, {0: 5750})


def test_a_pool_that_nobody_reads() -> None:
    """Samples are not lost in silence: a pool without readers is an error, unless it is empty."""
    assert spread([4, 0], [[0], []], [2]).quotas == ({0: 4},)
    with pytest.raises(PlanError, match="pool 1 of 2 has 3 samples"):
        spread([4, 3], [[0], []], [2])


@settings(max_examples=60)
@given(cases(), st.lists(st.integers(0, 60), min_size=5, max_size=5))
def test_flow_is_a_minimum_cut(case: Case, more: list[int]) -> None:
    """What flows is what the tightest set of pools lets through, also after capacities were raised."""
    counts, reach, capacities = case
    flow = Flow(counts, reach, capacities)
    for _ in range(2):
        whole = flow.push()
        cuts = (
            sum(count for pool, count in enumerate(counts) if not kept[pool])
            + sum(capacities[rank] for rank in {r for pool, ranks in enumerate(reach) if kept[pool] for r in ranks})
            for kept in product((False, True), repeat=len(counts))
        )
        sent = sum(sum(ways.values()) for ways in flow.placed())
        assert sent == min(cuts)
        assert whole == (sent == sum(counts))
        for rank, extra in enumerate(more[: len(capacities)]):
            flow.widen(rank, extra)
            capacities[rank] += extra


# -- batches


@settings(max_examples=60)
@given(fleets(most=3), st.integers(1, 24))
def test_batches_of_the_shortest_step(fleet: tuple[list[Engine], list[Pool]], wanted: int) -> None:
    """A global batch is met exactly within all memories, and no other division has a shorter slowest step."""
    engines = fleet[0]
    room = batch_sizes.most(engines)
    if wanted < len(engines) or (room is not None and wanted > room):
        with pytest.raises(PlanError, match=f"global batch of {wanted}"):
            batch_sizes.fastest(engines, wanted)
        return
    found = batch_sizes.fastest(engines, wanted)
    assert sum(found) == wanted
    every = (
        batches
        for batches in product(*(range(1, min(wanted, engine.cap or wanted) + 1) for engine in engines))
        if sum(batches) == wanted
    )
    best = min(max(one.seconds(batch) for one, batch in zip(engines, each, strict=True)) for each in every)
    assert all(1 <= batch <= (one.cap or wanted) for one, batch in zip(engines, found, strict=True))
    assert max(one.seconds(batch) for one, batch in zip(engines, found, strict=True)) == pytest.approx(best)


def test_overheads_count() -> None:
    """An engine that pays a second for every step gets less than its rate alone would give it."""
    engines = [Engine("a", 100, 100 / 2, curve=((1, 1.01),)), Engine("b", 100, 100 / 1)]  # 1 s + b / 100, b / 100
    assert batch_sizes.fastest(engines, 200) == [50, 150]


def test_the_last_sample_goes_where_there_is_room() -> None:
    """What rounding leaves over does not go to an engine that is full."""
    engines = [Engine("a", 5, 5.0, memory_limit_batch=5), Engine("b", 5, 5.0), Engine("c", 5, 5.0)]
    assert batch_sizes.fastest(engines, 16) == [5, 6, 5]


# -- plans


def test_published_fleet() -> None:
    """The paper's fleet: 72,000 public and 12,000 private images, host and 24 drives: all ranks end together."""
    csds = [f"csd{number}" for number in range(24)]
    pools = [public(72_000, ["host", *csds]), *(private(500, node) for node in csds)]
    plan = balance(published(24), pools, seed=1)
    assert (plan.steps, plan.global_batch, plan.strategy) == (92, 915, "public")
    assert [share.unique for share in plan.shares] == pytest.approx(
        [315 * 84_000 / 915, *[25 * 84_000 / 915] * 24], abs=1
    )
    assert all(share.quota[f"of {share.node}"] == 500 for share in plan.shares[1:])
    assert plan.images_per_second == pytest.approx(915 / (315 / 31.05), rel=1e-3)
    assert plan.waiting(0) == pytest.approx(0)
    assert plan.waiting(1) == pytest.approx(0.2, abs=0.01)  # the paper's margin


@settings(max_examples=60)
@given(fleets(), st.sampled_from([None, 40]))
def test_prediction_is_the_sum_of_steps(fleet: tuple[list[Engine], list[Pool]], global_batch: int | None) -> None:
    """The predicted rate is what adding up each step's slowest rank gives, to the rounding of batches."""
    try:
        plan = balance(*fleet, global_batch=global_batch, sync_seconds=0.1)
    except PlanError:
        return  # the memories don't take it
    engines = [next(one for one in plan.engines if one.node == share.node) for share in plan.shares]
    seconds = sum(
        max(one.seconds(count) for one, count in zip(engines, sizes(plan, 0, step), strict=True)) + 0.1
        for step in range(plan.steps)
    )
    grain = max(one.seconds(1) for one in engines)
    assert plan.epoch_seconds == pytest.approx(seconds, abs=plan.steps * grain + 1e-9)
    assert plan.images_per_second == pytest.approx(plan.samples / plan.epoch_seconds)
    assert plan.unique_share == pytest.approx(plan.unique / plan.samples)


def test_public_samples_go_to_whom_lacks() -> None:
    """Private shares are unequal, yet all ranks end together: who has less of its own gets more public ones."""
    nodes = ["host", "csd0", "csd1"]
    plan = balance(published(2), [public(2_000, nodes), private(10, "csd0"), private(130, "csd1")])
    assert plan.strategy == "public"
    assert [share.quota.get("public", 0) for share in plan.shares] == [1847, 137, 16]


def test_even_without_public_samples() -> None:
    """Private shares that are even as they lie need nothing, and the plan says that."""
    plan = balance(published(1), [private(3_150, "host"), private(250, "csd0")])
    assert (plan.strategy, plan.steps, plan.why) == (
        "public",
        10,
        "all ranks have as much of their own: 10 steps' worth each",
    )


def lacking() -> tuple[list[Engine], list[Pool]]:
    """A drive with 20 steps' worth of its own, and too few public samples for the others."""
    return published(2), [public(900, ["host", "csd0"]), private(500, "csd1"), private(100, "csd0")]


def test_strategies() -> None:
    """Where public samples are too few, the higher of both rates is chosen; both are in the plan, and the reason."""
    plan = balance(*lacking(), sync_seconds=0.2)
    rates = {
        strategy: balance(*lacking(), sync_seconds=0.2, strategy=strategy) for strategy in ("duplicate", "shorten")
    }
    assert plan.rates == {strategy: one.images_per_second for strategy, one in rates.items()}
    assert plan.strategy == "duplicate"
    assert plan.images_per_second == max(plan.rates.values())
    assert plan.steps == 20
    assert "the number of steps comes from csd1: nobody else can read 'of csd1'" in plan.why
    duplicate, shorten = rates["duplicate"], rates["shorten"]
    assert (shorten.unique_share, shorten.samples) == (1, 1500)
    assert shorten.global_batch < plan.global_batch
    assert duplicate.shares[1].repeated == {"of csd0": 100}  # each once more at most
    assert duplicate.shares[1].batch == 10  # which lasts for all steps
    assert duplicate.samples == 1500 + sum(sum(share.repeated.values()) for share in duplicate.shares)


def test_private_samples_are_repeated_first() -> None:
    """Who lacks samples repeats its own before it repeats public ones."""
    engines = [Engine("a", 10, 10.0), Engine("b", 10, 10.0)]
    pools = [private(300, "a"), public(150, ["b"], "on b"), private(100, "b")]
    plan = balance(engines, pools, strategy="duplicate")
    assert plan.shares[1].repeated == {"of b": 50}
    more = balance(engines, [private(400, "a"), *pools[1:]], strategy="duplicate")
    assert more.shares[1].repeated == {"of b": 100, "on b": 50}


def test_a_faster_step_beats_repeats() -> None:
    """Shorter batches are chosen where repeats would only make the rank that lacks hold up the others."""
    slow = [Engine("fast", 100, 100.0), Engine("slow", 10, 1.0)]
    plan = balance(slow, [private(1_000, "fast"), private(10, "slow")])
    assert plan.strategy == "shorten"
    assert plan.batches == (100, 1)
    assert plan.rates == pytest.approx({"shorten": 101, "duplicate": 51})


def test_public_strategy_that_does_not_suffice() -> None:
    """Who asks for public samples alone is told which ranks lack how many."""
    with pytest.raises(PlanError, match=r"csd0, host can have 1,000 samples for 20 steps of 6,800"):
        balance(*lacking(), strategy="public")


@settings(max_examples=60)
@given(fleets())
def test_memory_caps(fleet: tuple[list[Engine], list[Pool]]) -> None:
    """No strategy plans a batch that an engine's memory can't take."""
    for equal in (False, True):
        plan = balance(*fleet, equal=equal)
        caps = {engine.node: engine.memory_limit_batch for engine in plan.engines}
        assert all(share.batch <= (caps[share.node] or share.batch) for share in plan.shares)


def test_equal_batches() -> None:
    """Plain data parallelism for contrast: the same batch everywhere, and the slowest rank decides."""
    nodes = ["host", "csd0", "csd1"]
    fleet = [Engine("host", 100, 100.0), Engine("csd0", 10, 10.0), Engine("csd1", 10, 10.0)], [public(2_400, nodes)]
    plan = balance(*fleet, equal=True)
    assert plan.batches == (40, 40, 40)
    assert plan.images_per_second == pytest.approx(30)
    assert balance(*fleet).images_per_second == pytest.approx(120)
    assert balance(*fleet, equal=True, global_batch=30).batches == (10, 10, 10)


# -- what can't be planned


def test_engines_without_samples() -> None:
    """An engine that has no sample has no rank; the plan says why, or it is an error if that was asked for."""
    pools = [public(300, ["host", "csd0"]), public(0, ["csd1"], "empty")]
    plan = balance(published(2), pools)
    assert plan.nodes == ("host", "csd0")
    assert plan.dropped == {"csd1": "no samples that it can read"}
    assert "csd1 left out: no samples" in plan.table()
    with pytest.raises(PlanError, match="csd1: no samples"):
        balance(published(2), pools, idle="refuse")
    few = balance(published(3), [public(2, ["host", "csd0", "csd1", "csd2"])])
    assert few.steps == 1
    assert 1 <= few.world <= 2
    assert all(share.unique for share in few.shares)


def test_what_can_not_be_planned() -> None:
    """No engines, no samples, a pool out of reach, a batch below one each or above the memories: each is told."""
    pool = public(10, ["host"])
    with pytest.raises(NoRanks, match="no engine"):
        balance([], [pool])
    with pytest.raises(NoRanks, match="no samples in 'public'"):
        balance(published(1), [public(0, ["host"])])
    with pytest.raises(NoRanks, match="no pool"):
        balance(published(1), [])
    with pytest.raises(PlanError, match="'of csd7' lies at csd7, and none of the engines"):
        balance(published(1), [pool, private(3, "csd7")])
    with pytest.raises(PlanError, match="3 engines on 2 nodes"):
        balance([*published(1), *published(0)], [pool])
    with pytest.raises(PlanError, match="global batch of 1 for 2 ranks"):
        balance(published(1), [public(99, ["host", "csd0"])], global_batch=1)
    small = [Engine("host", 8, 8.0, memory_limit_batch=16)]
    with pytest.raises(PlanError, match="global batch of 17; the memories take 16"):
        balance(small, [pool], global_batch=17)


# -- plans that follow one another


@settings(max_examples=60)
@given(fleets(), st.data())
def test_without_a_rank_and_with_it_again(fleet: tuple[list[Engine], list[Pool]], draw: st.DataObject) -> None:
    """A plan without a node is the one that never had it; with the node back all samples are in again."""
    engines, pools = fleet
    plan = balance(engines, pools, seed=4)
    assume(len(engines) > 1)
    gone = draw.draw(st.sampled_from(engines))
    left = [pool for pool in pools if set(pool.at) - {gone.node}]
    others = [engine for engine in engines if engine is not gone]
    try:
        after = lose(plan, gone.node)
    except NoRanks:
        assert not sum(pool.count for pool in left)
        return
    assert after.shares == balance(others, left, seed=4).shares
    assert (after.generation, after.seed, after.rest) == (1, 4, None)
    assert gone.node not in after.nodes
    back = join(after, gone, pools)
    assert back.generation == 2
    assert back.unique == plan.unique
    assert set(back.nodes) | set(back.dropped) == {engine.node for engine in engines}


def test_global_batch_follows_the_memories() -> None:
    """A batch that was asked for is kept when a rank is lost, as far as the others' memories take it."""
    nodes = ["a", "b", "c"]
    engines = [Engine(node, 8, 8.0, memory_limit_batch=16) for node in nodes]
    plan = balance(engines, [public(300, nodes)], global_batch=30)
    assert plan.batches == (10, 10, 10)
    two = lose(plan, "a")
    assert two.batches == (15, 15)
    one = lose(two, "b")
    assert one.batches == (16,)
    assert join(join(one, engines[0], []), engines[1], []).batches == (10, 10, 10)


def test_the_last_rank() -> None:
    """When nobody is left, or nobody who has samples, that is said, with what to do."""
    plan = balance(published(1), [private(10, "csd0"), private(5, "host")])
    with pytest.raises(NoRanks, match="host was the last"):
        lose(lose(plan, "csd0"), "host")
    lonely = replan(plan, plan.engines, [private(10, "csd0")])
    assert lonely.dropped == {"host": "no samples that it can read"}
    with pytest.raises(NoRanks, match="all samples are gone"):
        lose(lonely, "csd0")


def test_what_was_asked_stays() -> None:
    """Strategy, seed, synchronisation and equality carry over; 'public' alone gives way rather than end the run."""
    plan = balance(*lacking(), strategy="shorten", seed=9, sync_seconds=0.3, equal=True)
    after = lose(plan, "csd0")
    assert (after.asked_strategy, after.seed, after.sync_seconds, after.equal) == ("shorten", 9, 0.3, True)
    even = balance(published(1), [public(3_000, ["host", "csd0"]), private(10, "csd0")], strategy="public")
    uneven: Plan = replan(even, even.engines, [private(3_000, "host"), private(10, "csd0")])
    assert uneven.asked_strategy == "public"
    assert uneven.strategy != "public"


def test_a_thousand_ranks() -> None:
    """A thousand drives with private and public samples of their own beside a shared pool are planned exactly."""
    csds = [f"csd{number}" for number in range(999)]
    pools = [public(1_000_000, ["host", *csds])]
    pools += [private(100 + 7 * number % 800, node) for number, node in enumerate(csds)]
    pools += [public(11 * number % 500, ["host", node], f"on {node}") for number, node in enumerate(csds)]
    plan = balance(published(999), pools)
    assert plan.world == 1000
    assert plan.steps == -(-plan.unique // plan.global_batch)
