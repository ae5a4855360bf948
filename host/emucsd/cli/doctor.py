"""`emucsd doctor`: what this machine can run, and why."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape

from emucsd.cli import probes
from emucsd.cli.command import FAILED, OK, Command, Result, Settings
from emucsd.cli.finding import GOOD, MISSING, PARTLY, Finding

# what a user wants to do -> the findings that it stands on; the first that is missing is the reason
USES = {
    "a drive and its client, no root, no virtual machine": ("processor", "memory", "python", "runtime folder"),
    "drives that outlive their process": ("store folder",),
    "lookups in the drive, checked against NumPy": ("processor", "python"),
    "lookups checked against PyTorch": ("torch",),
    "the demo with its picture": ("matplotlib",),
    "a drive in a virtual machine of yours": ("QEMU x86_64", "/dev/shm"),
    "a testbed: a host machine, and a Linux in the drive": ("QEMU x86_64", "QEMU aarch64", "images", "/dev/shm"),
    "a testbed without virtual machines: the local ISP engine": ("namespaces", "/dev/net/tun"),
}
COLOURS = {GOOD: "green", PARTLY: "yellow", MISSING: "red"}


def run(settings: Settings) -> Result:
    """Look at everything; the exit code is 1 when not even a plain drive can run."""
    from emucsd_wire import paths

    found = [probe() for probe in probes.probes(paths.runtime_root(), paths.store_root(), paths.cache_root())]
    states = {finding.name: finding for finding in found}
    uses = {use: _verdict([states[name] for name in names]) for use, names in USES.items()}
    usable = next(iter(uses.values()))["can"]
    return {"findings": [f._asdict() for f in found], "uses": uses, "exit_code": OK if usable else FAILED}


def _verdict(needed: list[Finding]) -> dict[str, Any]:
    bad = [f for f in needed if f.state == MISSING]
    reason = "; ".join(f"{f.name}: {f.found}" for f in bad) or "; ".join(f.found for f in needed if f.state != "ok")
    return {"can": not bad, "why": reason}


def show(result: Result, console: Console) -> None:
    console.print("[bold]What is here[/]")
    width = max(len(finding["name"]) for finding in result["findings"])
    for finding in result["findings"]:
        mark = f"[{COLOURS[finding['state']]}]{finding['state']:<7}[/]"
        console.print(f"  {mark}  {escape(finding['name']):<{width}}  {escape(finding['found'])}", soft_wrap=True)
        if finding["state"] != GOOD:
            indent = " " * (width + 13)
            console.print(f"{indent}needed for {escape(finding['needed_for'])}", soft_wrap=True)
            console.print(f"{indent}{escape(finding['next_step'])}", soft_wrap=True)
    console.print("\n[bold]What it can run[/]")
    for use, verdict in result["uses"].items():
        mark = "[green]yes[/]" if verdict["can"] else "[red]no [/]"
        why = f" ({escape(verdict['why'])})" if verdict["why"] else ""
        console.print(f"  {mark}  {use}{why}")


COMMAND = Command(
    name="doctor",
    summary="say what this machine can run, and why",
    run=run,
    show=show,
    examples=("emucsd doctor", "emucsd doctor --json"),
)
