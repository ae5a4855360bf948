"""`emucsd up NAME --drive-only`: one drive in the background, and no machine."""

from __future__ import annotations

import contextlib
import json
import shlex
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape

from emucsd.cli.command import CommandError, Result, Settings
from emucsd.cli.progress import spinner
from emucsd.cli.units import show_size

MADE = "up.json"  # in the store: what the drive was made with, so that a later `up` need not say it again
NEW_PROFILE = "femu"


class Made(NamedTuple):
    """What shapes a drive's flash."""

    profile: str
    size: str | None
    set: list[str]


def made_with(settings: Settings, store: Path) -> Made:
    """What was asked for, else what this store was made with, else the default."""
    if settings.profile or settings.size or settings.set:
        return Made(settings.profile or NEW_PROFILE, settings.size, settings.set)
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Made(**json.loads((store / MADE).read_text()))
    return Made(NEW_PROFILE, None, [])


def remember(store: Path, made: Made) -> None:
    """For the next `up`."""
    (store / MADE).write_text(json.dumps(made._asdict()) + "\n")


def _prepared(settings: Settings) -> tuple[list[str], Path, Path, Made]:
    """Command line, runtime folder, store, and what the drive is made with."""
    from emucsd.process import command
    from emucsd_wire import paths

    runtime = paths.runtime_folder(settings.name)
    paths.port_socket(runtime, 0)
    store = Path(settings.store).absolute() if settings.store else paths.store_folder(settings.name)
    made = made_with(settings, store)
    if made.profile.endswith(".toml"):
        made = made._replace(profile=str(Path(made.profile).absolute()))
    options = {flag: getattr(settings, flag) for flag in ("clock", "doorbells", "durability")}
    options |= {"profile": made.profile, "size": made.size}
    options["firmware"] = settings.firmware and str(Path(settings.firmware).absolute())
    return command(settings.name, runtime, store, options, made.set), runtime, store, made


def plan(settings: Settings) -> Result:
    argv, runtime, store, _ = _prepared(settings)
    return {"run": shlex.join(argv), "put_sockets_in": str(runtime), "keep_flash_in": str(store)}


def run(settings: Settings) -> Result:
    """Start it and wait until it serves."""
    from emucsd import background
    from emucsd.control import Control

    argv, runtime, store, made = _prepared(settings)
    if background.running(settings.name):
        raise CommandError(
            f"a drive named {settings.name!r} runs already",
            f"emucsd status {settings.name} shows it, emucsd down {settings.name} stops it",
        )
    with spinner(f"starting {settings.name} (the first start compiles the firmware)") as tell:
        pid = background.start(argv, runtime, tell=tell)
    remember(store, made)
    status = Control(runtime).status()
    ports = [str(runtime / f"port{n}" / "cntrl") for n in (0, 1)]
    return {"name": settings.name, "pid": pid, "sockets": ports, "store": str(store), "status": status}


def show(result: Result, console: Console) -> None:
    name = escape(result["name"])
    about = result["status"]["drive"]
    size = show_size(about["capacity_bytes"])
    console.print(f"[bold green]{name}[/] is up: profile {escape(about['profile'])}, {size}, process {result['pid']}")
    for number, path in enumerate(result["sockets"]):
        console.print(f"  port {number}  {escape(path)}", soft_wrap=True)
    console.print(f"  store   {escape(result['store'])}", soft_wrap=True)
    console.print(f"next: emucsd io read {name} --qd 32, emucsd status {name}, emucsd down {name}")
