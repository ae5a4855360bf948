"""The fleet in virtual time against closed forms, conservation, and itself again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from emucsd.stannis.errors import MemoryExceeded, PlanError
from emucsd.stannis.fleet import profiles
from emucsd.stannis.fleet.allreduce import ALGORITHMS, Algorithm, all_reduce
from emucsd.stannis.fleet.fabric import Fabric, Links
from emucsd.stannis.fleet.training import Flash, Fleet
from emucsd.stannis.parameters import load_parameters

SIZE = 24e6
PLAIN = Links(  # nothing but the drives' tunnels takes time
    drive_rate=1e8,
    drive_latency=0.0,
    message_bytes=1.0,
    host_rate=1e18,
    host_latency=0.0,
    nic_rate=1e18,
    nic_latency=0.0,
    drive_sum_rate=1e18,
    host_sum_rate=1e18,
)
NAMES: tuple[Algorithm, ...] = ("ring", "tree", "hierarchical")


def seconds(algorithm: Algorithm, servers: list[int], links: Links = PLAIN, size: float = SIZE) -> float:
    fabric = Fabric(servers, links)
    return float(all_reduce(fabric, algorithm, size, np.zeros(fabric.ranks)).max())


@pytest.mark.parametrize("drives", [2, 3, 8, 24, 60])
@pytest.mark.parametrize("latency", [0.0, 0.003])
def test_ring_takes_its_closed_form(drives: int, latency: float) -> None:
    """Without jitter: 2 (n - 1) rounds, each 1/n of the gradients out and in through one tunnel, and a latency.

    The first of a hop's two latencies passes while the receiver still sends. The host has no tunnel, so that the hops
    at its sides take less: two rounds' worth at most.
    """
    ranks = drives + 1
    part = SIZE / ranks / PLAIN.drive_rate
    a_round = max(part, latency) + part + latency
    found = seconds("ring", [drives], replace(PLAIN, drive_latency=latency))
    assert 2 * (ranks - 2) * a_round <= found * (1 + 1e-9)
    assert found <= 2 * (ranks - 1) * a_round * (1 + 1e-9)


@pytest.mark.parametrize("drives", [1, 4, 24])
def test_hierarchical_takes_its_closed_form(drives: int) -> None:
    """Everything to the host and back: twice through each tunnel, all tunnels at the same time."""
    assert seconds("hierarchical", [drives]) == pytest.approx(2 * SIZE / PLAIN.drive_rate, rel=1e-6)
    busy = replace(PLAIN, host_rate=1e9, drive_rate=1e12)  # the host carries all of it, one after the other
    assert seconds("hierarchical", [drives], busy) == pytest.approx(2 * drives * SIZE / 1e9, rel=0.01)


def test_tree_is_bound_by_an_inner_drive() -> None:
    """Two children's up, its own up, and the same down again: six times through one tunnel, and a pipeline's ends."""
    found = seconds("tree", [24])
    assert 6 * SIZE / PLAIN.drive_rate <= found <= 7.5 * SIZE / PLAIN.drive_rate


@pytest.mark.parametrize("servers", [[1], [5], [3, 3], [2, 0, 4]])
def test_bytes_are_conserved(servers: list[int]) -> None:
    """Each algorithm moves exactly what it must: through tunnels, through hosts, between hosts."""
    ranks, drives, hosts = sum(servers) + len(servers), sum(servers), len(servers)
    moved = {}
    for name in NAMES:
        fabric = Fabric(servers, PLAIN)
        all_reduce(fabric, name, SIZE, np.zeros(fabric.ranks))
        moved[name] = fabric
        assert not fabric.tunnel_bytes[fabric.is_host].any()
        assert fabric.tunnel_seconds.sum() == pytest.approx(fabric.tunnel_bytes.sum() / PLAIN.drive_rate)
    around = 2 * (ranks - 1) / ranks * SIZE
    ring = moved["ring"]
    assert ring.tunnel_bytes[~ring.is_host] == pytest.approx(2 * around)
    crossings = hosts if hosts > 1 else 0
    assert ring.nic_bytes.sum() == pytest.approx(crossings * around)
    assert ring.host_bytes.sum() == pytest.approx((ranks + crossings) * around)
    assert moved["tree"].tunnel_bytes.sum() <= 2 * 2 * (ranks - 1) * SIZE
    star = moved["hierarchical"]
    assert star.tunnel_bytes[~star.is_host] == pytest.approx(2 * SIZE)
    assert star.nic_bytes == pytest.approx(2 * (hosts - 1) / hosts * SIZE * np.ones(hosts))
    assert star.host_bytes.sum() == pytest.approx(2 * drives * SIZE + 2 * star.nic_bytes.sum())


@pytest.mark.parametrize("name", NAMES)
def test_monotonic(name: Algorithm) -> None:
    """More bytes, more latency or slower links never take less time; every parameter of the links has its effect."""
    usual = Links.load()
    before = seconds(name, [12, 12], usual)
    assert seconds(name, [12, 12], usual, 2 * SIZE) > before
    for field in ("drive_rate", "host_rate", "nic_rate", "drive_sum_rate", "host_sum_rate"):
        slow = replace(usual, **{field: getattr(usual, field) / 50})
        changed = seconds(name, [12, 12], slow)
        assert changed >= before
        adds = {"drive_sum_rate": name != "hierarchical", "host_sum_rate": name == "hierarchical"}
        if adds.get(field, True):  # who adds nothing, or never last, may be slow at it
            assert changed > before, field
    for field in ("drive_latency", "host_latency", "nic_latency", "message_bytes"):
        assert seconds(name, [12, 12], replace(usual, **{field: 500 * getattr(usual, field)})) > before, field


@pytest.mark.parametrize("name", NAMES)
def test_everybody_waits_for_the_last(name: Algorithm) -> None:
    """A rank that comes a second later makes all finish about a second later; none finishes before it has begun."""
    fabric = Fabric([6], PLAIN)
    ready = np.zeros(7)
    ready[3] = 1.0
    finished = all_reduce(fabric, name, 1e3, ready)
    assert finished.min() >= 1.0
    assert finished.max() == pytest.approx(1.0, abs=1e-3)


def test_those_who_share_a_link_take_turns() -> None:
    """Two transfers through one host take twice one's time, first come first served; through two, one's."""
    slow = replace(PLAIN, host_rate=1e6, drive_rate=1e18)
    size, ready = np.full(2, 1e6), np.array([0.5, 0.0])
    together = Fabric([4], slow).move(np.array([1, 2]), np.array([3, 4]), size, ready)
    assert together == pytest.approx([2.0, 1.0], abs=1e-5)
    apart = Fabric([2, 2], slow).move(np.array([1, 4]), np.array([2, 5]), size, ready)
    assert apart == pytest.approx([1.5, 1.0], abs=1e-5)


def test_alone_there_is_nothing_to_do() -> None:
    """One rank has its sum at once; an unknown algorithm and fleets without a server are refused."""
    assert seconds("ring", [0]) == 0
    with pytest.raises(PlanError, match="ring, tree, hierarchical"):
        all_reduce(Fabric([1], PLAIN), "mesh", SIZE, np.zeros(2))  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="at least one server"):
        Fabric([], PLAIN)
    assert set(ALGORITHMS) == set(NAMES)


# -- engines


@pytest.mark.parametrize("name", list(profiles.networks()))
def test_profiles_have_the_published_points(name: str) -> None:
    """Table I's rates at Table I's batches; Newport's best batch is the published one, and flat around it."""
    network = profiles.network(name)
    newport, host = profiles.newport(network), profiles.host(network)
    assert newport.rate(network.newport.batch) == pytest.approx(network.newport.rate)
    assert host.rate(network.host.batch) == pytest.approx(network.host.rate)
    rates = {batch: newport.rate(batch) for batch in range(1, 4 * network.newport.batch)}
    assert max(rates, key=lambda batch: rates[batch]) == network.newport.batch
    assert newport.rate(2 * network.newport.batch) > 0.95 * network.newport.rate
    assert newport.rate(1) < 0.65 * network.newport.rate


