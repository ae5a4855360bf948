"""`emucsd mount` and `emucsd umount`: a drive's namespaces, tables and counters as files."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from emucsd.cli.command import Command, Option, Result, Settings
from emucsd.cli.progress import spinner
from emucsd.cli.units import show_size

if TYPE_CHECKING:
    from emucsd.mount.process import Options


def _chosen(settings: Settings) -> Options:
    """What was asked for. :raises DriveNotFound: no drive of this name"""
    from emucsd import background
    from emucsd.mount.process import Options
    from emucsd_wire import paths

    if "/" in settings.name:
        runtime = Path(settings.name).resolve()
    else:
        background.described(settings.name)
        runtime = paths.runtime_folder(settings.name).absolute()
    return Options(
        drive=settings.name,
        runtime=str(runtime),
        directory=os.path.realpath(settings.directory),
        port=settings.port,
        read_only=settings.read_only,
        allow_other=settings.allow_other,
        cache=settings.cache,
    )


def plan(settings: Settings) -> Result:
    options = _chosen(settings)
    where = "in this process" if settings.foreground else "in the background"
    return {"attach_to": f"{options.runtime}, port {options.port}", "mount_on": options.directory, "serve": where}


def run(settings: Settings) -> Result:
    """Mount; come back once the mount answers, or, in the foreground, when it is over."""
    from emucsd.mount import process

    options = _chosen(settings)
    if not settings.foreground:
        with spinner(f"mounting {settings.name} (the first mount compiles for some seconds)") as tell:
            return process.launch(options, tell=tell)

    def ready(about: dict[str, Any]) -> None:
        if settings.json:
            print(json.dumps({**about, "log": None}), flush=True)
        else:
            show({**about, "log": None}, Console(highlight=False))
            sys.stdout.flush()

    with process.Stop() as stop:
        served = process.serve(options, ready, stop=stop)
    return {"drive": options.drive, "directory": options.directory, "served": served}


def show(result: Result, console: Console) -> None:
    directory = escape(result["directory"])
    if "served" in result:
        counts = ", ".join(f"{count} {name}" for name, count in result["served"].items())
        console.print(f"{directory} is no longer mounted; it served {counts}", soft_wrap=True)
        return
    console.print(f"[bold green]{escape(result['drive'])}[/], port {result['port']}, is mounted on {directory}")
    for space in result["namespaces"]:
        size = f"{show_size(space['bytes'])} in LBAs of {space['lba_bytes']} bytes"
        console.print(f"  {directory}/ns{space['nsid']}: {size}", soft_wrap=True)
    console.print(f"  {directory}/tables, status.json, stats.json, smart.json", soft_wrap=True)
    if result["log"]:
        console.print(f"  what happens is written to {escape(result['log'])}", soft_wrap=True)
    console.print(f"next: mkfs.ext4 {directory}/ns1 && sudo mount -o loop {directory}/ns1 /mnt", soft_wrap=True)
    console.print(f"      emucsd umount {directory}   # frees the drive's port", soft_wrap=True)


def plan_umount(settings: Settings) -> Result:
    how = "though somebody uses it" if settings.lazy else "unless somebody uses it"
    return {"unmount": f"{settings.directory}, {how}"}


def run_umount(settings: Settings) -> Result:
    from emucsd.mount.mounts import umount

    mount = umount(Path(settings.directory), lazy=settings.lazy)
    return {"directory": str(mount.directory), "drive": mount.runtime.name, "port": mount.port}


def show_umount(result: Result, console: Console) -> None:
    where = escape(result["directory"])
    console.print(f"{where} is no longer mounted; port {result['port']} of {escape(result['drive'])} is free")


COMMAND = Command(
    name="mount",
    summary="show a drive's namespaces, tables and counters as files",
    details="""
        DIR/ns1 is a namespace, byte for byte: mkfs, loop mounts (as root) and fio work on it. DIR/tables has the stored
        tables' rows, DIR/*.json what the drive says of itself. fsync is a Flush, punching holes deallocates. The mount
        takes the port: other clients of it are refused until `emucsd umount DIR`. docs/mount.md has more.
        """,
    run=run,
    show=show,
    plan=plan,
    options=(
        Option("name", "a drive that is up: its name, or its runtime folder"),
        Option("directory", "an empty folder", metavar="DIR"),
        Option("--port", "0 faces the host; 1 is the drive's own engine's", 0, int),
        Option("--foreground", "serve in this process until it is interrupted or unmounted", False),
        Option("--read-only", "let nothing be written", False),
        Option("--allow-other", "let other users in, root too (without root: needs user_allow_other in /etc/fuse.conf)",
               False),
        Option("--cache", "let namespaces' bytes go through the page cache: faster for what is read again, but the "
               "drive sees less, and other clients' writes are not seen", False),
    ),
    examples=(
        "emucsd mount disk0 /tmp/disk0",
        "emucsd mount disk0 /tmp/engine0 --port 1 --read-only",
        "emucsd mount disk0 /tmp/disk0 --foreground --json",
    ),
)  # fmt: skip

UMOUNT = Command(
    name="umount",
    summary="take a drive's files away again, and free its port",
    run=run_umount,
    show=show_umount,
    plan=plan_umount,
    options=(
        Option("directory", "where it is mounted", metavar="DIR"),
        Option("--lazy", "though it is in use: whoever uses it gets errors from then on", False),
    ),
    examples=("emucsd umount /tmp/disk0", "emucsd umount /tmp/disk0 --lazy   # the drive died under a loop mount"),
)
