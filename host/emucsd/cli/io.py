"""`emucsd io`: load a drive, and check that it gives back what it took."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from emucsd.cli.command import DIFFERENT, Command, CommandError, Option, Result, Settings
from emucsd.cli.progress import bar
from emucsd.cli.units import count, seconds, show_count, show_size, show_time, size

if TYPE_CHECKING:
    from emucsd import Drive, Namespace
    from emucsd.outcome import Outcome

ROUND = 4096  # commands between two looks at the clock
QUANTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}


@contextlib.contextmanager
def opened(settings: Settings) -> Iterator[tuple[Drive, Namespace]]:
    """The drive and its namespace. :raises CommandError: another namespace than the drive has"""
    from emucsd import Drive

    with Drive.open(settings.drive, port=settings.port, depth=max(getattr(settings, "qd", 0), 16)) as drive:
        yield drive, drive.namespace(settings.nsid)


def _shape(settings: Settings, space: Namespace) -> tuple[int, int]:
    """LBAs a command, and how many such places there are. :raises CommandError: a block that does not fit"""
    blocks, rest = divmod(settings.block, space.lba_bytes)
    if rest or not blocks:
        raise CommandError(
            f"--block {settings.block} is no multiple of the namespace's {space.lba_bytes} bytes an LBA",
            f"use --block {max(blocks, 1) * space.lba_bytes}",
        )
    bytes_used = min(settings.range or space.size, space.size)
    places = bytes_used // settings.block
    if not places:
        raise CommandError(
            f"{show_size(bytes_used)} hold no block of {show_size(settings.block)}", "use a smaller --block"
        )
    return blocks, places


def _spare(settings: Settings, space: Namespace) -> None:
    """:raises CommandError: the write would overwrite a volume, and --force was not given"""
    from emucsd.volume import Volume, VolumeError

    if settings.force:
        return
    try:
        names = [entry.name for entry in Volume.open(space).list()]
    except VolumeError:
        return
    if names:
        raise CommandError(
            f"namespace {space.nsid} holds tables that this would overwrite: {', '.join(names)}",
            "use another drive, or --force",
        )


def _load(settings: Settings, opcode: int) -> Result:
    """Commands at a fixed depth until the time or the count is up."""
    from emucsd_wire.nvme import Io

    with opened(settings) as (drive, space):
        if opcode == Io.WRITE:
            _spare(settings, space)
        blocks, places = _shape(settings, space)
        rng = np.random.default_rng(settings.seed)
        buffers = drive.alloc((max(settings.qd, 2), settings.block))
        buffers[:] = rng.integers(0, 256, buffers.shape, np.uint8)
        rounds: list[Outcome] = []
        began, first = time.monotonic(), drive.clock.now
        wanted = places if settings.fill else settings.count or 0
        with bar(settings.command.name, wanted or settings.time) as advance:
            done = 0
            while done < wanted if wanted else time.monotonic() - began < settings.time:
                number = min(ROUND, wanted - done) if wanted else ROUND
                slots = _places(settings, rng, places, done, number)
                rounds.append(space.submit(opcode, slots * blocks, buffers, blocks=blocks, depth=settings.qd).check())
                done += number
                wall = time.monotonic() - began
                advance(done if wanted else wall, f"{show_count(done / wall)}IOPS")
        modelled, wall = (drive.clock.now - first) / 1e9, sum(r.elapsed_ns for r in rounds) / 1e9
        return {
            "drive": settings.drive,
            "do": settings.command.name,
            "block": settings.block,
            "qd": settings.qd,
            "pattern": settings.pattern,
            "commands": done,
            "clock": "virtual" if drive.clock.virtual else "real",
            "wall_s": wall,
            "modelled_s": modelled,
            "mapped_share": _mapped(drive),
            **_figures(done, settings.block, modelled if drive.clock.virtual else wall, rounds),
        }


def _mapped(drive: Drive) -> float:
    """Share of the drive's pages that hold something: the others are read without touching flash."""
    ftl = drive.control.stats()["ftl"]
    return float(ftl["mapped"]) / float(ftl["capacity_pages"])


def _places(settings: Settings, rng: np.random.Generator, places: int, done: int, number: int) -> NDArray[np.int64]:
    if settings.pattern == "sequential":
        return np.arange(done, done + number, dtype=np.int64) % places
    return rng.integers(0, places, number)


def _figures(done: int, block: int, elapsed: float, rounds: list[Outcome]) -> Result:
    latencies = np.concatenate([r.latencies for r in rounds if r.latencies is not None])
    quantiles = {name: float(np.quantile(latencies, q)) / 1000 for name, q in QUANTILES.items()}
    rate = done / elapsed if elapsed else 0.0
    return {
        "iops": rate,
        "bytes_per_s": rate * block,
        "latency_us": {"mean": float(latencies.mean()) / 1000, **quantiles},
    }


def run_read(settings: Settings) -> Result:
    from emucsd_wire.nvme import Io

    return _load(settings, Io.READ)


def run_write(settings: Settings) -> Result:
    from emucsd_wire.nvme import Io

    return _load(settings, Io.WRITE)


def stamp(lbas: NDArray[np.int64], lba_bytes: int, seed: int) -> NDArray[np.uint64]:
    """What `verify` writes: 64-bit words that depend on their place, so that no block can stand for another."""
    words = np.arange(lba_bytes // 8, dtype=np.uint64)
    at: NDArray[np.uint64] = lbas.astype(np.uint64)[:, None] * np.uint64(len(words)) + words + np.uint64(seed << 40)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):  # splitmix64's mixing
        at ^= at >> np.uint64(shift)
        at *= np.uint64(factor)
    return at


