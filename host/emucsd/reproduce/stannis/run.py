"""The whole run: tuned batches, every network on every number of CSDs, energy, scale; and the files that show them."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from emucsd.bench.environment import environment
from emucsd.reproduce.claim import Claim
from emucsd.reproduce.stannis import published as paper
from emucsd.reproduce.stannis.claims import all_claims, real_claims, retuned_claims
from emucsd.reproduce.stannis.points import Tell, energies, flash_seconds, measure, tune_networks
from emucsd.reproduce.stannis.scale import run_scale
from emucsd.reproduce.stannis.sensitivity import sensitivity
from emucsd.reproduce.stannis.settings import FULL, QUICK, REASONS, Settings
from emucsd.stannis import energy
from emucsd.stannis.fleet import profiles
from emucsd.stannis.parameters import load_parameters

NAME = "stannis"


def run_reproduce(
    out: Path | None = None,
    *,
    quick: bool = False,
    scale: bool = True,
    real: bool = True,
    data: str | None = None,
    seed: int = 1,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Measure everything in virtual time, train for real, and compare with what is published.

    :param out: folder for ``stannis.json``, ``stannis.html`` and the plots; None writes none
    :param quick: few steps: for tests
    :param scale: also more drives, several hosts, unequal private data, engines that slow down
    :param real: also a real run, of one process and of six unequal ranks
    :param data: images for it, CIFAR-10's as a tar with CLASS/*.jpg; None: generated ones
    :param seed: of jitter, weights and orders; in virtual time the same seed gives the same figures
    :param tell: called with what goes on and how much of all is done, 0 to 1
    :returns: ``environment``, ``claims``, ``parameters``, ``tuned``, ``points``, ``energy``, ``sensitivity``,
        ``scale``, ``real``, ``files``, ``seconds``
    """
    began = time.perf_counter()
    tell = tell or (lambda _text, _done: None)
    settings = QUICK if quick else FULL
    ends = (0.15, 0.4 if scale else 0.15)
    result: dict[str, Any] = {
        "environment": environment(),
        "quick": quick,
        "seed": seed,
        "clock": "virtual",
        "profile": "newport",
        "settings": {**asdict(settings), "reasons": REASONS},
        "parameters": [parameter._asdict() for parameter in _parameters()],
    }
    claims = _virtual(result, settings, scale, seed, tell, ends)
    claims += _real(result, settings, real, data, seed, _part(tell, ends[1], 0.95 - ends[1]))
    result["claims"] = [claim.record() for claim in claims]
    result["seconds"] = round(time.perf_counter() - began, 1)
    if out is not None:
        tell("drawing", 0.96)
        result["files"] = write_files(out, result)
        result["seconds"] = round(time.perf_counter() - began, 1)
    return result


def _parameters() -> list[Any]:
    links = load_parameters("emucsd.stannis.fleet", "links.toml")
    return [*profiles.parameters(), *links.values(), *energy.parameters()]


def _part(tell: Tell, start: float, share: float) -> Tell:
    """Tells of a part of the work as of the whole."""
    return lambda text, done: tell(text, start + share * done)


def _virtual(
    result: dict[str, Any], settings: Settings, scale: bool, seed: int, tell: Tell, ends: tuple[float, float]
) -> list[Claim]:
    """Everything in virtual time, into the result."""
    tell("tuning", 0.0)
    found = tune_networks()
    tuned = {name: one for name, (one, _) in found.items()}
    result["tuned"] = {name: asdict(one) for name, one in tuned.items()}
    result["trials"] = {name: [asdict(trial) for trial in tuning.trials] for name, (_, tuning) in found.items()}
    points, trained = measure(tuned, settings, seed, flash_seconds(), _part(tell, 0.01, ends[0] / 2))
    result["points"] = [asdict(point) for point in points]
    power, rows = energies(trained, list(paper.ENERGY))
    result["energy"] = {"power": power.record(), "rows": [asdict(row) for row in rows]}
    tell("what it hangs on", ends[0] / 2 + 0.01)
    result["sensitivity"] = sensitivity(tuned, settings.steps, seed)
    claims = all_claims(tuned, points, rows)
    if scale:
        result["scale"] = run_scale(tuned, power, settings, seed, _part(tell, ends[0], ends[1] - ends[0]))
        claims += retuned_claims(result["scale"]["retuning"])
    return claims


def _real(
    result: dict[str, Any], settings: Settings, real: bool, data: str | None, seed: int, tell: Tell
) -> list[Claim]:
    """The real run, where PyTorch is installed, into the result."""
    if not real:
        result["real_left_out"] = "Left out: --real trains for real."
        return []
    from emucsd.reproduce.stannis.real import lacking, run_real

    if why := lacking():
        result["real_left_out"] = why
        return []
    result["real"] = run_real(settings, data, seed, tell)
    return real_claims(result["real"])


def write_files(out: Path, result: dict[str, Any]) -> list[str]:
    """The report, the plots (where matplotlib is installed) and the JSON. :returns: what was written"""
    from emucsd.reproduce.stannis.plots import draw_all
    from emucsd.reproduce.stannis.report import make_report

    out.mkdir(parents=True, exist_ok=True)
    drawn = draw_all(out, result)
    written = [path for pair in drawn.values() for path in pair]
    report = out / f"{NAME}.html"
    report.write_text(make_report(result, {name: svg for name, (_, svg) in drawn.items()}), encoding="utf-8")
    data = out / f"{NAME}.json"
    files = [str(path) for path in (report, data, *written)]
    data.write_text(json.dumps({**result, "files": files}, indent=2) + "\n", encoding="utf-8")
    return files
