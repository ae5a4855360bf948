"""The run's plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emucsd.reproduce import drawing
from emucsd.reproduce.drawing import OURS, PUBLISHED, Plot, Result, draw_claims, logarithmic
from emucsd.reproduce.stannis import published as paper
from emucsd.stannis.fleet import profiles

COLORS = {
    "mobilenet_v2": "#1f5f99",
    "squeezenet": "#64a36f",
    "nasnet": "#ccb974",
    "inception_v3": "#8172b3",
}
ALGORITHM_COLORS = {"ring": "#1f5f99", "tree": "#a07855", "hierarchical": "#64a36f"}
GREY = "#b8b8b8"
Rows = Sequence[dict[str, Any]]


def draw_all(out: Path, result: Result) -> dict[str, tuple[Path, Path]]:
    """Draw every plot that this result has figures for. :returns: name -> (PNG, SVG)"""
    wanted = {name: plot for name, plot in PLOTS.items() if NEEDS.get(name, "claims") in result}
    return drawing.draw_all(out, result, wanted)


def _title(network: str) -> str:
    return profiles.network(network).title


def _line(axes: Any, rows: Rows, x: str, y: str, scale: float = 1.0, **how: Any) -> None:
    axes.plot([row[x] for row in rows], [scale * row[y] for row in rows], "o-", markersize=3.5, **how)
    axes.grid(alpha=0.3)


def draw_batches(figure: Any, result: Result) -> None:
    """Table I: the host's batches."""
    left, right = figure.subplots(1, 2)
    names = list(result["tuned"])
    for axes, kind, what in ((left, "host", "the host's batch (predicted)"), (right, "newport", "Newport's (input)")):
        theirs = [getattr(profiles.network(name), kind).batch for name in names]
        ours = [result["tuned"][name][kind] for name in names]
        places = range(len(names))
        for shift, values, color, label in ((-0.2, theirs, PUBLISHED, "published"), (0.2, ours, OURS, "ours")):
            bars = axes.bar([place + shift for place in places], values, 0.38, color=color, label=label)
            axes.bar_label(bars, fontsize=7)
        axes.set_xticks(places, [_title(name) for name in names], fontsize=8)
        axes.set_title(what)
    left.set_ylabel("images a step")
    left.legend()


def draw_speed(figure: Any, result: Result) -> None:
    """Figure 6: images/s and speed-up against the number of CSDs."""
    left, right = figure.subplots(1, 2)
    for name, color in COLORS.items():
        rows = [point for point in result["points"] if point["network"] == name]
        _line(left, rows, "csds", "rate", color=color, label=_title(name))
        _line(right, rows, "csds", "speedup", color=color, label=_title(name))
    right.plot([paper.CSDS], [paper.SPEEDUP], "*", color=PUBLISHED, markersize=12, label="published: up to 2.7x")
    right.axhline(1, color="#555", linewidth=0.8)
    left.set(xlabel="CSDs", ylabel="images/s", title="host and CSDs together")
    logarithmic(left, y=True)
    right.set(xlabel="CSDs", ylabel="over the host alone", title="speed-up")
    right.legend(fontsize=8)


def draw_slowdown(figure: Any, result: Result) -> None:
    """Figure 7: what one CSD loses in a group."""
    left, right = figure.subplots(1, 2)
    for name, color in COLORS.items():
        rows = [point for point in result["points"] if point["network"] == name and point["csds"]]
        _line(left, rows, "csds", "slowdown", 100.0, color=color, label=_title(name))
        last = rows[-1]["reduce_seconds"]
        _line(right, rows, "csds", "reduce_seconds", 100 / last, color=color)
    left.set(xlabel="CSDs", ylabel="% of its rate alone", title="what one CSD loses", ylim=(0, None))
    right.axvspan(5, 6, color=PUBLISHED, alpha=0.2, label="published: converges after 5 to 6")
    right.set(xlabel="CSDs", ylabel="% of its time with 24", title="the all-reduce by itself", ylim=(0, None))
    left.legend(fontsize=8)
    right.legend(fontsize=8)


def draw_energy(figure: Any, result: Result) -> None:
    """Table II, both rows."""
    left, right = figure.subplots(1, 2)
    rows = result["energy"]["rows"]
    csds = list(paper.ENERGY)
    first = paper.ENERGY[0].flops
    left.plot(csds, [row.energy for row in paper.ENERGY.values()], "o--", color=PUBLISHED, label="published")
    _line(left, rows, "csds", "joules_per_image", color=OURS, label="ours (0 and 24 fitted)")
    right.plot(csds, [row.flops / first for row in paper.ENERGY.values()], "o--", color=PUBLISHED, label="published")
    _line(right, rows, "csds", "flops_ratio", color=OURS, label="ours, no drives but these")
    inverse = [rows[0]["joules_per_image"] / row["joules_per_image"] for row in rows]
    right.plot(csds, inverse, ":", color=GREY, label="ours, by the energies on the left")
    left.set(xlabel="CSDs", ylabel="J an image", title="energy, MobileNetV2", ylim=(0, None))
    right.set(xlabel="CSDs", ylabel="over the host alone", title="FLOPS per watt", ylim=(0, None))
    left.legend()
    right.legend(fontsize=8)


