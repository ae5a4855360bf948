"""Claims out of points: the right figures, notes that follow from them, a report that shows them."""

from __future__ import annotations

import html
import json
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from emucsd.baselines import parameters
from emucsd.cli.reproduce import show
from emucsd.reproduce.rm_ssd.claims import all_claims
from emucsd.reproduce.rm_ssd.plots import COLORS, KINDS, draw_all
from emucsd.reproduce.rm_ssd.points import (
    Pair,
    Point,
    Points,
    a_miss,
    at_misses,
    interval,
    latency,
    mean,
    miss_rate,
    needed_miss,
    operators,
)
from emucsd.reproduce.rm_ssd.report import gains, make_report
from emucsd.reproduce.rm_ssd.settings import BASELINES, LOCALITY, MODELS, QUICK, REASONS
from emucsd.reproduce.rm_ssd.sweeps import Search, Sweep, fitted

STAGES = {"minibatch": 4, "embedding_ns": 100, "bottom_ns": 200, "top_ns": 300}


def point(baseline: str, model: str, batch: int, us: float, misses: float | None = None) -> Point:
    """``us`` a sample, all of it the drive's but for a tenth; a thousand lookups a sample."""
    ns = 1e3 * us * batch
    spent = {"framework": 0.1 * ns, "misses": 0.3 * ns if misses else 0.0, "drive": 0.6 * ns if misses else 0.9 * ns}
    sls = None if baseline.startswith("RM-SSD") else 0.9 * ns
    stages = STAGES if baseline.startswith("RM-SSD") else None
    return Point(baseline, model, batch, ns, batch / ns * 1e9, sls, 1000 * batch, spent, misses, stages)


SPEEDS = {kind.name: 2000.0 / turn for turn, kind in enumerate(BASELINES, 1)} | {"SSD-S": 8000.0, "RM-SSD": 500.0}


def grid() -> Points:
    return Points(
        point(kind.name, model, batch, SPEEDS[kind.name], 300.0 * batch if kind.name in ("SSD-S", "SSD-M") else None)
        for model in MODELS
        for kind in BASELINES
        for batch in (1, 8)
    )


def sweeps() -> dict[str, Sweep]:
    lines = ("SSD-S", "EMB-VectorSum", "RM-SSD")
    processor = [(x, point(way, "rmc1", 16, SPEEDS[way], None)) for x in (0.0, 1.0) for way in ("RecSSD", "RM-SSD")]
    made = {
        name: Sweep(key, "made", [(x, point(way, "rmc1", x, SPEEDS[way], None)) for x in (1, 2, 4) for way in lines])
        for name, key in (
            ("lookups", "lookups_a_bag"),
            ("batch", "samples_a_batch"),
            ("locality", "k"),
            ("dies", "dies_a_channel"),
            ("scale", "table_bytes"),
        )
    }
    return {**made, "processor": Sweep("with_caches", "RecSSD's processor, made", processor)}


LAYER = {"group": "bottom", "inputs": 8, "outputs": 4, "kr": 4, "kc": 2, "placement": "bram", "cycles": 32}


def search() -> Search:
    plain = dict.fromkeys(("lut", "ff", "bram", "dsp"), 1000)
    searched = {"lut": 600, "ff": 500, "bram": 900, "dsp": 100}
    return Search("rmc3", "XCVU9P", plain, searched, [LAYER, LAYER], [LAYER], 0.0)


def beyond() -> dict[str, Any]:
    row = {"workload": "amazon", "virtual_ns": 5, "counted": True, "error": 0.0}
    return {
        "workloads": [{"name": "amazon"}],
        "mechanisms": [{"name": name, "about": f"about {name}"} for name in ("RM-SSD", "cache")],
        "rows": [
            {**row, "mechanism": "RM-SSD", "versus": None, "ratio": 1.0},
            {**row, "mechanism": "cache", "versus": "RM-SSD", "ratio": 2.5},
        ],
        "floor": {
            "wanted": {"speedup": 2.0},
            "fast_enough": ["amazon"],
            "all_together": {"amazon": 2.5},
            "slower_alone": ["rows, amazon: 0.97"],
        },
        "parameters": [{"name": "cache_bytes", "value": 1, "unit": "bytes", "reason": "any"}],
    }


def result() -> dict[str, Any]:
    return {
        "environment": {"cpu": "any <one>"},
        "quick": False,
        "seed": 1,
        "clock": "virtual",
        "seconds": 1.0,
        "claims": [claim.record() for claim in all_claims(grid(), sweeps(), search())],
        "parameters": [parameter._asdict() for parameter in parameters()],
        "settings": {**asdict(QUICK), "locality": LOCALITY, "reasons": REASONS},
        "baselines": [{"name": kind.name, "about": kind.about} for kind in BASELINES],
        "points": [asdict(some) for some in grid()],
        "sweeps": {name: sweep.record() for name, sweep in sweeps().items()},
        "search": search().record(),
        "beyond": beyond(),
    }


