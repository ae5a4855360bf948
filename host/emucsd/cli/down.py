"""`emucsd down`: stop drives."""

from __future__ import annotations

import shutil
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from emucsd.cli.command import Command, CommandError, Option, Result, Settings
from emucsd.cli.progress import spinner


def _names(settings: Settings) -> list[str]:
    from emucsd import background

    names = background.names() if settings.all else list(settings.names)
    if not names and not settings.all:
        raise CommandError("no drive is named", "emucsd down NAME …, or --all; emucsd status lists them")
    return names


def _store(name: str) -> Path:
    from emucsd import background

    return Path(background.described(name)["settings"]["store"])


def plan(settings: Settings) -> Result:
    names = _names(settings)
    how = "kill" if settings.force else "stop"
    return {how: names, "delete": [str(_store(name)) for name in names] if settings.delete else []}


def run(settings: Settings) -> Result:
    """Stop each, in the order given; the first that fails ends it."""
    from emucsd import background

    done = {}
    for name in _names(settings):
        store = _store(name)
        with spinner(f"stopping {name}"):
            told = background.stop(name, force=settings.force)
        if settings.delete:
            shutil.rmtree(store)
        done[name] = {"how": told, "store": str(store), "deleted": settings.delete}
    return {"drives": done}


def show(result: Result, console: Console) -> None:
    if not result["drives"]:
        console.print("no drive runs")
    for name, drive in result["drives"].items():
        kept = "deleted" if drive["deleted"] else "kept"
        console.print(
            f"{escape(name)}: {drive['how']}; what it held is {kept} ({escape(drive['store'])})", soft_wrap=True
        )


COMMAND = Command(
    name="down",
    summary="stop drives; what they hold stays in their store folders",
    run=run,
    show=show,
    plan=plan,
    options=(
        Option("names", "drives to stop", (), many=True),
        Option("--all", "stop every drive of yours", False),
        Option("--force", "kill -9 instead of asking: a power cut", False),
        Option("--delete", "delete their store folders, and so everything that they hold", False),
    ),
    examples=("emucsd down disk0", "emucsd down --all", "emucsd down disk0 --force   # then: emucsd up disk0"),
)