def draw_hosts(figure: Any, result: Result) -> None:
    """Several hosts of 24 drives: how much of all engines' rates is left."""
    rows = result["scale"]["hosts"]
    names = list(dict.fromkeys(row["network"] for row in rows))
    panels = figure.subplots(1, len(names) + 1)
    for axes, name in zip(panels, names, strict=False):
        for algorithm, color in ALGORITHM_COLORS.items():
            line = [row for row in rows if row["network"] == name and row["algorithm"] == algorithm]
            _line(axes, line, "drives", "efficiency", 100.0, color=color, label=algorithm)
        axes.set(xlabel="drives, 24 a host", ylabel="% of all engines' rates", title=_title(name), ylim=(0, 100))
        logarithmic(axes, x=True)
    for algorithm, color in ALGORITHM_COLORS.items():
        line = [row for row in rows if row["network"] == names[0] and row["algorithm"] == algorithm]
        _line(panels[-1], line, "drives", "sync_seconds", color=color, label=algorithm)
    panels[-1].set(xlabel="drives, 24 a host", ylabel="s", title=f"all-reduce, {_title(names[0])}", ylim=(0, None))
    logarithmic(panels[-1], x=True)
    panels[0].legend()


def draw_one_host(figure: Any, result: Result) -> None:
    """One host with ever more drives: where it saturates."""
    rows = result["scale"]["one_host"]
    axes = figure.subplots()
    for algorithm, color in ALGORITHM_COLORS.items():
        line = [row for row in rows if row["algorithm"] == algorithm]
        _line(axes, line, "drives", "sync_seconds", color=color, label=algorithm)
    line = [row for row in rows if row["algorithm"] == "ring"]
    limit = [row["link_seconds"]["hosts"] for row in line]
    axes.plot([row["drives"] for row in line], limit, ":", color=GREY, label="what the host's processes take")
    logarithmic(axes, x=True, y=True)
    axes.set(xlabel="drives of one host", ylabel="s of all-reduce", title="MobileNetV2 on one host")
    axes.legend()


def draw_imbalance(figure: Any, result: Result) -> None:
    """What one drive's large private pool costs everybody."""
    rows = result["scale"]["imbalance"]
    axes = figure.subplots()
    _line(axes, rows, "skew", "epoch_over_even", color=OURS)
    for row in (row for row in rows if row["strategy"] != "public"):
        axes.annotate(
            row["strategy"],
            (row["skew"], row["epoch_over_even"]),
            fontsize=7,
            xytext=(3, -9),
            textcoords="offset points",
        )
    axes.set(
        xlabel="private images of the fullest drive, over the mean",
        ylabel="epoch's time over the even one's",
        ylim=(0, None),
    )
    axes.set_title("one drive with more private images than the others")


def draw_retuning(figure: Any, result: Result) -> None:
    """Images/s with fixed batches and with those that follow."""
    rows = result["scale"]["retuning"][::-1]
    axes = figure.subplots()
    places = range(len(rows))
    kinds = (("rate_fixed", "fixed batches", GREY, 0.2), ("rate", "batches that follow", OURS, -0.2))
    for key, label, color, shift in kinds:
        bars = axes.barh(
            [place + shift for place in places], [row[key] for row in rows], 0.38, color=color, label=label
        )
        if key == "rate":
            axes.bar_label(
                bars,
                [f"{row['gain']:.2f}x, {row['energy_gain']:.2f}x less energy" for row in rows],
                fontsize=7,
                padding=2,
            )
    axes.set_yticks(places, [row["case"] for row in rows])
    axes.set(xlabel="images/s", xlim=(0, 1.35 * max(row["rate"] for row in rows)))
    axes.legend(fontsize=8, loc="lower right")
    axes.set_title("MobileNetV2, 24 CSDs, engines that slow down", loc="left")


def draw_real(figure: Any, result: Result) -> None:
    """Loss of one process and of six unequal ranks, step by step."""
    real = result["real"]
    left, right = figure.subplots(1, 2)
    for number, line in enumerate(real["spread"]["curves"]):
        left.plot(line, color=GREY, linewidth=0.8, label="one process, other orders" if not number else None)
    left.plot(real["one"]["curve"], color=PUBLISHED, linewidth=2.5, label="one process, the same steps")
    left.plot(real["six"]["curve"], "--", color=OURS, label="six unequal ranks")
    left.set(xlabel="step", ylabel="training loss", title=f"{real['train_images']} images, {real['epochs']} epochs")
    left.legend(fontsize=8)
    ranks = real["ranks"]
    bars = right.bar([rank["node"] for rank in ranks], [rank["batch"] for rank in ranks], color=OURS)
    right.bar_label(bars, [f"{rank['batch']}" for rank in ranks], fontsize=8)
    right.bar(
        [rank["node"] for rank in ranks], [rank["batch"] * rank["private_share"] for rank in ranks], color=PUBLISHED
    )
    right.set(ylabel="images a step", title="the six ranks' batches; red: private")


PLOTS: dict[str, Plot] = {
    "claims": ((9, 3.8), draw_claims),
    "batches": ((10, 3.2), draw_batches),
    "speed": ((10, 3.8), draw_speed),
    "slowdown": ((10, 3.6), draw_slowdown),
    "energy": ((10, 3.6), draw_energy),
    "hosts": ((11, 3.6), draw_hosts),
    "one-host": ((6.5, 3.4), draw_one_host),
    "imbalance": ((6.5, 3.2), draw_imbalance),
    "retuning": ((8.5, 3.2), draw_retuning),
    "real": ((10, 3.6), draw_real),
}
NEEDS = {"hosts": "scale", "one-host": "scale", "imbalance": "scale", "retuning": "scale", "real": "real"}