def test_mobilenet_is_flat_above_sixteen() -> None:
    """Published: about 3 images/s for batch sizes above 16."""
    newport = profiles.newport(profiles.network("mobilenet_v2"))
    assert all(2.9 <= newport.rate(batch) <= 3.1 for batch in range(16, 70))
    assert newport.rate(4) < 2.7


def test_memory_is_an_engines_limit() -> None:
    """A batch that fits is timed; one more than the largest is refused with what is missing."""
    newport = profiles.newport(profiles.network("inception_v3"))
    largest = newport.largest_batch
    assert newport.bench(largest).memory_bytes <= newport.memory_bytes
    with pytest.raises(MemoryExceeded, match=f"at most {largest} images") as refused:
        newport.bench(largest + 1)
    assert refused.value.missing > 0
    with pytest.raises(PlanError, match="mobilenet_v2"):
        profiles.network("alexnet")


@pytest.mark.parametrize("name", list(profiles.networks()))
def test_activations_are_those_of_the_models(name: str) -> None:
    """What the profiles say of memory is what this project's networks take, counted on the networks themselves."""
    pytest.importorskip("torch")
    from emucsd.stannis import models

    network = profiles.network(name)
    side = int(profiles.values()["image"])
    found = models.describe(getattr(models, network.model)(num_classes=200), (3, side, side))
    assert found.activation_bytes + 2 * found.largest_bytes == pytest.approx(network.activation_bytes, rel=0.01)