def test_ratios() -> None:
    """Means, extremes and shares are those of the points."""
    claims = {claim.claim: claim for claim in all_claims(grid(), sweeps(), search())}
    vector = SPEEDS["SSD-S"] / SPEEDS["EMB-VectorSum"]
    assert claims["SLS operator: EMB-VectorSum over SSD-S"].ours == pytest.approx(vector)
    assert claims["throughput: RM-SSD over SSD-S, up to"].ours == pytest.approx(16)
    assert claims["latency: RM-SSD below SSD-S, up to"].ours == pytest.approx(100 * (1 - 1 / 16))
    assert claims["NCF: RM-SSD over SSD-S"].deviation == pytest.approx(-0.84)
    assert claims["kernel search on RMC3: FF saved"].ours == pytest.approx(50)
    assert claims["kernel search on RMC3: FF saved"].near
    assert not claims["kernel search on RMC3: DSP saved"].near


def test_every_far_claim_is_explained() -> None:
    """What is more than 25 % off says in figures why, and what it would take."""
    for claim in all_claims(grid(), sweeps(), search()):
        assert claim.note
        if not claim.near:
            assert any(word in claim.note for word in ("would", "without", "takes")), claim.claim


def test_needed_miss() -> None:
    """With misses that take as long as it says, the ratio is the wanted one."""
    pairs = grid().pairs("SSD-S", "EMB-VectorSum", ["rmc1"])
    assert miss_rate(pairs) == pytest.approx(0.3)
    needed = needed_miss(pairs, 50, latency)
    extra = needed - a_miss(pairs)
    found = mean((latency(p.slow) + extra * (p.slow.misses or 0)) / latency(p.fast) for p in pairs)
    assert found == pytest.approx(50)
    assert at_misses(pairs, miss_rate(pairs), latency) == pytest.approx(mean(p.ratio(latency) for p in pairs))


def test_times_of_a_point() -> None:
    """Throughput as a time is the inverse of the rate; operators are part of the latency."""
    pair = Pair(point("SSD-S", "rmc1", 4, 100, 1.0), point("EMB-VectorSum", "rmc1", 4, 50))
    assert pair.ratio(interval) == pair.ratio(latency) == pair.ratio(operators) == pytest.approx(2)
    assert pair.slow.interval_ns == pytest.approx(400e3)


def test_fitted_line() -> None:
    """A line is found, and how well it fits."""
    slope, start, fit = fitted({1: 12.0, 2: 14.0, 5: 20.0})
    assert (slope, start, fit) == pytest.approx((2, 10, 1))
    assert fitted({1: 1.0, 2: 9.0, 3: 2.0})[2] < 0.1


def test_report(tmp_path: Path) -> None:
    """The page has every claim, every point and every parameter, plots where they can be drawn, and no open tag."""
    found = result()
    drawn = draw_all(tmp_path, found)
    page = make_report(found, {name: svg for name, (_, svg) in drawn.items()})
    for claim in found["claims"]:
        assert html.escape(claim["claim"]) in page
    for parameter in found["parameters"]:
        assert f"<td>{parameter['name']}</td>" in page
    assert "any &lt;one&gt;" in page
    assert page.count("<svg") == len(drawn)
    open_tags: list[str] = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            if tag not in ("meta", "path", "use", "rect"):
                open_tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            if tag in open_tags:
                assert open_tags.pop() == tag

    Tags().feed(page)
    assert open_tags == []
    assert json.loads(json.dumps(found))["claims"] == found["claims"]


def test_gains() -> None:
    """Of what goes beyond the paper, mechanisms with something to compare with are listed, workload by workload."""
    assert gains(beyond()) == (["amazon"], [("cache", "RM-SSD", [2.5])])


def test_shown_for_people() -> None:
    """The command shows every claim, why the far ones are far, and the gains."""
    console = Console(record=True, width=200)
    show(result() | {"files": ["a.html"]}, console)
    text = console.export_text()
    for claim in result()["claims"]:
        assert claim["claim"] in text
    assert "2.50x" in text
    assert "written: a.html" in text


def test_plots_are_the_same_again(tmp_path: Path) -> None:
    """The same result gives the same SVG, byte by byte."""
    found = result()
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    first, second = draw_all(tmp_path / "a", found), draw_all(tmp_path / "b", found)
    assert [svg.read_bytes() for _, svg in first.values()] == [svg.read_bytes() for _, svg in second.values()]


def test_colors() -> None:
    """Every way and every kind of time has a colour of its own."""
    assert {kind.name for kind in BASELINES} <= COLORS.keys()
    assert len(set(COLORS.values())) == len(COLORS)
    assert len(set(KINDS.values())) == len(KINDS)
