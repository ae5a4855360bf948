"""`emucsd machine`: what can happen to a testbed's machine."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.markup import escape

from emucsd.cli.command import Command, Option, Result, Settings
from emucsd.cli.progress import spinner

ACTIONS = {
    "reboot": "its Linux reboots; waits until SSH answers again",
    "power-cut": "its power goes, and comes back: what was not written is lost; waits until SSH answers again",
    "kill": "its power goes and stays away",
    "stop": "it is shut down in order and stays off",
    "start": "it is switched on; waits until SSH answers",
    "suspend": "its processors stop where they are",
    "resume": "its processors go on",
}


def _plan(action: str) -> Callable[[Settings], Result]:
    return lambda settings: {action: settings.machine, "testbed": settings.testbed}


def _run(action: str) -> Callable[[Settings], Result]:
    def run(settings: Settings) -> Result:
        from emucsd.testbed import Testbed

        with Testbed.open(settings.testbed) as testbed:
            testbed.machine(settings.machine)
            with spinner(f"{settings.machine}: {action}"):
                return testbed.control.call("machine", name=settings.machine, action=action)

    return run


def show(result: Result, console: Console) -> None:
    console.print(f"{escape(result['machine'])}: {escape(result['how'])} ({result['seconds']:.1f} s)")


def _child(action: str, summary: str) -> Command:
    return Command(
        name=action,
        summary=summary,
        run=_run(action),
        show=show,
        plan=_plan(action),
        options=(
            Option("machine", "host, isp0, isp1, …"),
            Option("--testbed", "which testbed", "testbed", metavar="NAME"),
        ),
        examples=(f"emucsd machine {action} host",),
    )


COMMAND = Command(
    name="machine",
    summary="reboot, switch off, suspend a testbed's machine",
    children=tuple(_child(action, summary) for action, summary in ACTIONS.items()),
)
