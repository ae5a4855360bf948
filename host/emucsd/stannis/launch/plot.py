"""A picture of a run: its loss, and what each node did per second. Needs matplotlib."""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any

from emucsd.stannis.launch.standing import TIMES

_SMOOTH = 10  # steps that a rate is averaged over


def plot(record: dict[str, Any], folder: Path) -> str | None:
    """``plot.png`` in the run folder. :returns: its path; None where matplotlib is missing or nothing was trained"""
    steps = _steps(folder)
    if not steps or importlib.util.find_spec("matplotlib") is None:
        return None
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    figure, (above, below) = pyplot.subplots(2, 1, figsize=(8, 6), sharex=True, constrained_layout=True)
    losses = record["training"]["losses"]
    above.plot([at for at, _ in losses], [loss for _, loss in losses])
    above.set_ylabel("loss")
    for node, found in steps.items():
        below.plot([at for at, _ in found], _smooth([rate for _, rate in found]), label=node)
    below.set_yscale("log")
    below.set_ylabel("images/s")
    below.set_xlabel("step")
    below.legend(fontsize="small")
    path = folder / "plot.png"
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return str(path)


def _steps(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Node -> (step, images/s), waiting included."""
    found: dict[str, list[tuple[int, float]]] = {}
    try:
        lines = (folder / "events.jsonl").read_text().splitlines()
    except OSError:
        return {}
    for line in lines:
        event = json.loads(line)
        if event["event"] != "step":
            continue
        for place, node in enumerate(event["nodes"]):
            if (seconds := sum(event[name][place] for name in TIMES)) > 0:
                found.setdefault(node, []).append((event["step"], event["images"][place] / seconds))
    return found


def _smooth(values: list[float]) -> list[float]:
    """Each with those before it."""
    return [sum(part) / len(part) for part in (values[max(n - _SMOOTH, 0) : n + 1] for n in range(len(values)))]