def test_every_parameter_has_a_reason() -> None:
    """Nothing is in the model without a unit, a meaning and a reason; one alone is fitted."""
    links = load_parameters("emucsd.stannis.fleet", "links.toml")
    for parameter in (*profiles.parameters(), *links.values()):
        assert parameter.unit
        assert parameter.what
        assert parameter.reason
    assert [p.name for p in (*profiles.parameters(), *links.values()) if p.sure == "calibrated"] == ["drive_rate"]


# -- steps

NETWORK = profiles.network("mobilenet_v2")


def fleet(drives: int, **other: float) -> Fleet:
    return Fleet(NETWORK, (drives,), PLAIN, **other)  # type: ignore[arg-type]


def test_a_step_is_the_slowest_and_the_sum() -> None:
    """Without jitter a step takes the slowest rank's computing and the all-reduce after it; alone the rank's own."""
    batches = fleet(4).batches(315, 25)
    compute = fleet(4).computing(batches)
    assert compute[0] == pytest.approx(315 / 31.05)
    assert compute[1:] == pytest.approx(25 / 3.08)
    trained = fleet(4).train(batches, steps=3)
    most = 8 * 2 * NETWORK.gradient_bytes / 5 / PLAIN.drive_rate
    assert compute.max() + 0.7 * most <= trained.step <= compute.max() + most
    assert trained.rate == pytest.approx((315 + 100) / trained.step)
    assert trained.step <= compute.max() + trained.sync_seconds + 1e-9  # who has its sum early begins the next step
    assert fleet(0).train([315], steps=2).rate == pytest.approx(31.05)
    assert fleet(0, group_slowdown=1.5).train([315]).rate == pytest.approx(31.05)


def test_shares_of_time() -> None:
    """A rank that computes half as long as the slowest waits for about half; the slowest hardly waits."""
    free = replace(PLAIN, drive_rate=1e18)
    trained = Fleet(NETWORK, (2,), free).train([315, 25, 10])
    assert trained.waiting[0] == pytest.approx(0.0, abs=1e-9)
    assert trained.waiting[2] == pytest.approx(1 - trained.computing[2] / trained.computing[0])
    assert trained.use.host == pytest.approx(1.0)
    assert trained.use.csd == pytest.approx(1 - trained.waiting[1:].mean())


def test_same_seed_same_figures() -> None:
    """The same seed gives the same times, bit for bit; another gives others; the mean stays."""
    many = Fleet.of(NETWORK, [6, 6], jitter=0.05)
    batches = many.batches(315, 25)
    first, again, other = (many.train(batches, seed=seed) for seed in (1, 1, 2))
    assert (first.step_seconds == again.step_seconds).all()
    assert (first.computing == again.computing).all()
    assert (first.step_seconds != other.step_seconds).any()
    assert first.computing.sum() / 20 == pytest.approx(many.computing(batches).sum(), rel=0.02)


def test_interference_slows_all() -> None:
    """One engine at half its speed makes every step wait for it; a rank without a batch waits only."""
    slower = np.ones(5)
    slower[2] = 2.0
    usual, slowed = fleet(4).train([315, 25, 25, 25, 25]), fleet(4).train([315, 25, 25, 25, 25], slower=slower)
    assert slowed.step - usual.step == pytest.approx(2 * 25 / 3.08 - 315 / 31.05, rel=0.03)
    assert fleet(4).train([315, 0, 25, 25, 25]).computing[1] == 0
    with pytest.raises(PlanError, match="5 ranks"):
        fleet(4).train([315, 25])


def test_flash_hides_behind_computing() -> None:
    """Samples read ahead cost nothing while flash is faster than the engine, and set the pace where it is slower."""

    def rate(second: float) -> float:
        return Fleet(NETWORK, (1,), PLAIN, flash=Flash(newport=second)).train([315, 25]).step

    usual = rate(0.0)
    assert rate(0.01) == pytest.approx(usual, rel=0.01)
    assert rate(1.0) == pytest.approx(25.0, rel=0.02)
