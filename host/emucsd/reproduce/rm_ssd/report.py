"""The report: RM-SSD's figures as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emucsd.baselines import KINDS
from emucsd.reproduce.page import (
    cell,
    claims_table,
    environment,
    figure,
    page,
    parameters_table,
    records,
    table,
    text,
    words,
)
from emucsd.reproduce.rm_ssd.claims import NAMES
from emucsd.reproduce.rm_ssd.plots import COLORS

Result = dict[str, Any]

CAPTIONS = {
    "claims": "Each claim that is a ratio: what is published, and what comes out here.",
    "models": "Every model, served every way, at the largest batch.",
    "time": "Where a sample's time goes; the kinds are explained below the table of points.",
    "lookups": "Time grows with the lookups; on the right, what a batch costs before its first one is visible.",
    "batch": "Throughput against samples a batch.",
    "locality": "Throughput against RecSSD's K: what has a cache feels it, what has none does not.",
    "dies": "The number of dies a channel is published nowhere, and the ratio to SSD-S hangs on it.",
}


def make_report(result: Result, plots: dict[str, Path]) -> str:
    """The page. :param plots: name -> SVG file"""
    return page(
        "RM-SSD, reproduced",
        [
            _head(result),
            "<h2>Claims</h2>",
            claims_table(result["claims"]),
            figure("claims", plots, CAPTIONS),
            "<h2>Every model, every way</h2>",
            figure("models", plots, CAPTIONS),
            figure("time", plots, CAPTIONS),
            _points(result["points"]),
            _kinds(),
            "<h2>One thing varied at a time</h2>",
            *(figure(name, plots, CAPTIONS) for name in ("lookups", "batch", "locality", "dies")),
            _scale(result["sweeps"]["scale"]),
            "<h2>Kernel search</h2>",
            _search(result["search"]),
            *_beyond(result),
            "<h2>Parameters of the host</h2>",
            parameters_table(result["parameters"]),
            "<h2>What was run, and why so</h2>",
            _settings(result["settings"]),
            "<h2>Environment</h2>",
            "<p>The figures are the same on any machine; only the seconds are this one's.</p>",
            environment(result),
        ],
    )


def _head(result: Result) -> str:
    claims = result["claims"]
    near = sum(claim["within_25_percent"] for claim in claims)
    size = result["settings"]["table_bytes"] / (1 << 20)
    what = "A quick run: small tables, few batches; for tests, not for figures. " if result["quick"] else ""
    return f"""<h1>RM-SSD, reproduced</h1>
