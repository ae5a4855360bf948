"""Fleets for tests of Stannis' planning: by hand, and at random."""

from __future__ import annotations

from hypothesis import strategies as st

from emucsd.stannis.plan.plan import Engine, Pool

HOST_BATCH, HOST_RATE, CSD_BATCH, CSD_RATE = 315, 31.05, 25, 3.08  # Table I, MobileNetV2


def published(csds: int) -> list[Engine]:
    """The paper's host and so many Newports."""
    return [Engine("host", HOST_BATCH, HOST_RATE), *(Engine(f"csd{n}", CSD_BATCH, CSD_RATE) for n in range(csds))]


def public(count: int, nodes: list[str], name: str = "public") -> Pool:
    """Samples that all these nodes can read."""
    return Pool(name, False, count, 12_000, dict.fromkeys(nodes, "/data/train"))


def private(count: int, node: str) -> Pool:
    """Samples of one node."""
    return Pool(f"of {node}", True, count, 12_000, {node: "ns:2"})


@st.composite
def fleets(draw: st.DrawFn, most: int = 6, samples: int = 300) -> tuple[list[Engine], list[Pool]]:
    """Engines of any speed, some with little memory; pools that any of them can read, at least one sample in all."""
    nodes = [f"n{number}" for number in range(draw(st.integers(1, most)))]
    engines = [
        Engine(
            node,
            draw(st.integers(1, 40)),
            draw(st.floats(0.5, 200)),
            memory_limit_batch=draw(st.none() | st.integers(1, 60)),
        )
        for node in nodes
    ]
    pools = []
    for number in range(draw(st.integers(1, 8))):
        readers = draw(st.lists(st.sampled_from(nodes), min_size=1, unique=True))
        count = draw(st.integers(0 if number else 1, samples))
        pools.append(Pool(f"p{number}", len(readers) == 1, count, 100, dict.fromkeys(readers, "here")))
    return engines, pools
