"""`emucsd status`: what testbeds and drives are there, and how they are."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from emucsd.cli.command import Command, Option, Result, Settings
from emucsd.cli.units import show_count, show_size, show_time

Tree = dict[str, Any]


def run(settings: Settings) -> Result:
    """One drive with its counters, or all drives."""
    from emucsd import background, testbed
    from emucsd.control import Control
    from emucsd_wire import paths

    if settings.name in testbed.names():
        about = _testbed(settings.name)
        return {"testbeds": {settings.name: about}, "drives": {one["name"]: _glance(one["name"])
                for one in about["drives"] if one["name"] in background.names()}}  # fmt: skip
    if settings.name:
        background.described(settings.name)
        control = Control(paths.runtime_folder(settings.name))
        return {"drives": {settings.name: {"running": True, **control.status(), "stats": control.stats()}}}
    beds = {name: _testbed(name) for name in testbed.names()}
    return {"testbeds": beds, "drives": {name: _glance(name) for name in background.names()}}


def _testbed(name: str) -> Tree:
    """One whose supervisor was killed is listed too."""
    from emucsd.errors import TestbedNotFound
    from emucsd.testbed import Testbed, described

    try:
        return {"running": True, **Testbed.open(name).status()}
    except TestbedNotFound as exc:
        return {"drives": [], "machines": {}, **(described(name) or {}), "running": False, "why": str(exc)}


def _glance(name: str) -> Tree:
    """A drive that does not answer is listed too: it was killed, or hangs."""
    from emucsd import background
    from emucsd.control import Control
    from emucsd.errors import EmucsdError
    from emucsd_wire import paths

    described = background.described(name)
    try:
        return {"running": True, **Control(paths.runtime_folder(name), timeout=5.0).status()}
    except EmucsdError as exc:
        return {**described, "running": False, "why": str(exc)}


def show(result: Result, console: Console) -> None:
    for name, bed in result.get("testbeds", {}).items():
        _show_testbed(name, bed, console)
    drives = result["drives"]
    if not drives:
        if not result.get("testbeds"):
            console.print("nothing is up; start a testbed: emucsd up, or a drive: emucsd up disk0 --drive-only")
        return
    for name, drive in drives.items():
        if "stats" in drive:
            _show_one(name, drive, console)
            return
    table = Table("drive", "state", "profile", "capacity", "clock", "process")
    for name, drive in drives.items():
        state = "[green]up[/]" if drive["running"] else "[red]dead[/]"
        settings, about = drive["settings"], drive.get("drive", {})
        capacity = show_size(about["capacity_bytes"]) if about else settings["size"] or ""
        cells = (settings["profile"], capacity, settings["clock"], str(drive["pid"]))
        table.add_row(escape(name), state, *map(escape, cells))
    console.print(table)


def _show_testbed(name: str, bed: Tree, console: Console) -> None:
    if not bed["running"]:
        console.print(f"[bold]{escape(name)}[/]: [red]dead[/]; the next emucsd up removes what it left")
        return
    network = bed["tunnel"]
    net = f"network {network['network']}" if network["enabled"] else "no network"
    console.print(f"[bold]{escape(name)}[/]: {bed['state']}, process {bed['pid']}, {net}")
    for machine, about in bed["machines"].items():
        address = network["host"] if machine == "host" else network["isps"].get(machine, "")
        seconds = f", SSH after {bed['seconds'][machine]:.1f} s" if machine in bed["seconds"] else ""
        console.print(
            f"  {machine}: {about['state']}, {about['accelerator'].upper()}, boots {about['boots']}, "
            f"{address}{seconds}; console {escape(about['console'])}",
            soft_wrap=True,
        )


def _tunnel(tunnel: Tree) -> str:
    ways = (("to the ISP engine", tunnel["to_isp"]), ("to the host", tunnel["to_host"]))
    if not tunnel["open"] and not any(way["frames"] for _, way in ways):
        return "  tunnel: closed"
    told = []
    for where, way in ways:
        lost = {"dropped": way["unheard"] + way["lost"], "batches refused": way["refused"], "expired": way["expired"]}
        more = "".join(f", {show_count(number)} {what}" for what, number in lost.items() if number)
        told.append(f"{show_count(way['frames'])} frames {where}{more}")
    state = f"open, MTU {tunnel['mtu']}" if tunnel["open"] else "closed"
    return f"  tunnel: {state}; {'; '.join(told)}{_watch(tunnel['watch'])}"


def _watch(watch: Tree) -> str:
    """Said while it is on, and ever after it found something."""
    ways = watch["to_isp"], watch["to_host"]
    hits = sum(way["hits"] for way in ways)
    if not watch["on"] and not hits:
        return ""
    seen = show_size(sum(way["watched_bytes"] for way in ways))
    found = f"[red]{show_count(hits)} pieces of private content[/]" if hits else "nothing private"
    return f"\n  watch: {show_count(watch['fingerprints'])} fingerprints, {seen} looked through, {found}"


def _show_one(name: str, drive: Tree, console: Console) -> None:
    """The figures that people ask for; --json has them all."""
    about, settings, stats = drive["drive"], drive["settings"], drive["stats"]
    flash = f"{show_size(about['capacity_bytes'])} on {show_size(about['raw_bytes'])} of flash"
    console.print(
        f"[bold]{escape(name)}[/]: profile {escape(settings['profile'])}, {flash}, {about['clock']} clock, process "
        f"{drive['pid']}, up {drive['uptime_s']:.0f} s",
        soft_wrap=True,
    )
    console.print(
        f"  store {escape(settings['store'])}, flushed data survive the {about['durability']}'s death", soft_wrap=True
    )
    for space in about["namespaces"]:
        size = f"{show_size(space['bytes'])} in LBAs of {space['lba_bytes']} bytes"
        console.print(f"  namespace {space['nsid']}: {size}, controllers {', '.join(map(str, space['controllers']))}")
    for number, port in enumerate(drive["ports"]):
        client = "a client is attached" if port["client"] else "nobody is attached"
        console.print(f"  port {number}, {escape(port['socket'])}: {client}", soft_wrap=True)
        console.print(f"    {_port(stats['ports'][number])}", soft_wrap=True)
        for nsid, traffic in stats["ports"][number]["namespaces"].items():
            if line := _traffic(traffic):
                console.print(f"    namespace {nsid}: {line}", soft_wrap=True)
    console.print(_flash(stats["nand"]))
    console.print(_ftl(stats["ftl"]), soft_wrap=True)
    console.print(_tunnel(stats["tunnel"]), soft_wrap=True)
    for session in stats["sessions"]["sessions"]:
        console.print(_session(session), soft_wrap=True)
    late = stats["lateness_us"]
    if late["count"]:
        p50, p99 = (show_time(late[key] * 1000) for key in ("p50", "p99"))
        console.print(
            f"  completions came later than modelled by {p50} (median), {p99} (99th percentile)", soft_wrap=True
        )


def _session(session: Tree) -> str:
    busy = ", ".join(f"{stage} {show_time(ns)}" for stage, ns in session["busy_ns"].items())
    return (
        f"  session {session['id']:#x} of port {session['port']}: {show_count(session['inferred'])} samples in "
        f"{show_count(session['ended'])} batches ({show_count(session['failed'])} failed), {session['in_flight']} in "
        f"flight, {show_count(session['lookups'])} lookups; stages busy: {busy}"
    )


def _port(port: Tree) -> str:
    counts = ", ".join(f"{show_count(port[key])} {key}" for key in ("reads", "writes", "lookups", "vectors", "failed"))
    return f"{counts}; {show_size(port['link_out'])} to the client, {show_size(port['link_in'])} from it"


def _traffic(traffic: Tree) -> str:
    """What crossed the port of one namespace's content, and what was done with it in the drive; empty for nothing."""
    moved = (
        f"{show_count(traffic[name])} {name} ({show_size(traffic[size])})"
        for name, size in (("reads", "bytes_read"), ("writes", "bytes_written"), ("compares", "bytes_compared"))
        if traffic[name]
    )
    others = {"lookup_rows": "rows looked up", "updated_rows": "rows updated", "failed": "failed"}
    return ", ".join([*moved, *(f"{show_count(traffic[key])} {what}" for key, what in others.items() if traffic[key])])


def _flash(nand: Tree) -> Table:
    table = Table("flash traffic", "reads", "programs", "erases", "moved", "dies busy", "waited")
    for name, counts in nand["classes"].items():
        done = (show_count(counts[key]) for key in ("reads", "programs", "erases"))
        times = (show_time(counts[key]) for key in ("busy_ns", "wait_ns"))
        table.add_row(name, *done, show_size(counts["nbytes"]), *times)
    return table


def _ftl(ftl: Tree) -> str:
    blocks = ", ".join(f"{count} {state}" for state, count in ftl["blocks"].items())
    return (
        f"  FTL: {show_count(ftl['mapped'])} of {show_count(ftl['capacity_pages'])} pages mapped, write amplification "
        f"{ftl['write_amplification']:.3g}, {show_count(ftl['gc_moves'])} pages moved by GC\n"
        f"  blocks: {blocks}; erased {ftl['wear']['min']} to {ftl['wear']['max']} times"
    )


COMMAND = Command(
    name="status",
    summary="list testbeds and drives, or show one drive with its counters",
    run=run,
    show=show,
    options=(Option("name", "a testbed or a drive (default: list all)", ""),),
    examples=("emucsd status", "emucsd status disk0", "emucsd status disk0 --json"),
)
