"""`emucsd up`: start a testbed, or with --drive-only one drive, in the background."""

from __future__ import annotations

from rich.console import Console

from emucsd.cli import up_drive, up_testbed
from emucsd.cli.command import USAGE, Command, CommandError, Option, Result, Settings
from emucsd.cli.units import setting


def _check(settings: Settings) -> None:
    """:raises CommandError: options that don't go together"""
    if settings.drive_only and not settings.name:
        raise CommandError("a drive needs a name", "emucsd up disk0 --drive-only", USAGE)
    if settings.drive_only and (settings.file or settings.small):
        raise CommandError("--file and --small are about machines", "leave out --drive-only, or them", USAGE)


def plan(settings: Settings) -> Result:
    _check(settings)
    return up_drive.plan(settings) if settings.drive_only else up_testbed.plan(settings)


def run(settings: Settings) -> Result:
    """Start it and wait until it serves."""
    _check(settings)
    return up_drive.run(settings) if settings.drive_only else up_testbed.run(settings)


def show(result: Result, console: Console) -> None:
    (up_testbed if "machines" in result else up_drive).show(result, console)


COMMAND = Command(
    name="up",
    summary="start a testbed, or one drive alone, in the background and wait until it serves",
    details="""
        Without --file a testbed is one drive, a host machine (x86-64 Linux) that sees it as its NVMe SSD, a machine in
        the drive (aarch64 Linux), and a TCP/IP network between the two through the drive. docs/testbed.md says how to
        describe others. The first start makes the machines' images.
    """,
    run=run,
    show=show,
    plan=plan,
    options=(
        Option("name", "what to call it: letters, digits, '.', '_', '-' (default: testbed, or what the file says)", ""),
        Option("--drive-only", "one drive and no machines: for programs on this machine, or a QEMU of your own", False),
        Option("--file", "the testbed's description (docs/testbed.md)", None, metavar="TOML"),
        Option("--small", "the small images: no torch in the machines", False),
        Option("--profile", "null, femu, rmssd, newport, cosmosplus, or a TOML file of your own (default: femu for a "
               "new drive, else what it was made with)", None),
        Option("--size", "capacity, like 4GiB, in sparse files (default: the profile's, or what it was made with)",
               None),
        Option("--clock", "real: paced by the wall clock; virtual: repeatable, without machines", "real",
               choices=("real", "virtual")),
        Option("--store", "folder for its flash (default: a folder of its name among your drives)", None),
        Option("--set", "one profile field or FEMU knob, like nand.read_ns=50000 or pg_rd_lat=50000; repeatable", None,
               setting, metavar="KEY=VALUE", many=True),
        Option("--firmware", "a Python file with policies that replace the drive's own (docs/policies.md)", None,
               metavar="FILE"),
        Option("--durability", "what flushed data survives: this process's death, or the whole computer's", "process",
               choices=("process", "machine")),
        Option("--doorbells", "how doorbells reach the drive", "auto", choices=("auto", "mapped", "trapped")),
    ),
    examples=(
        "emucsd up",
        "emucsd up --small --profile newport",
        "emucsd up --file two-drives.toml --dry-run",
        "emucsd up disk0 --drive-only",
        "emucsd up disk1 --drive-only --profile rmssd --size 16GiB --clock virtual",
        "emucsd up disk2 --drive-only --set nand.read_ns=50000 --set buffer.pages=1024 --dry-run",
    ),
)  # fmt: skip