def run_verify(settings: Settings) -> Result:
    """Write stamped blocks, flush, read them back. With --read-only: only the last step."""
    with opened(settings) as (_, space):
        if not settings.read_only:
            _spare(settings, space)
        piece = max((4 << 20) // space.lba_bytes, 1)
        lbas = np.arange(min(settings.blocks, space.blocks), dtype=np.int64)
        pieces = [lbas[at : at + piece] for at in range(0, len(lbas), piece)]
        if not settings.read_only:
            with bar("writing", len(pieces)) as advance:
                for number, some in enumerate(pieces):
                    space.write(int(some[0]), stamp(some, space.lba_bytes, settings.seed))
                    advance(number + 1, "")
            space.flush()
        wrong: list[int] = []
        with bar("reading", len(pieces)) as advance:
            for number, some in enumerate(pieces):
                found = space.read(int(some[0]), len(some)).view(np.uint64).reshape(len(some), -1)
                wrong += some[(found != stamp(some, space.lba_bytes, settings.seed)).any(axis=1)].tolist()
                advance(number + 1, f"{len(wrong)} wrong")
    return {
        "drive": settings.drive,
        "do": "verify",
        "blocks": len(lbas),
        "bytes": len(lbas) * space.lba_bytes,
        "wrong": len(wrong),
        "first_wrong": wrong[:16],
        "exit_code": DIFFERENT if wrong else 0,
    }


def show(result: Result, console: Console) -> None:
    drive = escape(result["drive"])
    if result["do"] == "verify":
        verdict = "[green]all as written[/]" if not result["wrong"] else f"[red]{result['wrong']} differ[/]"
        console.print(f"{drive}: {result['blocks']} LBAs, {show_size(result['bytes'])}: {verdict}")
        if result["wrong"]:
            console.print(f"first: LBA {', '.join(map(str, result['first_wrong']))}")
        return
    kind = f"{result['pattern']} {result['do']}, {show_size(result['block'])}, queue depth {result['qd']}"
    table = Table(title=f"{drive}: {kind}, {result['clock']} clock", title_justify="left")
    for head in ("IOPS", "throughput", "mean", *QUANTILES):
        table.add_column(head, justify="right")
    latency = [show_time(value * 1000) for value in result["latency_us"].values()]
    table.add_row(show_count(result["iops"]), f"{show_size(result['bytes_per_s'])}/s", *latency)
    console.print(table)
    virtual = f", {show_time(result['modelled_s'] * 1e9)} of virtual time" if result["clock"] == "virtual" else ""
    console.print(f"{show_count(result['commands'])} commands in {result['wall_s']:.2f} s of wall time{virtual}")
    if result["do"] == "read" and result["mapped_share"] < 0.5:
        console.print(
            f"[yellow]note:[/] {result['mapped_share']:.0%} of the drive has been written; the rest reads as zeros, "
            f"without touching flash.\nFill it: emucsd io write {drive} --pattern sequential --block 128K --fill"
        )


def _options(*own: Option) -> tuple[Option, ...]:
    shared: tuple[Any, ...] = (
        Option("drive", "a drive's name, or its runtime folder"),
        *own,
        Option("--port", "0 faces the host; 1 is the drive's own engine's", 0, int),
        Option("--nsid", "namespace", 1, int),
        Option("--seed", "of addresses and data", 1, int),
    )
    return shared


FORCE = Option("--force", "write even where that overwrites tables", False)
LOAD = (
    Option("--qd", "commands that are out at a time", 32, int),
    Option("--block", "bytes a command", 4096, size, metavar="SIZE"),
    Option("--pattern", "which blocks", "random", choices=("random", "sequential")),
    Option(
        "--range",
        "use only this much of the namespace, from its start (default: all of it)",
        None,
        size,
        metavar="SIZE",
    ),
    Option("--time", "how long, in wall-clock time", 2.0, seconds, metavar="SECONDS"),
    Option("--count", "this many commands, however long that takes", None, count),
    Option("--fill", "as many commands as there are blocks: with --pattern sequential each of them once", False),
)
COMMAND = Command(
    name="io",
    summary="load a drive with reads or writes, or check its data",
    children=(
        Command("read", "read blocks and say how fast that was", run_read, show, options=_options(*LOAD),
                examples=("emucsd io read disk0 --qd 32 --time 5", "emucsd io read disk0 --qd 1 --block 128K --json")),
        Command("write", "overwrite blocks with noise and say how fast that was", run_write, show,
                options=_options(*LOAD, FORCE),
                examples=("emucsd io write disk0 --pattern sequential --block 128K --fill   # all of it, once",
                          "emucsd io write disk0 --count 1M --qd 64")),
        Command("verify", "write blocks that say where they belong, flush, read them back, compare", run_verify, show,
                options=_options(
                    Option("--blocks", "LBAs, from the namespace's start", 10_000, count),
                    Option("--read-only", "write nothing: check what an earlier verify of the same seed wrote", False),
                    FORCE),
                examples=("emucsd io verify disk0 --blocks 100k",
                          "emucsd down disk0 --force && emucsd up disk0 --drive-only   # a power cut; then:",
                          "emucsd io verify disk0 --blocks 100k --read-only")),
    ),
)  # fmt: skip
