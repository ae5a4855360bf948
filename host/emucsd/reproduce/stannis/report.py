"""The report: Stannis' figures as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emucsd.reproduce.claim import is_near
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
from emucsd.stannis.fleet import profiles

Result = dict[str, Any]

KINDS = {  # what a claim's note begins with
    "Predicted": "predicted",
    "Input": "inputs",
    "Fitted": "fitted",
    "Real": "really trained",
    "No check": "in cases of our own choice",
}
CAPTIONS = {
    "claims": "Each claim that is a ratio: what is published, and what comes out here.",
    "batches": "Table I's batches. The host's is predicted by Algorithm 1; Newport's, where its rate peaks, is input.",
    "speed": "The paper's Figure 6: all engines together, and over the host alone.",
    "slowdown": "The paper's Figure 7: what a CSD loses of its rate in a group, and how the all-reduce's time grows.",
    "energy": "Table II. The second row agrees with the first if its server holds no drives but the CSDs in use.",
    "hosts": "24 drives a host, hosts joined by 10 Gbit Ethernet: how much of all engines' rates is left.",
    "one-host": "A host with ever more drives. Once its processes carry all they can, every further drive costs all.",
    "imbalance": "Public images even out what they can; after that the fullest drive decides the length of an epoch.",
    "retuning": "Engines that serve others beside: with the batches as tuned before, and with the retuner's.",
    "real": "Really trained, on this machine: the two thick lines lie on each other.",
}


def make_report(result: Result, plots: dict[str, Path]) -> str:
    """The page. :param plots: name -> SVG file"""

    def drawn(*names: str) -> list[str]:
        return [figure(name, plots, CAPTIONS) for name in names]

    return page(
        "Stannis, reproduced",
        [
            _head(result),
            "<h2>Claims</h2>",
            claims_table(result["claims"]),
            *drawn("claims"),
            "<h2>Table I: tuned batches</h2>",
            *drawn("batches"),
            _tuning(result["tuned"]),
            "<h2>Figures 6 and 7: speed</h2>",
            *drawn("speed", "slowdown"),
            f"<details><summary>All points</summary>{_points(result['points'])}</details>",
            "<h2>What the speed-up hangs on</h2>",
            _sensitivity(result["sensitivity"]),
            "<h2>Table II: energy</h2>",
            *drawn("energy"),
            _energy(result["energy"]),
            *_scale(result, drawn),
            *_real(result, drawn),
            "<h2>Parameters</h2>",
            parameters_table(result["parameters"]),
            "<h2>What was run, and why so</h2>",
            _settings(result["settings"]),
            "<h2>Environment</h2>",
            "<p>Virtual time is the same on any machine; the real run's figures and the seconds are this one's.</p>",
            environment(result),
        ],
    )


def _head(result: Result) -> str:
    claims = result["claims"]
    near = sum(is_near(claim) for claim in claims)
    what = "A quick run: few steps; for tests, not for figures. " if result["quick"] else ""
    kinds = {kind: sum(claim["note"].startswith(kind) for claim in claims) for kind in KINDS}
    told = ", ".join(f"{count} {KINDS[kind]}" for kind, count in kinds.items() if count)
    return f"""<h1>Stannis, reproduced</h1>
<p class="lead">{what}{near} of {len(claims)} published figures come out within 15 %; for the others the table says
why not. The table marks what each is: {told}.</p>
<p>Stannis (2020) trains neural networks on a server and on the processors inside of its 24 Newport drives. Here its
tuner and planner run for real on engines whose speeds are Table I's; training steps, tunnels and the all-reduce over
them run in virtual time, the same on any machine. One rate is fitted to the 2.7x; the power of a server, a CSD and an
SSD is solved for from Table II's ends.</p>"""


