"""`emucsd profile`: what drives can be made of, and every setting."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from rich.console import Console
from rich.markup import escape

from emucsd.cli.command import Command, CommandError, Option, Result, Settings
from emucsd.cli.units import setting


def run(settings: Settings) -> Result:
    """Ask the firmware: it alone knows. Nothing is compiled for this."""
    from emucsd.process import environment

    words = [settings.name, *settings.set] if settings.name else []
    argv = [sys.executable, "-m", "emucsd_firmware", "profile", *words]
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment(), check=False
    )
    if done.returncode:
        raise CommandError(done.stderr.strip(), "emucsd profile lists the built-in ones")
    found: Result = json.loads(done.stdout)
    return found


def show(result: Result, console: Console) -> None:
    if "profiles" in result:
        for profile in result["profiles"].values():
            console.print(f"[bold]{escape(profile['shape'])}[/]", soft_wrap=True)
            console.print(f"  {escape(profile['source'])}", soft_wrap=True)
        console.print("\nemucsd profile NAME shows every setting of one", soft_wrap=True)
        return
    console.print(f"[bold]{escape(result['name'])}[/]: {escape(result['source'])}", soft_wrap=True)
    width = max(len(row["key"]) for row in result["settings"])
    for row in result["settings"]:
        allowed = " or ".join(row["choices"]) if "choices" in row else f"{_short(row['low'])} to {_short(row['high'])}"
        limits = "" if isinstance(row["value"], bool) else f" [dim]({allowed})[/]"
        value = f"[bold]{_short(row['value']):>12}[/]"
        console.print(f"  {row['key']:<{width}} {value}  {escape(row['about'])}{limits}", soft_wrap=True)
    console.print(f"FEMU's names are taken too: {', '.join(result['femu_names'])}")


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


COMMAND = Command(
    name="profile",
    summary="list the built-in profiles, or every setting of one",
    run=run,
    show=show,
    options=(
        Option("name", "a built-in profile or a TOML file (default: list the built-in ones)", ""),
        Option("--set", "with this setting or FEMU knob changed; repeatable", None, setting, metavar="KEY=VALUE",
               many=True),
    ),
    examples=("emucsd profile", "emucsd profile rmssd", "emucsd profile femu --set nchs=4 --set devsz_mb=1024 --json"),
)  # fmt: skip
