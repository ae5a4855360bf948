"""`emucsd up`: start a drive in the background."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from emucsd.cli.command import Command, CommandError, Option, Result, Settings
from emucsd.cli.progress import spinner
from emucsd.cli.units import setting


def _argv(settings: Settings) -> tuple[list[str], Path, Path]:
    from emucsd.process import command
    from emucsd_wire import paths

    runtime = paths.runtime_folder(settings.name)
    paths.port_socket(runtime, 0)
    store = Path(settings.store).absolute() if settings.store else paths.store_folder(settings.name)
    flags = ("profile", "size", "clock", "doorbells", "durability", "firmware")
    options = {flag: getattr(settings, flag) for flag in flags}
    options["firmware"] = options["firmware"] and str(Path(options["firmware"]).absolute())
    return command(settings.name, runtime, store, options, settings.set), runtime, store


def plan(settings: Settings) -> Result:
    argv, runtime, store = _argv(settings)
    return {"run": shlex.join(argv), "put_sockets_in": str(runtime), "keep_flash_in": str(store)}


def run(settings: Settings) -> Result:
    """Start it and wait until it serves."""
    from emucsd import background
    from emucsd.control import Control

    argv, runtime, store = _argv(settings)
    if background.running(settings.name):
        raise CommandError(
            f"a drive named {settings.name!r} runs already",
            f"emucsd status {settings.name} shows it, emucsd down {settings.name} stops it",
        )
    with spinner(f"starting {settings.name} (the first start compiles the firmware)") as tell:
        pid = background.start(argv, runtime, tell=tell)
    status = Control(runtime).status()
    ports = [str(runtime / f"port{n}" / "cntrl") for n in (0, 1)]
    return {"name": settings.name, "pid": pid, "sockets": ports, "store": str(store), "status": status}


def show(result: Result, console: Console) -> None:
    name: Any = escape(result["name"])
    console.print(f"[bold green]{name}[/] is up, process {result['pid']}")
    for number, path in enumerate(result["sockets"]):
        console.print(f"  port {number}  {escape(path)}", soft_wrap=True)
    console.print(f"  store   {escape(result['store'])}", soft_wrap=True)
    console.print(f"next: emucsd io read {name} --qd 32, emucsd status {name}, emucsd down {name}")


COMMAND = Command(
    name="up",
    summary="start a drive in the background and wait until it serves",
    run=run,
    show=show,
    plan=plan,
    options=(
        Option("name", "what to call it: letters, digits, '.', '_', '-'"),
        Option("--profile", "null, femu, rmssd, newport, cosmosplus, or a TOML file of your own", "femu"),
        Option("--size", "capacity, like 4GiB (default: the profile's); its files are sparse", None),
        Option("--clock", "real: paced by the wall clock; virtual: repeatable", "real", choices=("real", "virtual")),
        Option("--store", "folder for its flash (default: a folder of its name among your drives)", None),
        Option("--set", "one profile field or FEMU knob, like nand.read_ns=50000 or pg_rd_lat=50000; repeatable", None,
               setting, metavar="KEY=VALUE", many=True),
        Option("--firmware", "a Python file with policies that replace the drive's own (docs/firmware.md)", None,
               metavar="FILE"),
        Option("--durability", "what flushed data survives: this process's death, or the whole computer's", "process",
               choices=("process", "machine")),
        Option("--doorbells", "how doorbells reach the drive", "auto", choices=("auto", "mapped", "trapped")),
    ),
    examples=(
        "emucsd up disk0",
        "emucsd up disk1 --profile rmssd --size 16GiB --clock virtual",
        "emucsd up disk2 --set nand.read_ns=50000 --set buffer.pages=1024 --dry-run",
    ),
)  # fmt: skip
