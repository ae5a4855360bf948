"""`emucsd status`: what drives are there, and how they are."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from emucsd.cli.command import Command, Option, Result, Settings
from emucsd.cli.units import plain


def run(settings: Settings) -> Result:
    """One drive with its counters, or all drives."""
    from emucsd import background
    from emucsd.control import Control
    from emucsd_wire import paths

    if settings.name:
        background.described(settings.name)
        control = Control(paths.runtime_folder(settings.name))
        return {"drives": {settings.name: {"running": True, **control.status(), "stats": control.stats()}}}
    return {"drives": {name: _glance(name) for name in background.names()}}


def _glance(name: str) -> dict[str, Any]:
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
    drives = result["drives"]
    if not drives:
        console.print("no drive is up; start one: emucsd up disk0")
        return
    if any("stats" in drive for drive in drives.values()):
        for name, drive in drives.items():
            console.print(f"[bold]{escape(name)}[/]")
            _tree(console, drive, "  ")
        return
    table = Table("drive", "state", "profile", "capacity", "clock", "process")
    for name, drive in drives.items():
        state = "[green]up[/]" if drive["running"] else "[red]dead[/]"
        table.add_row(escape(name), state, *(escape(_cell(drive, key)) for key in ("profile", "size", "clock", "pid")))
    console.print(table)


def _cell(drive: dict[str, Any], key: str) -> str:
    return str(drive.get(key, drive.get("settings", {}).get(key, "")))


def _tree(console: Console, value: dict[str, Any], indent: str) -> None:
    for key, inner in value.items():
        label = escape(key.replace("_", " "))
        if isinstance(inner, dict):
            console.print(f"{indent}[bold]{label}[/]")
            _tree(console, inner, indent + "  ")
        else:
            text = inner if isinstance(inner, str) else json.dumps(plain(inner))
            console.print(f"{indent}{label}: {escape(text)}", soft_wrap=True)


COMMAND = Command(
    name="status",
    summary="list drives, or show one with its counters",
    run=run,
    show=show,
    options=(Option("name", "a drive (default: list all)", ""),),
    examples=("emucsd status", "emucsd status disk0", "emucsd status disk0 --json"),
)
