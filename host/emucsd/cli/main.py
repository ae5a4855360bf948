"""Parse, run, print: the one place that knows exit codes, tracebacks and JSON."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from emucsd.cli.command import FAILED, INTERRUPTED, OK, Command, CommandError, Result, Settings
from emucsd.cli.units import plain


def commands() -> tuple[Command, ...]:
    """Every command, in the order of the help."""
    from emucsd.cli import (
        bench,
        data,
        demo,
        doctor,
        down,
        io,
        isp,
        lookup,
        machine,
        mount,
        profile,
        reproduce,
        rm,
        ssh,
        status,
        table,
        train,
        up,
    )

    lookups = (table, lookup, rm)
    nodes = (machine, io, *lookups, isp, data, train)
    modules = (demo, up, down, status, ssh, *nodes, mount, reproduce, bench, profile, doctor)
    return (*(module.COMMAND for module in modules), mount.UMOUNT)


EPILOG = """\
examples:
  emucsd demo
  emucsd up
  emucsd ssh host
  emucsd up disk0 --drive-only --profile femu --size 4GiB
  emucsd io read disk0 --qd 32

Each command has its own help with examples: emucsd io read --help"""


def make_parser(known: tuple[Command, ...]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="emucsd",
        description="An emulated computational storage drive whose firmware is Python.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in known:
        command.add(actions)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    settings = make_parser(commands()).parse_args(argv)
    try:
        return _run(settings.command, settings)
    except BrokenPipeError:  # `emucsd … | head`: nobody reads any more, and the interpreter's own flush must not fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        print("emucsd: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as exc:
        if settings.debug:
            raise
        return _report(exc)


def _run(command: Command, settings: Settings) -> int:
    if command.plan and settings.dry_run:
        _print_plan(command.plan(settings), settings)
        return OK
    assert command.run
    assert command.show
    result = command.run(settings)
    code = result.pop("exit_code", OK)
    if settings.json:
        _print_json(result)
    else:
        command.show(result, Console(highlight=False))
    return int(code)


def _print_json(result: Result) -> None:
    print(json.dumps(plain(result), indent=2))


def _print_plan(plan: Result, settings: Settings) -> None:
    if settings.json:
        _print_json(plan)
        return
    console = Console(highlight=False)
    for key, value in plan.items():
        console.print(Text(f"would {key.replace('_', ' ')}: {_one_line(value)}"), soft_wrap=True)


def _one_line(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(plain(value))


def _report(exc: Exception) -> int:
    """One line for what happened, one for what to do, and the exit code."""
    message = str(exc) or type(exc).__name__
    hint = getattr(exc, "hint", "")
    if not isinstance(exc, CommandError) and not _is_ours(exc):
        message = f"{type(exc).__name__}: {message}"
        hint = hint or "this looks like a bug in emucsd: run it again with --debug and report the traceback"
    console = Console(stderr=True, highlight=False)
    console.print(Text.assemble(("emucsd: error: ", "bold red"), message), soft_wrap=True)
    if hint:
        console.print(Text.assemble(("hint: ", "bold"), hint), soft_wrap=True)
    return exc.code if isinstance(exc, CommandError) else FAILED


def _is_ours(exc: Exception) -> bool:
    """Raised on purpose, with a text for people; an OSError carries its own."""
    return isinstance(exc, OSError) or type(exc).__module__.startswith(("emucsd.", "emucsd_wire."))
