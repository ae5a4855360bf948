"""`emucsd down`: stop testbeds and drives."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from emucsd.cli.command import Command, CommandError, Option, Result, Settings
from emucsd.cli.progress import spinner


def _names(settings: Settings) -> tuple[list[str], list[str]]:
    """Testbeds and drives to stop. A testbed's drives go with it, and only so."""
    from emucsd import background, testbed

    beds = testbed.names()
    owners = {name: owner for name in background.names() if (owner := testbed.owner(name))}
    if settings.all:
        return beds, [name for name in background.names() if name not in owners]
    if not settings.names:
        if len(beds) != 1:
            raise CommandError(
                f"{len(beds)} testbeds are up, and none is named" if beds else "no testbed is up",
                "emucsd down NAME …, or --all; emucsd status lists them",
            )
        return beds, []
    for name in settings.names:
        if name in owners:
            raise CommandError(
                f"drive {name!r} belongs to testbed {owners[name]!r}", f"emucsd down {owners[name]} stops all of it"
            )
    return [n for n in settings.names if n in beds], [n for n in settings.names if n not in beds]


def _stores(about: dict[str, Any]) -> list[Path]:
    """Where a testbed's drives keep what they hold."""
    from emucsd_wire import paths

    drives = about["description"]["drives"]
    return [Path(drive["store"]) if drive["store"] else paths.store_folder(drive["name"]) for drive in drives]


def _store(name: str) -> Path:
    from emucsd import background

    return Path(background.described(name)["settings"]["store"])


def plan(settings: Settings) -> Result:
    from emucsd import testbed

    beds, drives = _names(settings)
    how = "kill" if settings.force else "stop"
    stores = [store for name in beds for store in _stores(testbed.described(name) or {"description": {"drives": []}})]
    stores += [_store(name) for name in drives]
    return {how: [*beds, *drives], "delete": list(map(str, stores)) if settings.delete else []}


def run(settings: Settings) -> Result:
    """Stop each, in the order given, testbeds first; the first that fails ends it."""
    from emucsd import background

    beds, drives = _names(settings)
    stopped = {name: _stop_testbed(name, settings) for name in beds}
    done = {}
    for name in drives:
        store = _store(name)
        with spinner(f"stopping {name}"):
            told = background.stop(name, force=settings.force)
        if settings.delete:
            shutil.rmtree(store)
        done[name] = {"how": told, "store": str(store), "deleted": settings.delete}
    return {"testbeds": stopped, "drives": done}


def _stop_testbed(name: str, settings: Settings) -> dict[str, Any]:
    """One testbed with all that is in it; what a dead one left is removed."""
    from emucsd import testbed
    from emucsd.errors import TestbedNotFound
    from emucsd_wire import paths

    about = testbed.described(name)
    stores = _stores(about) if about and "description" in about else []
    with spinner(f"stopping {name}"):
        bed = testbed.Testbed(paths.runtime_folder(name))
        try:
            bed.status()
        except TestbedNotFound:
            testbed.remove_dead(name)
            how = {}
        else:
            how = bed.stop(force=settings.force)
    if settings.delete:
        for store in stores:
            shutil.rmtree(store, ignore_errors=True)
    return {"machines": how, "stores": list(map(str, stores)), "deleted": settings.delete}


def show(result: Result, console: Console) -> None:
    if not result["drives"] and not result["testbeds"]:
        console.print("nothing runs")
    for name, bed in result["testbeds"].items():
        how = ", ".join(f"{machine} {told}" for machine, told in bed["machines"].items()) or "stopped"
        kept = "deleted" if bed["deleted"] else "kept"
        console.print(
            f"{escape(name)}: {escape(how)}; what its drives held is {kept} ({escape(', '.join(bed['stores']))})",
            soft_wrap=True,
        )
    for name, drive in result["drives"].items():
        kept = "deleted" if drive["deleted"] else "kept"
        console.print(
            f"{escape(name)}: {drive['how']}; what it held is {kept} ({escape(drive['store'])})", soft_wrap=True
        )


COMMAND = Command(
    name="down",
    summary="stop testbeds and drives; what drives hold stays in their store folders",
    run=run,
    show=show,
    plan=plan,
    options=(
        Option("names", "testbeds and drives to stop (default: the testbed, where there is one)", (), many=True),
        Option("--all", "stop every testbed and drive of yours", False),
        Option("--force", "kill -9 instead of asking: a power cut", False),
        Option("--delete", "delete the drives' store folders, and so everything that they hold", False),
    ),
    examples=(
        "emucsd down",
        "emucsd down disk0",
        "emucsd down --all",
        "emucsd down disk0 --force   # then: emucsd up disk0 --drive-only",
    ),
)
