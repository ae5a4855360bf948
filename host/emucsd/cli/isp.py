"""`emucsd isp`: the Linux inside a drive: how it is, and jobs on it."""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from emucsd.cli.command import FAILED, Command, CommandError, Option, Result, Settings
from emucsd.cli.units import count, seconds, show_size, size

if TYPE_CHECKING:
    from emucsd.isp.client import Isp
    from emucsd.isp.job import Job


@dataclass(frozen=True)
class Words(Option):
    """Everything from here on belongs to the job, whatever it looks like."""

    def add(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(self.name, nargs=argparse.REMAINDER, help=self.help, metavar="WORD")


def _opened(settings: Settings) -> Isp:
    from emucsd.isp.testbed import connect

    return connect(settings.name, settings.isp)


# -- status ----------------------------------------------------------------------------------------------------------


def run_status(settings: Settings) -> Result:
    isp = _opened(settings)
    return {"name": settings.name, "report": isp.report(), "jobs": isp.jobs()}


def show_status(result: Result, console: Console) -> None:
    report = result["report"]
    memory = report["memory"]
    share = f", each worth {report['cpu_share']:g} of one here" if report["cpu_share"] < 1 else ""
    console.print(
        f"[bold]{escape(result['name'])}[/]: {report['cores']} cores{share}, load "
        f"{' '.join(f'{one:.2f}' for one in report['load'])}; memory {show_size(memory['available_bytes'])} of "
        f"{show_size(memory['total_bytes'])} free; up {report['uptime_seconds']:.0f} s",
        soft_wrap=True,
    )
    console.print(f"  {report['machine']} Linux {escape(report['kernel'])}, Python {report['python']}")
    if drive := report.get("drive"):
        state = "attached" if drive["attached"] else f"not attached: {drive['why']}"
        console.print(f"  drive {escape(drive['where'])} {escape(state)}", soft_wrap=True)
        if tunnel := drive.get("tunnel"):
            console.print(f"  tunnel {escape(str(tunnel))}", soft_wrap=True)
    if not result["jobs"]:
        console.print("  no jobs; start one: emucsd isp run NAME COMMAND …")
        return
    table = Table("job", "state", "command", "seconds", "memory")
    for job in result["jobs"]:
        ended = job.get("result")
        state = job["state"] if ended is None else f"{ended['reason']} {ended['status']}"
        held = ended["peak_bytes"] if ended else job["resident_bytes"]
        table.add_row(
            job["job"], escape(state), escape(shlex.join(job["argv"])), f"{job['seconds']:.1f}", show_size(held)
        )
    console.print(table)


# -- run -------------------------------------------------------------------------------------------------------------


def _pair(text: str) -> tuple[str, str]:
    """LEFT or LEFT:RIGHT; alone it stands for both, without its folders on the right."""
    left, colon, right = text.partition(":")
    if not left or (colon and not right):
        raise ValueError(f"{text!r}: give FILE, or FILE:NAME")
    return left, right or Path(left).name


def _output(text: str) -> tuple[str, str]:
    left, colon, right = text.partition(":")
    if not left or (colon and not right):
        raise ValueError(f"{text!r}: give NAME, or NAME:FILE")
    return left, right or left


def _argv(settings: Settings) -> list[str]:
    words = settings.words[1:] if settings.words[:1] == ["--"] else settings.words
    if not words:
        raise CommandError("no command is given", "emucsd isp run NAME python3 train.py")
    if words[0].startswith("-"):
        raise CommandError(
            f"{words[0]}: options of emucsd come before NAME, those of the job after its command",
            f"emucsd isp run {words[0]} … {settings.name} COMMAND …",
        )
    return list(words)


def plan_run(settings: Settings) -> Result:
    return {
        "run": shlex.join(_argv(settings)),
        "on": settings.name,
        "send": {name: path for path, name in settings.input},
        "fetch": dict(settings.output),
    }


def run_run(settings: Settings) -> Result:
    """Run a job, its log on standard output as it comes (with --json on standard error)."""
    from emucsd.isp.protocol import Limits

    argv = _argv(settings)
    limits = Limits(settings.seconds, settings.memory, settings.cpus, settings.nice, settings.output_bytes)
    job = _opened(settings).run(
        argv,
        env=dict(settings.env),
        inputs={name: Path(path) for path, name in settings.input},
        outputs={name: Path(path) for name, path in settings.output},
        limits=limits,
        on_disconnect="detach" if settings.detach else "kill",
    )
    if settings.detach:
        job.close()
        return {"job": job.id, "detached": True}
    return _follow(job, settings)


def _follow(job: Job, settings: Settings) -> Result:
    """Its log to the end. Interrupted, the job is cancelled."""
    target = sys.stderr.buffer if settings.json else sys.stdout.buffer
    try:
        while piece := job.read():
            target.write(piece)
            target.flush()
    except KeyboardInterrupt:
        job.cancel()
        raise
    result = job.wait(check=False)
    return {
        "job": job.id,
        "result": result._asdict(),
        "outputs": {name: str(path) for name, path in job.outputs.items()},
        "missing": job.missing,
        "exit_code": 0 if result.ok and not job.missing else FAILED,
    }


def show_run(result: Result, console: Console) -> None:
    told = Console(stderr=True, highlight=False)  # standard output is the job's
    if result.get("detached"):
        told.print(f"{result['job']} runs; emucsd isp attach NAME {result['job']} follows it")
        return
    ended = result["result"]
    how = (
        f"ended with status {ended['status']}" if ended["reason"] == "exited" else f"{ended['reason']}: {ended['text']}"
    )
    told.print(
        f"{result['job']} {escape(how)} after {ended['seconds']:.2f} s, {ended['cpu_seconds']:.2f} s of processor, "
        f"{show_size(ended['peak_bytes'])} of memory",
        soft_wrap=True,
    )
    for name, path in result["outputs"].items():
        told.print(f"  {escape(name)} is in {escape(path)}", soft_wrap=True)
    for name in result["missing"]:
        told.print(f"  {escape(name)} was not made", soft_wrap=True)


def run_attach(settings: Settings) -> Result:
    outputs = {name: Path(path) for name, path in settings.output}
    return _follow(_opened(settings).attach(settings.job, outputs=outputs), settings)


# -- cancel ----------------------------------------------------------------------------------------------------------


def plan_cancel(settings: Settings) -> Result:
    return {"cancel": settings.jobs, "on": settings.name}


def run_cancel(settings: Settings) -> Result:
    isp = _opened(settings)
    if not settings.jobs:
        running = ", ".join(job["job"] for job in isp.jobs()) or "none"
        raise CommandError("no job is named", f"emucsd isp cancel {settings.name} JOB …; there are: {running}")
    return {"jobs": [isp.cancel(job) for job in settings.jobs]}


def show_cancel(result: Result, console: Console) -> None:
    for job in result["jobs"]:
        had = job["state"] == "ended"
        console.print(f"{job['job']} " + ("had ended" if had else "is told to end; it is killed 3 s later"))


def _variable(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ValueError(f"{text!r}: give NAME=VALUE")
    return key, value


NAME = Option("name", "a drive with an ISP engine, a testbed, or a runtime folder")
ISP = Option("--isp", "which drive's engine, in a testbed of several", 0, int, metavar="N")
OUTPUT = Option("--output", "a file to bring back, NAME or NAME:FILE; repeatable", None, _output, metavar="NAME:FILE",
                many=True)  # fmt: skip

COMMAND = Command(
    name="isp",
    summary="the Linux inside a drive: its state, and jobs on it",
    children=(
        Command(
            name="status",
            summary="load, memory and jobs of an ISP engine",
            run=run_status,
            show=show_status,
            options=(NAME, ISP),
            examples=("emucsd isp status testbed", "emucsd isp status testbed --json"),
        ),
        Command(
            name="run",
            summary="run a job: its log as it comes, its files there and back",
            run=run_run,
            show=show_run,
            plan=plan_run,
            options=(
                Option("--input", "a file to send, FILE or FILE:NAME; repeatable", None, _pair, metavar="FILE:NAME",
                       many=True),
                OUTPUT,
                Option("--env", "a variable for it; repeatable", None, _variable, metavar="NAME=VALUE", many=True),
                Option("--seconds", "end it after this time, like 90 or 10min", None, seconds),
                Option("--memory", "end it beyond this much resident memory, like 2GiB", None, size),
                Option("--cpus", "cores that it may run on", None, count),
                Option("--nice", "0 to 19: only what others leave", 0, int),
                Option("--output-bytes", "most that it may print, and write into one file", None, size),
                Option("--detach", "leave it running when emucsd ends: at once", False),
                ISP,
                NAME,
                Words("words", "the command and its arguments; `--` before them is allowed"),
            ),
            examples=(
                "emucsd isp run testbed uname -a",
                "emucsd isp run --input train.py --input data.bin --output model.bin testbed -- python3 train.py",
                "emucsd isp run --memory 2GiB --seconds 10min --detach testbed python3 -m http.server",
            ),
            details="""
            The job runs in a folder of its own on the engine; inputs lie there and outputs are looked for there. Files
            of the drive are read through $EMUCSD_DISK: docs/isp.md. Options come before NAME.
            """,
        ),
        Command(
            name="attach",
            summary="follow a job that was left running",
            run=run_attach,
            show=show_run,
            options=(OUTPUT, ISP, NAME, Option("job", "its id, as status lists it")),
            examples=("emucsd isp attach testbed job-3", "emucsd isp attach --output model.bin testbed job-3"),
        ),
        Command(
            name="cancel",
            summary="end jobs, with all that they started",
            run=run_cancel,
            show=show_cancel,
            plan=plan_cancel,
            options=(ISP, NAME, Option("jobs", "ids of jobs, as status lists them", many=True)),
            examples=("emucsd isp cancel testbed job-3",),
        ),
    ),
)  # fmt: skip
