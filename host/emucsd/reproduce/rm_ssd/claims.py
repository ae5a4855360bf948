"""What is published, what comes out here, and why the two differ: computed from the same run, not guessed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from emucsd.reproduce.claim import Claim
from emucsd.reproduce.rm_ssd.points import (
    Pair,
    Point,
    Points,
    Time,
    a_miss,
    at_misses,
    interval,
    latency,
    mean,
    miss_rate,
    misses,
    needed_miss,
    operators,
)
from emucsd.reproduce.rm_ssd.settings import DLRM, MODELS, PAPER_HITS
from emucsd.reproduce.rm_ssd.sweeps import Search, Sweep, fitted

NEAR = Claim.near_share

Whole = Callable[[Iterable[float]], float]
ABSTRACT = "RM-SSD, HPCA 2022, abstract"
NOTES = "RM-SSD, as notes on the paper report it"


def all_claims(points: Points, sweeps: dict[str, Sweep], search: Search) -> list[Claim]:
    """Every claim, in the order of the paper."""
    first, *others = _ratios(points)
    first = replace(first, note=f"{first.note} {_dies(sweeps['dies'])}")
    return [first, *others, *_recssd(points, sweeps["processor"]), *_search(search), _linear(sweeps["lookups"])]


def _dies(sweep: Sweep) -> str:
    """What the dies a channel, published nowhere, have to do with it."""
    slow = {dies: point for dies, point in sweep.points if point.baseline == "SSD-S"}
    ratios = {d: Pair(slow[d], p).ratio(operators) for d, p in sweep.points if p.baseline == "EMB-VectorSum"}
    told = ", ".join(f"{ratio:.1f} with {dies:g}" for dies, ratio in ratios.items())
    return f"It hangs on the dies a channel (4 here; published nowhere): RMC1 has {told}."


# -- ratios


def _ratios(points: Points) -> list[Claim]:
    vector = points.pairs("SSD-S", "EMB-VectorSum", DLRM)
    whole = points.pairs("SSD-S", "RM-SSD", DLRM)
    every = points.pairs("SSD-S", "RM-SSD", MODELS)
    claims = [
        _against_ssd("SLS operator: EMB-VectorSum over SSD-S", 16, NOTES, vector, operators, mean),
        _against_ssd("end to end: EMB-VectorSum over SSD-S", 17, NOTES, vector, latency, mean),
        _against_ssd("throughput: RM-SSD over SSD-S, up to", 36, NOTES, whole, interval, max),
        _shorter(whole),
    ]
    for model in ("ncf", "wnd"):
        pairs = points.pairs("SSD-S", "RM-SSD", [model])
        claims.append(_against_ssd(f"{NAMES[model]}: RM-SSD over SSD-S", 100, NOTES, pairs, interval, mean))
    claims += [
        _against_ssd("throughput over the baseline SSD: least", 20, ABSTRACT, every, interval, min),
        _against_ssd("throughput over the baseline SSD: most", 100, ABSTRACT, every, interval, max),
    ]
    return claims


NAMES = {"rmc1": "RMC1", "rmc2": "RMC2", "rmc3": "RMC3", "ncf": "NCF", "wnd": "WnD"}


def _against_ssd(claim: str, published: float, source: str, pairs: Sequence[Pair], time: Time, whole: Whole) -> Claim:
    ours = whole(pair.ratio(time) for pair in pairs)
    text = _each(pairs, time) + "."
    if abs(ours / published - 1) > NEAR:
        text = f"{text} {_why(pairs, time, whole, published)}"
    return Claim(claim, published, "x", source, ours, text)


def _shorter(pairs: Sequence[Pair]) -> Claim:
    """Latency, as a share that is saved."""
    ratio = max(pair.ratio(latency) for pair in pairs)
    text = f"{_each(pairs, latency)}. Ours is 1/{ratio:.1f} of SSD-S's latency at best; 97 % less is 1/33."
    if ratio < 33 * (1 - NEAR):
        text = f"{text} {_why(pairs, latency, max, 1 / 0.03)}"
    return Claim("latency: RM-SSD below SSD-S, up to", 97, "%", NOTES, 100 * (1 - 1 / ratio), text)


def _each(pairs: Sequence[Pair], time: Time) -> str:
    """The ratio of every model, batch size by batch size."""
    models = dict.fromkeys(pair.slow.model for pair in pairs)
    texts = []
    for model in models:
        found = [f"{pair.ratio(time):.1f}" for pair in pairs if pair.slow.model == model]
        texts.append(f"{NAMES[model]} {' / '.join(found)}")
    sizes = " / ".join(str(size) for size in dict.fromkeys(pair.slow.batch for pair in pairs))
    return f"{', '.join(texts)} at batches of {sizes}"


def _why(pairs: Sequence[Pair], time: Time, whole: Whole, published: float) -> str:
    """Where the time goes, and what it would take."""
    if whole is not mean:  # one pair makes an extreme
        pairs = [extreme(pairs, time, whole)]
    needed = needed_miss(pairs, published, time)
    share = miss_rate(pairs) * needed / a_miss(pairs)
    if share > 1:
        pair = extreme(pairs, time, max)
        return (
            f"{_parts(pair)} at batches of {pair.slow.batch}. For {published:.3g}x SSD-S would have to take "
            f"{published * time(pair.fast) / pair.slow.batch / 1e3:,.0f} us a sample: more than if every lookup missed."
        )
    kernel = sum(pair.slow.spent["misses"] for pair in pairs) / misses(pairs)
    slow, fast = sum(time(pair.slow) for pair in pairs), sum(time(pair.fast) for pair in pairs)
    lookups = 1e3 * sum(pair.slow.lookups for pair in pairs)
    recalled = at_misses(pairs, 1 - PAPER_HITS, time)
    return (
        f"SSD-S takes {slow / lookups:.2f} us a lookup, {pairs[0].fast.baseline} {fast / lookups:.2f} us. "
        f"{miss_rate(pairs):.0%} of the lookups miss SSD-S's page cache, for {kernel / 1e3:.1f} us in the kernel and "
        f"{(a_miss(pairs) - kernel) / 1e3:.1f} us in the drive each. {published:.3g}x would need {needed / 1e3:.0f} us "
        f"a miss, or {share:.0%} misses; at the {1 - PAPER_HITS:.0%} that are recalled of the paper's trace it is "
        f"{recalled:.1f}x."
    )


def extreme(pairs: Sequence[Pair], time: Time, whole: Whole) -> Pair:
    """The pair whose ratio is the largest, or the smallest."""
    return max(pairs, key=lambda pair: pair.ratio(time) * (1 if whole is max else -1))


def _parts(pair: Pair) -> str:
    """What both sides' time for a sample goes into."""

    def told(point: Point) -> str:
        kinds = {kind: ns / point.batch / 1e3 for kind, ns in point.spent.items()}
        parts = ", ".join(f"{kind} {shown(us)}" for kind, us in kinds.items() if us >= 0.05)
        stages = "" if point.stages is None else f"; {_stages(point.stages)}"
        return f"{point.baseline} takes {shown(point.latency_ns / point.batch / 1e3)} us a sample ({parts}{stages})"

    return f"{told(pair.slow)}, {told(pair.fast)}"


