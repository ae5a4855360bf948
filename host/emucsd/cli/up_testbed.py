"""`emucsd up`: drives, the host machine, the machines in the drives, in the background."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from emucsd.cli.command import CommandError, Result, Settings
from emucsd.cli.progress import spinner
from emucsd.cli.up_drive import Made, made_with, remember

DEFAULT_DRIVE = "csd"


def _drive_options(settings: Settings) -> tuple[dict[str, Any], Path | None, Made | None]:
    """What the command line says of the only drive; where a description is given, it says all."""
    from emucsd_wire import paths

    given = {key: getattr(settings, key) for key in ("profile", "size", "store", "firmware") if getattr(settings, key)}
    given |= {"clock": settings.clock} if settings.clock != "real" else {}
    given |= {"set": settings.set} if settings.set else {}
    for key in ("store", "firmware"):
        if key in given:
            given[key] = str(Path(given[key]).absolute())
    if given.get("profile", "").endswith(".toml"):
        given["profile"] = str(Path(given["profile"]).absolute())
    if settings.file:
        return given, None, None
    store = Path(given["store"]) if "store" in given else paths.store_folder(DEFAULT_DRIVE)
    made = made_with(settings, store)
    given["profile"] = given.get("profile", made.profile)
    given |= {"size": made.size} if made.size else {}
    given |= {"set": made.set} if made.set else {}
    return given, store, made


def _prepared(settings: Settings) -> tuple[list[str], Path, Path | None, Made | None]:
    """Command line, runtime folder, and what is to be remembered of the drive."""
    from emucsd.testbed import command

    if settings.durability != "process" or settings.doorbells != "auto":
        raise CommandError("--durability and --doorbells are for a drive without machines", "add --drive-only", 2)
    drive, store, made = _drive_options(settings)
    argv, runtime = command(settings.file, name=settings.name or None, small=settings.small, drive=drive)
    return argv, runtime, store, made


def plan(settings: Settings) -> Result:
    """What would be started, as the supervisor sees it."""
    from emucsd.process import environment

    argv, runtime, _, _ = _prepared(settings)
    done = subprocess.run([*argv, "--plan"], capture_output=True, text=True, env=environment(), check=False)
    if done.returncode:
        raise CommandError(done.stderr.strip().removeprefix("emucsd_femu testbed: "), code=done.returncode)
    return {"run": shlex.join(argv), "put_sockets_and_consoles_in": str(runtime), **json.loads(done.stdout)}


def run(settings: Settings) -> Result:
    """Start it and wait until SSH answers on every machine."""
    from emucsd import background
    from emucsd.errors import EmucsdError
    from emucsd.testbed import START_SECONDS, Testbed

    argv, runtime, store, made = _prepared(settings)
    try:
        Testbed(runtime).status()
    except EmucsdError:
        pass
    else:
        name = runtime.name
        raise CommandError(
            f"a testbed named {name!r} runs already", f"emucsd status {name} shows it, emucsd down {name} stops it"
        )
    with spinner(f"starting {runtime.name} (the first start makes images and compiles the firmware)") as tell:
        background.start(argv, runtime, tell=tell, timeout=START_SECONDS, what="testbed")
    if store is not None and made is not None:
        remember(store, made)
    return Testbed(runtime).status()


def show(result: Result, console: Console) -> None:
    console.print(f"[bold green]{escape(result['name'])}[/] is up, process {result['pid']}")
    for drive in result["drives"]:
        console.print(f"  drive {escape(drive['name'])}, process {drive['pid']}", soft_wrap=True)
    for name, machine in result["machines"].items():
        seconds = f"{result['seconds'][name]:.1f} s" if name in result["seconds"] else "-"
        console.print(f"  machine {name}: {machine['accelerator'].upper()}, SSH answered after {seconds}")
    for architecture, reason in result["reasons"].items():
        console.print(f"  {architecture}: {escape(reason)}", soft_wrap=True)
    first = next(iter(result["machines"]), None)
    if first is not None:
        console.print(f"next: emucsd ssh {first}, emucsd status {escape(result['name'])}, emucsd down")
