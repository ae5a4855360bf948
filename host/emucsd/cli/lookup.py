"""`emucsd lookup`: bags of rows, summed inside the drive, every sum checked."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Sheet

from emucsd.cli.command import DIFFERENT, Command, Option, Result, Settings
from emucsd.cli.progress import bar
from emucsd.cli.units import count, show_count, show_size, show_time

if TYPE_CHECKING:
    from emucsd.table import Table
    from emucsd.traces import Bags

WHOLE = 256 << 20  # a table up to this size is read back whole for the check, of a larger one only the rows in use


def ids(text: str) -> list[int]:
    """`3,1,4` -> row ids. :raises ValueError: no whole numbers"""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{text!r} are no row ids: give whole numbers with commas, like 3,1,4") from None


def _bags(settings: Settings, rows: int) -> Bags:
    from emucsd.traces import AMAZON, Bags, draw, make_uniform

    if settings.ids is not None:
        return Bags(np.array(settings.ids, np.int64), np.array([0, len(settings.ids)], np.int64))
    if settings.skew == "uniform":
        return make_uniform(settings.bags, settings.length, rows, settings.seed).bags
    number = settings.bags * settings.length
    indices = draw(AMAZON, rows, number, np.random.default_rng(settings.seed))
    return Bags(indices, np.arange(settings.bags + 1, dtype=np.int64) * settings.length)


def run(settings: Settings) -> Result:
    """Look up in the drive, then read the rows as blocks and add them here."""
    from emucsd import Drive
    from emucsd.table import Table

    with Drive.open(settings.drive) as drive, Table.open(drive, settings.table, nsid=settings.nsid) as table:
        bags = _bags(settings, len(table))
        sums = drive.alloc((bags.count, table.dim), np.float32)
        began, first, done = time.perf_counter(), drive.clock.now, 0
        with bar("looking up", bags.count) as advance:
            for part in bags.batches(settings.batch):
                table.lookup(part.indices, part.offsets[:-1], out=sums[done : done + part.count], grain=settings.grain)
                done += part.count
                advance(done, f"{show_count(done / (time.perf_counter() - began))} bags/s")
        wall, modelled = time.perf_counter() - began, (drive.clock.now - first) / 1e9
        wrong = [] if settings.no_check else differing(table, bags, sums)
        stats = table.stats
        return {
            "drive": settings.drive,
            "table": settings.table,
            "bags": bags.count,
            "vectors": len(bags.indices),
            "grain": settings.grain,
            "clock": "virtual" if drive.clock.virtual else "real",
            "wall_s": wall,
            "modelled_s": modelled,
            "vectors_per_s": len(bags.indices) / (modelled if drive.clock.virtual else wall),
            "bytes_asked_for": sums.nbytes,
            "bytes_of_rows": len(bags.indices) * table.info.content_bytes,
            "flash_reads": stats.flash_reads,
            "flash_bytes": stats.flash_bytes,
            "checked": not settings.no_check,
            "wrong": wrong,
            "sums": sums.tolist() if bags.count <= 4 else None,
            "exit_code": DIFFERENT if wrong else 0,
        }


def differing(table: Table, bags: Bags, sums: NDArray[np.float32]) -> list[int]:
    """Bags whose sum is not, bit for bit, what NumPy makes of the rows as the drive's block reads give them."""
    from emucsd.traces import Bags, sums_in_order

    if table.info.size <= WHOLE:
        rows, used = table.read_rows(), bags
    else:
        names, places = np.unique(bags.indices, return_inverse=True)
        rows = (
            np.concatenate([table.read_rows(int(name), 1) for name in names]) if len(names) else table.read_rows(0, 1)
        )
        used = Bags(places.reshape(-1).astype(np.int64), bags.offsets)
    wanted = sums_in_order(rows, used)
    return np.flatnonzero((wanted.view(np.uint32) != sums.view(np.uint32)).any(axis=1)).tolist()


def show(result: Result, console: Console) -> None:
    what = f"{result['grain']}-grained reads, {result['clock']} clock"
    title = f"{escape(result['table'])} on {escape(result['drive'])}, {what}"
    sheet = Sheet(title=title, title_justify="left", show_header=False)
    virtual = f", {show_time(result['modelled_s'] * 1e9)} of virtual time" if result["clock"] == "virtual" else ""
    sheet.add_row("looked up", f"{show_count(result['bags'])} bags, {show_count(result['vectors'])} vectors")
    sheet.add_row("took", f"{show_time(result['wall_s'] * 1e9)} of wall time{virtual}")
    sheet.add_row("rate", f"{show_count(result['vectors_per_s'])} vectors/s")
    sheet.add_row("sums that crossed the link", show_size(result["bytes_asked_for"]))
    sheet.add_row("the rows behind them", show_size(result["bytes_of_rows"]))
    sheet.add_row(
        "left the flash dies", f"{show_size(result['flash_bytes'])} in {show_count(result['flash_reads'])} reads"
    )
    sheet.add_row("against NumPy, bit for bit", _verdict(result))
    console.print(sheet)
    for row in result["sums"] or ():
        console.print("  " + " ".join(f"{value:.5g}" for value in row[:8]) + " …" * (len(row) > 8))


def _verdict(result: Result) -> str:
    if not result["checked"]:
        return "not checked"
    return f"[red]{len(result['wrong'])} bags differ[/]" if result["wrong"] else "[green]equal[/]"


COMMAND = Command(
    name="lookup",
    summary="sum bags of a table's rows inside the drive, and check every sum",
    run=run,
    show=show,
    options=(
        Option("drive", "a drive's name, or its runtime folder"),
        Option("table", "the table's name"),
        Option("--ids", "one bag of just these rows", None, ids, metavar="ID,ID,…"),
        Option("--bags", "bags to make", 1000, count),
        Option("--length", "ids a bag", 80, count),
        Option("--skew", "uniform: every row as likely; amazon: as popular as items in a shop", "uniform",
               choices=("uniform", "amazon")),
        Option("--grain", "what leaves a flash page's register: the vector, or the page", "vector",
               choices=("vector", "page")),
        Option("--batch", "bags a call", 1024, count),
        Option("--no-check", "do not add the rows here too", False),
        Option("--seed", "of the made bags", 1, int),
        Option("--nsid", "namespace", 1, int),
    ),
    examples=("emucsd lookup disk0 items --ids 3,1,4", "emucsd lookup disk0 items --bags 10k --skew amazon"),
)  # fmt: skip