def _tuning(tuned: dict[str, dict[str, Any]]) -> str:
    rows = []
    for name, ours in tuned.items():
        net = profiles.network(name)
        numbers = (
            f"{net.newport.batch} / {ours['newport']}",
            f"{net.host.batch} / {ours['host']}",
            f"{net.newport.batch / net.newport.rate:.2f} / {ours['seconds'][0]:.2f}",
            f"{net.host.batch / net.host.rate:.2f} / {ours['seconds'][1]:.2f}",
            f"{ours['trials']}",
            f"{ours['fits'][0]:,} / {ours['fits'][1]:,}",
        )
        rows.append([cell(net.title), *(cell(number, "number") for number in numbers)])
    heads = (
        "network",
        "Newport's batch",
        "host's batch",
        "Newport's step, s",
        "host's step, s",
        "benchmarks",
        "would fit",
    )
    return (
        "<p>Published / ours; the last column: the largest batches that Newport's and the host's memory take.</p>"
        + table(heads, rows)
    )


def _points(points: Sequence[dict[str, Any]]) -> str:
    rows = [
        [
            cell(profiles.network(point["network"]).title),
            cell(point["csds"], "number"),
            cell(f"{point['rate']:.2f}", "number"),
            cell(f"{point['speedup']:.3f}x", "number"),
            cell(f"{point['slowdown']:.1%}", "number"),
            cell(f"{point['step_seconds']:.3f}", "number"),
            cell(f"{point['sync_seconds']:.3f}", "number"),
            cell(f"{point['waiting'][0]:.1%} / {point['waiting'][1]:.1%}", "number"),
        ]
        for point in points
    ]
    heads = ("network", "CSDs", "images/s", "speed-up", "a CSD loses", "step, s", "all-reduce, s", "host / CSDs wait")
    return table(heads, rows, "points")


def _sensitivity(rows: Sequence[dict[str, Any]]) -> str:
    names = list(rows[0]["speedups"])
    cells = [
        [
            cell(row["what"]),
            *(cell(f"{row['speedups'][name]:.2f}x", "number") for name in names),
            cell(row["converges"], "number"),
        ]
        for row in rows
    ]
    heads = ["changed", *(profiles.network(name).title for name in names), "bends at"]
    return "<p>Speed-up with 24 CSDs, one parameter changed at a time, nothing fitted anew.</p>" + table(heads, cells)


def _energy(energy: dict[str, Any]) -> str:
    power = energy["power"]
    rows = [
        [cell(words(name)), *(cell(f"{power[name][key]:.2f}", "number") for key in ("idle", "busy", "link"))]
        for name in ("host", "csd", "ssd")
    ]
    watts = table(("node", "idle, W", "busy, W", "its link, W"), rows)
    return f"{watts}{records(energy['rows'])}"


def _scale(result: Result, drawn: Any) -> list[str]:
    if "scale" not in result:
        return []
    scale = result["scale"]
    return [
        "<h2>More drives, more hosts</h2>",
        *(f"<p>{text(said)}</p>" for said in scale["said"]),
        *drawn("hosts", "one-host"),
        f"<details><summary>All figures</summary>{records([*scale['hosts'], *scale['one_host']])}</details>",
        "<h2>Unequal private data</h2>",
        *drawn("imbalance"),
        records(scale["imbalance"]),
        "<h2>Engines that slow down</h2>",
        *drawn("retuning"),
        records(scale["retuning"]),
    ]


def _real(result: Result, drawn: Any) -> list[str]:
    if "real" not in result:
        return ["<h2>Really trained</h2>", f"<p>{text(result['real_left_out'])}</p>"]
    real = result["real"]
    return [
        "<h2>Really trained</h2>",
        f"<p>{text(real['about'])}</p>",
        *drawn("real"),
        records([real["one"], real["six"], *real["spread"]["runs"]]),
        records(real["ranks"]),
    ]


def _settings(settings: dict[str, Any]) -> str:
    items = "".join(
        f"<dt>{words(name)}</dt><dd><b>{text(settings[name])}</b>: {text(reason)}</dd>"
        for name, reason in settings["reasons"].items()
    )
    return f"<dl>{items}</dl>"