def shown(us: float) -> str:
    """Microseconds, with a decimal where that says something."""
    return f"{us:,.0f}" if us >= 100 else f"{us:.1f}"


def _stages(stages: dict[str, int]) -> str:
    """The MLP engine's, in words."""
    each = " / ".join(f"{stages[name] / 1e3:.1f}" for name in ("embedding_ns", "bottom_ns", "top_ns"))
    return f"its layers {each} us for mini-batches of {stages['minibatch']}: embedding / bottom / top"


# -- RecSSD


def _recssd(points: Points, processor: Sweep) -> list[Claim]:
    pairs = points.pairs("RecSSD", "RM-SSD", MODELS)
    if not pairs:
        return []
    found = []
    for text, published, whole in (("least", 1.5, min), ("most", 15.0, max)):
        pair = extreme(pairs, interval, whole)
        ours = pair.ratio(interval)
        note = f"{_each(pairs, interval)}."
        if abs(ours / published - 1) > NEAR:
            note += f" This is {NAMES[pair.slow.model]} at batches of {pair.slow.batch}: {_parts(pair)}."
        note += f" {_with_caches(processor)}"
        found.append(Claim(f"throughput over RecSSD: {text}", published, "x", ABSTRACT, ours, note))
    return found


def _with_caches(sweep: Sweep) -> str:
    """What RecSSD's processor has to do with it: its costs are derived from its source, and the largest is memory."""
    told = []
    for value, how in ((0.0, "as its firmware maps its buffers, uncached,"), (1.0, "with caches over them")):
        rates = {(point.baseline, point.model): point.rate for at, point in sweep.points if at == value}
        models = sorted({model for _, model in rates})
        each = ", ".join(f"{NAMES[m]} {rates['RM-SSD', m] / rates['RecSSD', m]:.2g}x" for m in models)
        told.append(f"{how} {each}")
    return f"RecSSD's processor decides: {'; '.join(told)} ({sweep.about.partition(', ')[2]})."


# -- the MLP engine


PUBLISHED_SAVINGS = {"lut": 40, "ff": 40, "bram": 10, "dsp": 40}


def _search(search: Search) -> list[Claim]:
    plain, searched = search.multipliers
    return [
        Claim(
            f"kernel search on RMC3: {kind.upper()} saved",
            published,
            "%",
            NOTES,
            100 * search.saved(kind),
            f"{search.plain[kind]:,} without, {search.searched[kind]:,} with the search, on {search.fpga}; throughput "
            f"{search.faster:+.1%}. Without it the kernels have {plain:,} multipliers, with it {searched:,}. What the "
            f"paper's have without it is not published; {published} % would mean "
            f"{search.searched[kind] / (1 - published / 100):,.0f} {kind.upper()} without it.",
        )
        for kind, published in PUBLISHED_SAVINGS.items()
    ]


def _linear(sweep: Sweep) -> Claim:
    times = {point.lookups: operators(point) for point in sweep.of("EMB-VectorSum", "rmc1")}
    slope, start, fit = fitted(times)
    return Claim(
        "SLS operator: EMB-VectorSum's time is linear in lookups (R2)",
        1.0,
        "R2",
        NOTES,
        fit,
        f"{slope:.0f} ns a lookup and {start / 1e3:.0f} us a batch, from {min(times)} to {max(times)} lookups a batch.",
    )