<p class="lead">{what}{near} of {len(claims)} published figures come out within 25 %; for the others the table says
by how much they differ and what it would take.</p>
<p>RM-SSD (HPCA 2022) runs recommendation inference inside an SSD: embedding lookups at the flash, the layers in its
controller. Here every way to serve a model runs on the same emulated flash (profile <code>rmssd</code>) in virtual
time, which is the same on any machine. {len(result["baselines"])} ways, {len(NAMES)} models of {size:.0f} MiB of
tables each, a trace of RecSSD's generator at K = {result["settings"]["locality"]}. Every way's sums equal NumPy's bit
for bit (RecSSD's, which adds in another order, within 1e-5), its outputs within 1e-5: else there would be no report.
</p>
<p>What the host's own work takes is a model of {len(result["parameters"])} parameters, written down before any figure
was looked at. None is fitted.</p>
{_ways(result["baselines"])}"""


def _ways(baselines: Sequence[dict[str, str]]) -> str:
    items = "".join(
        f'<li><span class="dot" style="background:{COLORS.get(b["name"], "#000")}"></span><b>{text(b["name"])}</b> '
        f"{text(b['about'])}</li>"
        for b in baselines
    )
    return f'<ul class="ways">{items}</ul>'


def _points(points: Sequence[dict[str, Any]]) -> str:
    sizes = sorted({point["batch"] for point in points})
    found = {(p["model"], p["baseline"], p["batch"]): p for p in points}
    rows = []
    for model, way in dict.fromkeys((p["model"], p["baseline"]) for p in points):
        cells = [cell(NAMES[model]), cell(way)]
        for size in sizes:
            point = found[model, way, size]
            cells.append(cell(f"{point['latency_ns'] / 1e3:,.0f}", "number"))
            cells.append(cell(f"{point['rate']:,.0f}", "number"))
        missed = found[model, way, sizes[-1]]
        cells.append(cell("" if missed["misses"] is None else f"{missed['misses'] / missed['lookups']:.0%}", "number"))
        rows.append(cells)
    heads = ["model", "way"]
    for size in sizes:
        heads += [f"us a batch of {size}", "samples/s"]
    return f"<details><summary>All points</summary>{table([*heads, 'page-cache misses'], rows, 'points')}</details>"


def _kinds() -> str:
    kinds = {**KINDS, "drive": "what the host waits for the drive"}
    items = "".join(f"<dt>{text(kind)}</dt><dd>{text(about)}</dd>" for kind, about in kinds.items())
    return f"<details><summary>What a batch's time is made of</summary><dl>{items}</dl></details>"


def _scale(sweep: dict[str, Any]) -> str:
    """Tables of the paper's size, whose rows are made from a seed."""
    times: dict[str, list[str]] = {}
    for point in sweep["points"]:
        size = f"{point['latency_ns'] / point['lookups']:.0f} ns with {point['table_bytes'] / 1e9:.3g} GB"
        times.setdefault(point["baseline"], []).append(size)
    told = "; ".join(f"{way} {' and '.join(each)}" for way, each in times.items())
    return (
        f"<p>The same at the paper's size, a lookup ({text(sweep['about'])}): {told}. They differ by how evenly "
        "chance deals the ids to the dies.</p>"
    )


def _search(search: dict[str, Any]) -> str:
    rows = [
        (
            cell(kind.upper()),
            cell(f"{search['plain'][kind]:,}", "number"),
            cell(f"{search['searched'][kind]:,}", "number"),
            cell(f"{search['saved'][kind]:.0%}", "number"),
        )
        for kind in search["saved"]
    ]
    used = table(("resource", "without", "with the search", "saved"), rows)
    layers = "".join(
        f"<h3>{title}</h3>{_layers(search[key])}"
        for title, key in (("Kernels without the search", "plain_layers"), ("Kernels with it", "searched_layers"))
    )
    model, change = NAMES[search["model"]], search["faster"]
    return (
        f"<p>{model} on {text(search['fpga'])}; throughput with the search {change:+.2%}.</p>"
        f"{used}<details><summary>Layer by layer</summary>{layers}</details>"
    )


def _layers(layers: Sequence[dict[str, Any]]) -> str:
    rows = [
        (
            cell(layer["group"]),
            cell(f"{layer['inputs']} x {layer['outputs']}", "number"),
            cell(f"{layer['kr']} x {layer['kc']}", "number"),
            cell(layer["placement"]),
            cell(f"{layer['cycles']:,}", "number"),
        )
        for layer in layers
    ]
    return table(("layers", "inputs x outputs", "kernel", "weights in", "cycles a mini-batch"), rows)


def gains(beyond: dict[str, Any]) -> tuple[list[str], list[tuple[str, str, list[float | None]]]]:
    """What each mechanism beyond the paper buys.

    :returns: the workloads' names; and (mechanism, what it is compared with, its ratio on each of them)
    """
    names = [workload["name"] for workload in beyond["workloads"]]
    found = {(row["mechanism"], row["workload"]): row for row in beyond["rows"]}
    rows = []
    for mechanism in dict.fromkeys(row["mechanism"] for row in beyond["rows"]):
        each = [found.get((mechanism, name)) for name in names]
        versus = next(row["versus"] for row in each if row) or ""
        if versus:
            rows.append((mechanism, versus, [None if row is None else float(row["ratio"]) for row in each]))
    return names, rows


def reached(beyond: dict[str, Any]) -> str:
    """What all of it together reaches, and what costs something by itself."""
    floor = beyond["floor"]
    together, slower = floor["all_together"], floor["slower_alone"]
    told = (
        f"All together reach {floor['wanted']['speedup']:g}x on {len(floor['fast_enough'])} of {len(together)} "
        f"workloads, and never less than {min(together.values()):.2f}x."
    )
    return f"{told} Slower by themselves: {'; '.join(slower)}." if slower else told


def _beyond(result: Result) -> list[str]:
    """Each mechanism's throughput over what it is compared with, on each workload."""
    if "beyond" not in result:
        return []
    beyond = result["beyond"]
    names, rows = gains(beyond)
    about = {mechanism["name"]: mechanism["about"] for mechanism in beyond["mechanisms"]}
    cells = [
        [
            f"<td>{text(mechanism)}<div class='source'>{text(about[mechanism])}</div></td>",
            cell(versus),
            *(cell("" if r is None else f"{r:.2f}x", "number " + ("near" if r and r >= 2 else "")) for r in ratios),
        ]
        for mechanism, versus, ratios in rows
    ]
    return [
        "<h2>Beyond the paper</h2>",
        f"<p>Throughput of lookups over our own RM-SSD's, on the same flash. {text(reached(beyond))}</p>",
        table(["mechanism", "over", *(text(name) for name in names)], cells),
        f"<details><summary>All figures</summary>{records(beyond['rows'])}</details>",
        f"<details><summary>Its parameters</summary>{records(beyond['parameters'])}</details>",
    ]


def _settings(settings: dict[str, Any]) -> str:
    items = "".join(
        f"<dt>{words(name)}</dt><dd>{_value(settings.get(name))}{text(reason)}</dd>"
        for name, reason in settings["reasons"].items()
    )
    return f"<dl>{items}</dl>"


def _value(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, dict):
        value = ", ".join(f"{count} of {size}" for size, count in value.items())
    elif isinstance(value, int) and value > 1 << 20:
        value = f"{value / (1 << 20):.0f} MiB"
    return f"<b>{text(value)}</b>: "
