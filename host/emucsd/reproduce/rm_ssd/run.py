"""The whole run: every model served every way, the sweeps, the claims; and the files that show them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from emucsd.baselines import Baseline, EmbVectorSum, RecSsd, RmSsd, SsdM, SsdS, parameters
from emucsd.bench.environment import environment
from emucsd.reproduce.rm_ssd.beyond import run_beyond
from emucsd.reproduce.rm_ssd.claims import all_claims
from emucsd.reproduce.rm_ssd.points import Point, Points
from emucsd.reproduce.rm_ssd.scale import at_scale
from emucsd.reproduce.rm_ssd.settings import (
    BASELINES,
    CACHE_ENTRIES,
    FULL,
    LOCALITY,
    MODELS,
    PAPER_TABLES,
    QUICK,
    REASONS,
    Settings,
)
from emucsd.reproduce.rm_ssd.stand import Stand, measure, stand
from emucsd.reproduce.rm_ssd.sweeps import (
    Search,
    Sweep,
    Tell,
    search_kernels,
    sweep_batches,
    sweep_dies,
    sweep_locality,
    sweep_lookups,
    sweep_processor,
)

_GRID = 0.45  # of the run's time, about: every model, every way


def run_reproduce(
    out: Path | None = None,
    *,
    quick: bool = False,
    beyond: bool = False,
    seed: int = 1,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Measure everything in virtual time and compare it with what is published.

    :param out: folder for ``rm-ssd.json``, ``rm-ssd.html`` and the plots; None writes none
    :param quick: small tables, few batches: for tests
    :param beyond: also what the mechanisms beyond the paper buy
    :param seed: of tables, weights and traces; the same seed gives the same figures
    :param tell: called with what goes on and how much of all is done, 0 to 1
    :returns: ``environment``, ``claims``, ``parameters``, ``points``, ``sweeps``, ``search``, ``files``, ``seconds``
    :raises WrongAnswer: a baseline's answers are not NumPy's
    """
    began = time.perf_counter()
    tell = tell or (lambda _text, _done: None)
    settings = QUICK if quick else FULL
    end = 0.7 if beyond else 0.97
    points, sweeps, search = _measured(settings, seed, _part(tell, "", 0.0, end))
    result: dict[str, Any] = {
        "environment": environment(),
        "quick": quick,
        "seed": seed,
        "clock": "virtual",
        "profile": "rmssd",
        "claims": [claim.record() for claim in all_claims(points, sweeps, search)],
        "parameters": [parameter._asdict() for parameter in parameters()],
        "settings": _told(settings),
        "baselines": [{"name": kind.name, "about": kind.about} for kind in BASELINES],
        "points": [asdict(point) for point in points],
        "sweeps": {name: sweep.record() for name, sweep in sweeps.items()},
        "search": search.record(),
    }
    if beyond:
        result["beyond"] = run_beyond(seed=seed, progress=_part(tell, "beyond: ", end, 0.97 - end), quick=quick)
    result["seconds"] = round(time.perf_counter() - began, 1)
    if out is not None:
        tell("drawing", 0.97)
        result["files"] = write_files(out, result)
        result["seconds"] = round(time.perf_counter() - began, 1)
    return result


def _told(settings: Settings) -> dict[str, Any]:
    """What was run, with its reasons."""
    constants = {"locality": LOCALITY, "cache_entries": CACHE_ENTRIES, "paper_table_bytes": PAPER_TABLES}
    return {**asdict(settings), **constants, "reasons": REASONS}


def _part(tell: Tell, prefix: str, start: float, share: float) -> Tell:
    """Tells of a part of the work as of the whole."""
    return lambda text, done: tell(prefix + text, start + share * done)


def _measured(settings: Settings, seed: int, tell: Tell) -> tuple[Points, dict[str, Sweep], Search]:
    tell("starting a drive", 0.0)
    kinds: tuple[type[Baseline], ...] = tuple(kind for kind in BASELINES if kind in (SsdS, EmbVectorSum, RecSsd, RmSsd))
    cached: tuple[type[Baseline], ...] = (*kinds[:1], SsdM, *kinds[1:])
    with stand(settings.table_bytes, len(MODELS), seed) as bench:
        points = _grid(bench, settings, _part(tell, "", 0.02, _GRID))
        at = 0.02 + _GRID
        sweeps = {}
        steps: tuple[tuple[str, float, Callable[[Tell], Sweep]], ...] = (
            ("lookups", 0.12, lambda told: sweep_lookups(bench, settings, kinds, told)),
            ("batch", 0.18, lambda told: sweep_batches(bench, settings, cached, told)),
            ("locality", 0.1, lambda told: sweep_locality(bench, settings, cached, told)),
        )
        for name, share, sweep in steps:
            sweeps[name] = sweep(_part(tell, "", at, share))
            at += share
        tell("kernel search", at)
        search = search_kernels(bench)
    small = min(settings.table_bytes, 24 << 20)
    sweeps["dies"] = sweep_dies(settings, small, seed, _part(tell, "", at, 0.93 - at))
    sweeps["processor"] = sweep_processor(settings, small, seed, _part(tell, "", 0.93, 0.03))
    sweeps["scale"] = at_scale(settings, seed, _part(tell, "", 0.96, 0.04))
    return Points(points), sweeps, search


def _grid(bench: Stand, settings: Settings, tell: Tell) -> list[Point]:
    """Every model, served every way, at every batch size."""
    points = []
    samples = sum(size * count for size, count in settings.batches.items())
    for number, name in enumerate(MODELS):
        tell(f"{name}: storing tables", number / len(MODELS))
        model = bench.model(name)
        trace = bench.trace(model, samples, LOCALITY)
        for turn, kind in enumerate(BASELINES):
            tell(f"{name}: {kind.name}", (number + turn / len(BASELINES)) / len(MODELS))
            points += measure(bench, kind, model, trace, settings.batches)
    return points


def write_files(out: Path, result: dict[str, Any]) -> list[str]:
    """The report, the plots (where matplotlib is installed) and the JSON. :returns: what was written"""
    from emucsd.reproduce.rm_ssd.plots import draw_all
    from emucsd.reproduce.rm_ssd.report import make_report

    out.mkdir(parents=True, exist_ok=True)
    drawn = draw_all(out, result)
    written = [path for pair in drawn.values() for path in pair]
    report = out / "rm-ssd.html"
    report.write_text(make_report(result, {name: svg for name, (_, svg) in drawn.items()}), encoding="utf-8")
    data = out / "rm-ssd.json"
    files = [str(path) for path in (report, data, *written)]
    data.write_text(json.dumps({**result, "files": files}, indent=2) + "\n", encoding="utf-8")
    return files
