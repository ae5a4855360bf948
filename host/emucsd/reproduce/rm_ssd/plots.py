"""The run's plots."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from emucsd.reproduce import drawing
from emucsd.reproduce.drawing import Plot, Result, draw_claims, logarithmic
from emucsd.reproduce.rm_ssd.claims import NAMES

COLORS = {
    "DRAM": "#b8b8b8",
    "SSD-S": "#c44e52",
    "SSD-M": "#dd9a8f",
    "EMB-MMIO": "#a07855",
    "EMB-PageSum": "#ccb974",
    "EMB-VectorSum": "#64a36f",
    "RecSSD": "#8172b3",
    "RM-SSD-Naive": "#7fb0d8",
    "RM-SSD": "#1f5f99",
}
KINDS = {
    "framework": "#b8b8b8",
    "layers": "#ccb974",
    "hits": "#dd9a8f",
    "misses": "#c44e52",
    "rows": "#a07855",
    "calls": "#8172b3",
    "drive": "#1f5f99",
}
Point = dict[str, Any]


def draw_all(out: Path, result: Result) -> dict[str, tuple[Path, Path]]:
    """Draw every plot into a folder. :returns: name -> (PNG, SVG)"""
    return drawing.draw_all(out, result, PLOTS)


def draw_models(figure: Any, result: Result) -> None:
    """Throughput over SSD-S at the largest batch, model by model, way by way."""
    size = max(point["batch"] for point in result["points"])
    rates = {(p["model"], p["baseline"]): p["rate"] for p in result["points"] if p["batch"] == size}
    models = list(dict.fromkeys(model for model, _ in rates))
    ways = [name for name in COLORS if (models[0], name) in rates]
    axes = figure.subplots()
    width = 0.88 / len(ways)
    for turn, way in enumerate(ways):
        ratios = [rates[model, way] / rates[model, "SSD-S"] for model in models]
        places = [number - 0.44 + (turn + 0.5) * width for number in range(len(models))]
        bars = axes.bar(places, ratios, width, color=COLORS[way], label=way)
        labels = [f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.2g}" for ratio in ratios]
        axes.bar_label(bars, labels=labels, fontsize=6, padding=1)
    logarithmic(axes, y=True, unit="x")
    axes.axhline(1, color="#555", linewidth=0.8)
    axes.set_xticks(range(len(models)), [NAMES[model] for model in models])
    axes.set_ylabel("throughput over SSD-S")
    axes.set_title(f"throughput at batches of {size}, as multiples of SSD-S's")
    axes.legend(ncols=min(len(ways), 5), fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.08))


def draw_latency(figure: Any, result: Result) -> None:
    """Where a batch's time goes, at the smallest and the largest batch."""
    sizes = sorted({point["batch"] for point in result["points"]})
    panels = figure.subplots(1, 2)
    for axes, size in zip(panels, (sizes[0], sizes[-1]), strict=True):
        points = [p for p in result["points"] if p["batch"] == size and p["baseline"] in _SPENT]
        labels = [f"{NAMES[p['model']]} {p['baseline']}" for p in points][::-1]
        whole = [p["latency_ns"] for p in points][::-1]
        left = [0.0] * len(points)
        for kind, color in KINDS.items():
            widths = [100 * p["spent"].get(kind, 0.0) / total for p, total in zip(points[::-1], whole, strict=True)]
            axes.barh(labels, widths, left=left, color=color, label=kind)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        for place, total in enumerate(whole):
            axes.text(101, place, f"{total / size / 1e3:,.0f} us", va="center", fontsize=7)
        axes.set(xlim=(0, 100), xlabel="% of the time of a sample", title=f"batches of {size}")
        axes.tick_params(axis="y", labelsize=7)
    figure.legend(*panels[0].get_legend_handles_labels(), ncols=len(KINDS), loc="outside lower center", fontsize=8)


_SPENT = ("SSD-S", "EMB-VectorSum", "RecSSD", "RM-SSD")


def _lines(axes: Any, points: list[Point], x: str, y: Callable[[Point], float]) -> None:
    for way in dict.fromkeys(point["baseline"] for point in points):
        line = [point for point in points if point["baseline"] == way]
        axes.plot([p[x] for p in line], [y(p) for p in line], "o-", color=COLORS[way], label=way, markersize=4)
    axes.grid(alpha=0.3)


def draw_lookups(figure: Any, result: Result) -> None:
    """Time against lookups, linear and logarithmic."""
    sweep = result["sweeps"]["lookups"]
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        _lines(axes, sweep["points"], "lookups_a_bag", lambda p: float(p["latency_ns"]) / p["batch"] / 1e6)
        axes.set(xlabel="lookups a bag", ylabel="ms a sample")
    left.set_title(f"time of a sample ({sweep['about']})")
    right.set_title("the same, logarithmic")
    logarithmic(right, x=True, y=True)
    left.legend()


def draw_batches(figure: Any, result: Result) -> None:
    """Throughput against the batch."""
    points = result["sweeps"]["batch"]["points"]
    models = list(dict.fromkeys(point["model"] for point in points))
    for axes, model in zip(figure.subplots(1, len(models), squeeze=False)[0], models, strict=True):
        _lines(axes, [p for p in points if p["model"] == model], "samples_a_batch", lambda p: float(p["rate"]))
        axes.set(xlabel="samples a batch", ylabel="samples a second", title=NAMES[model])
        logarithmic(axes, y=True)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.legend(fontsize=8)


def draw_locality(figure: Any, result: Result) -> None:
    """Throughput against K."""
    sweep = result["sweeps"]["locality"]
    axes = figure.subplots()
    _lines(axes, sweep["points"], "k", lambda p: float(p["rate"]))
    logarithmic(axes, y=True)
    axes.set(xlabel="K (larger: less locality)", ylabel="samples a second")
    axes.set_title(f"throughput against locality ({sweep['about']})")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def draw_dies(figure: Any, result: Result) -> None:
    """What the ratio hangs on: dies a channel."""
    sweep = result["sweeps"]["dies"]
    base = {p["dies_a_channel"]: p for p in sweep["points"] if p["baseline"] == "SSD-S"}
    axes = figure.subplots()
    for way, key, label in (("EMB-VectorSum", "sls_ns", "SLS operator"), ("RM-SSD", "latency_ns", "whole batch")):
        line = [p for p in sweep["points"] if p["baseline"] == way]
        dies = [p["dies_a_channel"] for p in line]
        axes.plot(
            dies,
            [base[p["dies_a_channel"]][key] / p[key] for p in line],
            "o-",
            color=COLORS[way],
            label=f"{way}: {label}",
        )
    axes.axhline(16, color="#c44e52", linewidth=0.8, linestyle="--", label="published, SLS")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(base), [str(dies) for dies in sorted(base)])
    axes.set(xlabel="dies a channel (4 in profile rmssd)", ylabel="times faster than SSD-S")
    axes.set_title(f"what the ratio hangs on ({sweep['about']})")
    axes.grid(alpha=0.3)
    axes.legend()


PLOTS: dict[str, Plot] = {
    "claims": ((9, 3.4), draw_claims),
    "models": ((10, 4), draw_models),
    "time": ((11, 5), draw_latency),
    "lookups": ((10, 3.6), draw_lookups),
    "batch": ((10, 3.8), draw_batches),
    "locality": ((7.5, 3.4), draw_locality),
    "dies": ((6.5, 3.4), draw_dies),
}
