"""`emucsd demo`: real lookups, three ways, over the same flash in the same virtual time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from emucsd.cli.command import Command, CommandError, Option, Result, Settings
from emucsd.cli.progress import bar
from emucsd.cli.units import count, show_count, show_size, show_time


def _data(settings: Settings) -> Path | None:
    """The folder with the real log. :raises CommandError: one was named, and has none"""
    from emucsd.traces import AMAZON_FILE, find_data

    if not settings.data:
        return find_data()
    folder = Path(settings.data)
    if not (folder / AMAZON_FILE).is_file():
        raise CommandError(f"--data {folder}: no {AMAZON_FILE} there", "leave --data out to use made histories")
    return folder


def _chosen(settings: Settings) -> dict[str, Any]:
    """What run_demo is told beyond its own defaults."""
    quick = {"users": 4000, "samples": 512, "most_rows": 50_000} if settings.quick else {}
    given = {"most_rows": settings.rows, "batch": settings.batch, "seed": settings.seed}
    return {"profile": settings.profile, **quick, **{key: value for key, value in given.items() if value is not None}}


def plan(settings: Settings) -> Result:
    out = Path(settings.out).absolute()
    return {
        "use": {"data": str(_data(settings) or "made"), **_chosen(settings)},
        "write": [str(out / "demo.json"), str(out / "demo.png")],
    }


def run(settings: Settings) -> Result:
    """Start a drive of its own, store, look up, check, draw."""
    from emucsd.demo import run_demo

    with bar("starting", 1.0) as advance:
        return run_demo(
            Path(settings.out), data=_data(settings), tell=lambda text, done: advance(done, text), **_chosen(settings)
        )


WAYS = {
    "host": "pages to host, one by one",
    "host-async": "pages to host, 32 in flight",
    "page": "in the drive, by pages",
    "vector": "in the drive, by vectors",
}
PEERS = {"numpy": "NumPy's in index order", "torch": "PyTorch's"}


def show(result: Result, console: Console) -> None:
    """One table, a part for each workload."""
    sheet = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    sheet.add_column("", no_wrap=True)
    for head in ("link", "dies", "time", "speed", "saved"):
        sheet.add_column(head, justify="right", no_wrap=True)
    for workload in result["workloads"]:
        tables = f"{workload['tables']} table{'s' * (workload['tables'] > 1)} of {show_size(workload['bytes'])}"
        console.print(f"[bold]{workload['name']}[/]: {escape(workload['about'])};", soft_wrap=True)
        console.print(f"  {tables}, {show_count(workload['vectors'])} vectors looked up", soft_wrap=True)
        sheet.add_row(f"[bold]{workload['name']}[/]")
        for way in workload["ways"]:
            sizes = (show_size(way["link_bytes"]), show_size(way["flash_bytes"]))
            ratios = (f"{way['speedup']:.3g}x", f"{way['link_saving']:.3g}x")
            sheet.add_row(f" {WAYS.get(way['name'], way['about'])}", *sizes, show_time(way["virtual_ns"]), *ratios)
        sheet.add_section()
    console.print(sheet)
    peers = {" and ".join(PEERS[name] for name in workload["equal_to"]) for workload in result["workloads"]}
    console.print(f"[green]Every sum of every line equals {'; '.join(sorted(peers))}, bit for bit.[/]", soft_wrap=True)
    console.print(
        f"Profile {result['profile']}, virtual time. link, dies: bytes that crossed or left them. speed, saved: time\n"
        "and bytes on the link, against the part's first line. The host's own work is free here, and its page cache\n"
        "holds a quarter of the tables.",
        soft_wrap=True,
    )
    machine = result["environment"]
    console.print(
        f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}; {result['seconds']:.1f} s in all"
    )
    for path in result["files"]:
        console.print(f"written: {escape(path)}", soft_wrap=True)


COMMAND = Command(
    name="demo",
    summary="start a drive, answer real lookups inside it, check every sum, show what it saved",
    run=run,
    show=show,
    plan=plan,
    options=(
        Option("--out", "folder for demo.json and demo.png", "demo-out", metavar="DIR"),
        Option("--data", "folder with amazon-video-games.txt (default: made histories)", "", metavar="DIR"),
        Option("--profile", "of the drive", "rmssd"),
        Option("--rows", "most rows of a Criteo-shaped table (default: a million, or less)", None, count),
        Option("--batch", "bags asked for at once", None, count),
        Option("--seed", "of made data and rows", None, int),
        Option("--quick", "small tables and few users: seconds instead of a minute", False),
    ),
    examples=("emucsd demo", "emucsd demo --quick --json", "emucsd demo --data ~/amazon --out results"),
)  # fmt: skip
