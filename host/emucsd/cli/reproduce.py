"""`emucsd reproduce`: a paper's figures, measured again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from emucsd.cli.command import Command, Option, Result, Settings
from emucsd.cli.progress import bar


def _chosen(settings: Settings) -> dict[str, Any]:
    return {"quick": settings.quick, "beyond": settings.beyond, "seed": settings.seed}


def plan(settings: Settings) -> Result:
    return {"use": _chosen(settings), **_written(settings, "rm-ssd")}


def _written(settings: Settings, name: str) -> Result:
    out = Path(settings.out).absolute()
    return {"write": [str(out / f"{name}.html"), str(out / f"{name}.json"), "and its plots"]}


def run(settings: Settings) -> Result:
    """Measure, compare, draw."""
    from emucsd.reproduce.rm_ssd.run import run_reproduce

    with bar("starting", 1.0) as advance:
        return run_reproduce(Path(settings.out), tell=lambda text, done: advance(done, text), **_chosen(settings))


def show(result: Result, console: Console) -> None:
    """The claims, and where the rest is."""
    _show_claims(result["claims"], console)
    if "beyond" in result:
        _show_beyond(result["beyond"], console)
    _show_end(result, console)


def _show_claims(claims: list[Result], console: Console) -> None:
    """Each with its deviation, and why the far ones are far."""
    from emucsd.reproduce.claim import is_near
    from emucsd.reproduce.page import shown

    sheet = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    sheet.add_column("claim", overflow="fold")
    for head in ("published", "ours", "deviation"):
        sheet.add_column(head, justify="right", no_wrap=True)
    for claim in claims:
        color = "green" if is_near(claim) else "red"
        sheet.add_row(
            escape(claim["claim"]),
            shown(claim["published"], claim["unit"]),
            shown(claim["ours"], claim["unit"]),
            f"[{color}]{claim['deviation']:+.0%}[/]",
        )
    console.print(sheet)
    for claim in claims:
        if not is_near(claim):
            console.print(f"[bold]{escape(claim['claim'])}[/]: {escape(claim['note'])}", soft_wrap=True)


def _show_end(result: Result, console: Console) -> None:
    quick = " A quick run: for tests, not for figures." if result["quick"] else ""
    console.print(f"Virtual time, seed {result['seed']}; {result['seconds']:.0f} s in all.{quick}")
    for path in result.get("files", []):
        console.print(f"written: {escape(path)}", soft_wrap=True)


def _show_beyond(beyond: Result, console: Console) -> None:
    """Each mechanism's gain on each workload."""
    from emucsd.reproduce.rm_ssd.report import gains, reached

    names, rows = gains(beyond)
    sheet = Table(title="beyond the paper: throughput over RM-SSD", box=box.SIMPLE_HEAD, pad_edge=False)
    sheet.add_column("mechanism", no_wrap=True)
    for name in names:
        sheet.add_column(escape(name), justify="right")
    for mechanism, versus, ratios in rows:
        against = "" if versus in ("", "RM-SSD") else f" (over {versus})"
        sheet.add_row(escape(mechanism + against), *("" if r is None else f"{r:.2f}x" for r in ratios))
    console.print(sheet)
    console.print(reached(beyond), soft_wrap=True)


RM_SSD = Command(
    name="rm-ssd",
    summary="serve recommendation models in and beside the drive, and compare with RM-SSD's published figures",
    run=run,
    show=show,
    plan=plan,
    options=(
        Option("--out", "folder for the report, the plots and the JSON", "rm-ssd-out", metavar="DIR"),
        Option("--quick", "small tables and few batches: seconds instead of minutes, for tests", False),
        Option("--beyond", "also what the mechanisms beyond the paper buy", False),
        Option("--seed", "of tables, weights and traces", 1, int),
    ),
    examples=("emucsd reproduce rm-ssd", "emucsd reproduce rm-ssd --quick --json", "emucsd reproduce rm-ssd --beyond"),
)  # fmt: skip

# -- Stannis


def _stannis(settings: Settings) -> dict[str, Any]:
    """A quick run leaves out what is not asked for."""
    return {
        "quick": settings.quick,
        "scale": settings.scale or not settings.quick,
        "real": settings.real or not settings.quick,
        "data": settings.data or None,
        "seed": settings.seed,
    }


def plan_stannis(settings: Settings) -> Result:
    return {"use": _stannis(settings), **_written(settings, "stannis")}


def run_stannis(settings: Settings) -> Result:
    """Tune and plan for real, train in virtual time and for real, compare, draw."""
    from emucsd.reproduce.stannis.run import run_reproduce

    with bar("starting", 1.0) as advance:
        return run_reproduce(Path(settings.out), tell=lambda text, done: advance(done, text), **_stannis(settings))


def show_stannis(result: Result, console: Console) -> None:
    """The claims, what scale shows, what was really trained, and where the rest is."""
    _show_claims(result["claims"], console)
    for said in result.get("scale", {}).get("said", ()):
        console.print(escape(said), soft_wrap=True)
    told = result["real"]["about"] if "real" in result else result["real_left_out"]
    console.print(escape(told), soft_wrap=True)
    _show_end(result, console)


STANNIS = Command(
    name="stannis",
    summary="train on a host and the engines of its drives, and compare with Stannis' published figures",
    run=run_stannis,
    show=show_stannis,
    plan=plan_stannis,
    options=(
        Option("--out", "folder for the report, the plots and the JSON", "stannis-out", metavar="DIR"),
        Option("--quick", "few steps: seconds instead of minutes, for tests", False),
        Option("--real", "with --quick: train for real as well, in small", False),
        Option("--scale", "with --quick: also more drives, several hosts, engines that slow down", False),
        Option("--data", "images to train on for real: a tar of CLASS/*.jpg; else generated ones", "", metavar="FILE"),
        Option("--seed", "of jitter, weights and orders", 1, int),
    ),
    examples=(
        "emucsd reproduce stannis",
        "emucsd reproduce stannis --data cifar10.tar --out results",
        "emucsd reproduce stannis --quick --json",
    ),
)  # fmt: skip

COMMAND = Command(
    name="reproduce",
    summary="a paper's figures, measured again",
    children=(RM_SSD, STANNIS),
)
