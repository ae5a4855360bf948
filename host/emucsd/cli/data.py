"""`emucsd data`: training samples on drives, public and private."""

from __future__ import annotations

import os
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from emucsd.cli import data_put
from emucsd.cli.command import DIFFERENT, Command, CommandError, Option, Result, Settings
from emucsd.cli.data_put import opened
from emucsd.cli.progress import bar
from emucsd.cli.units import show_size

PORTS = {1: "host", 2: "engine"}  # by controller


# -- list ----------------------------------------------------------------------------------------------------------


def run_list(settings: Settings) -> Result:
    """What a port may know of a drive."""
    from emucsd.stannis.data.found import listing

    with opened(settings.drive, settings.port) as drive:
        return {"drive": settings.drive, "port": drive.port, **listing(drive).to_json()}


def show_list(result: Result, console: Console) -> None:
    sheet = Table("namespace", "size", "attached to", "what", "classes", "checksums")
    for held in result["namespaces"]:
        owners = " and ".join(PORTS.get(owner, str(owner)) for owner in held["owners"])
        samples = held["what"] == "samples"
        what = f"{held['count']} samples, {show_size(held['bytes'])}" if samples else escape(held["what"])
        cells = (str(len(held["classes"])), "yes" if held["checked"] else "no") if samples else ("", "")
        sheet.add_row(f"ns:{held['nsid']}", show_size(held["size"]), owners, what, *cells)
    console.print(sheet)
    other = "engine" if result["port"] == 0 else "host"
    console.print(
        f"{show_size(result['total'])} in all, {show_size(result['free'])} in no namespace; "
        f"{show_size(result['hidden'])} in namespaces of the {other} alone, of which this port may know nothing else"
    )


# -- check ---------------------------------------------------------------------------------------------------------


def _is_location(text: str) -> bool:
    """Whether a text names samples rather than a drive."""
    from emucsd.stannis.data.location import parse

    if text.startswith("/dev/") or (os.path.isdir(text) and os.path.exists(os.path.join(text, "port0"))):
        return False
    return text.startswith("ns:") or os.path.exists(text) or parse(text).kind != "folder"


def run_check(settings: Settings) -> Result:
    """Read and decode every sample of a location, or of a drive's namespaces."""
    if _is_location(settings.where):
        from emucsd.stannis.data.source import open as open_source

        with open_source(settings.where) as source:
            found = [_checked(source)]
    else:
        found = _check_drive(settings)
    bad = sum(entry["damaged"] for entry in found)
    return {"where": settings.where, "checked": found, "exit_code": DIFFERENT if bad else 0}


def _check_drive(settings: Settings) -> list[Result]:
    from emucsd.stannis.data.found import listing, open_namespace

    with opened(settings.where, settings.port) as drive:
        chosen = [settings.namespace] if settings.namespace else []
        if not chosen:
            chosen = [held.nsid for held in listing(drive).namespaces if held.what not in ("nothing", "other data")]
        if not chosen:
            raise CommandError(
                f"{settings.where}: no namespace of port {drive.port} holds samples",
                f"emucsd data put {settings.where} SOURCE puts some there; private ones are seen by port 1 alone",
            )
        found = []
        for nsid in chosen:
            with open_namespace(drive, nsid) as source:
                found.append(_checked(source))
        return found


def _checked(source: Any) -> Result:
    from emucsd.stannis.data.found import check

    with bar(f"checking {source.location}", source.count) as advance:
        done = 0

        def told(count: int) -> None:
            nonlocal done
            done += count
            advance(done, f"{done} of {source.count}")

        found = check(source, told).to_json()
    return {"location": source.location, "classes": list(source.classes), **found}


def show_check(result: Result, console: Console) -> None:
    for found in result["checked"]:
        verdict = "[green]all whole[/]" if not found["damaged"] else f"[red]{found['damaged']} damaged[/]"
        least, most = ("x".join(map(str, found[key])) for key in ("smallest", "largest"))
        sizes = least if least == most else f"{least} to {most}"
        told = f"{found['count']} samples of {len(found['classes'])} classes, {sizes}"
        console.print(f"{escape(found['location'])}: {told}: {verdict}")
        for index, why in found["first"]:
            console.print(f"  sample {index}: {escape(why)}", soft_wrap=True)


# -- take ----------------------------------------------------------------------------------------------------------


def plan_take(settings: Settings) -> Result:
    what = "delete" if settings.delete else "attach_to_the_host"
    return {what: f"namespace {settings.namespace} of {settings.drive}, by port 1"}


def run_take(settings: Settings) -> Result:
    """By the engine's port: give a private namespace to the host, or delete it."""
    from emucsd.stannis.data.take import take

    with opened(settings.drive, 1) as drive:
        take(drive, settings.namespace, delete=settings.delete)
    return {"drive": settings.drive, "namespace": settings.namespace, "deleted": settings.delete}


def show_take(result: Result, console: Console) -> None:
    what = "is deleted" if result["deleted"] else "is the host's too now, with its data"
    console.print(f"namespace {result['namespace']} of {escape(result['drive'])} {what}")


DRIVE = Option("drive", "a drive's name, its runtime folder, or a node of Linux's driver (/dev/nvme0)")
PORT = Option("--port", "0 faces the host; 1 is the drive's own engine's", 0, int)
COMMAND = Command(
    name="data",
    summary="put training samples on drives, public or private, and see what lies there",
    children=(
        data_put.COMMAND,
        Command("list", "list a drive's namespaces that hold samples, as far as the host may know", run_list, show_list,
                options=(DRIVE, PORT), examples=("emucsd data list disk0", "emucsd data list disk0 --port 1 --json")),
        Command("check", "read and decode every sample", run_check, show_check,
                options=(Option("where", "a drive, or a location: a folder, a .tar, a .npz"),
                         Option("--namespace", "only this one (default: all that hold samples)", None, int,
                                metavar="N"), PORT),
                examples=("emucsd data check disk0", "emucsd data check cifar10.tar/train",
                          "emucsd data check disk0 --port 1 --namespace 2")),
        Command("take", "give a private namespace back to the host, or delete it", run_take, show_take, plan_take,
                details="Only the drive's own engine can do that: nobody else may be attached to port 1 meanwhile.",
                options=(DRIVE, Option("namespace", "its id", None, int),
                         Option("--delete", "delete it, with its data", False)),
                examples=("emucsd data take disk0 2", "emucsd data take disk0 2 --delete")),
    ),
)  # fmt: skip
