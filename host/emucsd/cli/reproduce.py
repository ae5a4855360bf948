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
    out = Path(settings.out).absolute()
    return {"use": _chosen(settings), "write": [str(out / "rm-ssd.html"), str(out / "rm-ssd.json"), "and its plots"]}


def run(settings: Settings) -> Result:
    """Measure, compare, draw."""
    from emucsd.reproduce.rm_ssd.run import run_reproduce

    with bar("starting", 1.0) as advance:
        return run_reproduce(Path(settings.out), tell=lambda text, done: advance(done, text), **_chosen(settings))


def show(result: Result, console: Console) -> None:
    """The claims, and where the rest is."""
    from emucsd.reproduce.page import shown

    sheet = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    sheet.add_column("claim", overflow="fold")
    for head in ("published", "ours", "deviation"):
        sheet.add_column(head, justify="right", no_wrap=True)
    for claim in result["claims"]:
        color = "green" if claim["within_25_percent"] else "red"
        sheet.add_row(
            escape(claim["claim"]),
            shown(claim["published"], claim["unit"]),
            shown(claim["ours"], claim["unit"]),
            f"[{color}]{claim['deviation']:+.0%}[/]",
        )
    console.print(sheet)
    far = [claim for claim in result["claims"] if not claim["within_25_percent"]]
    for claim in far:
        console.print(f"[bold]{escape(claim['claim'])}[/]: {escape(claim['note'])}", soft_wrap=True)
    if "beyond" in result:
        _show_beyond(result["beyond"], console)
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

COMMAND = Command(
    name="reproduce",
    summary="a paper's figures, measured again in virtual time",
    children=(RM_SSD,),
)
