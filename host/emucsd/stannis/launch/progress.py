"""A run as it goes on, on standard error: a live table where somebody looks, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from emucsd.cli.units import show_time
from emucsd.stannis.launch.standing import Standing
from emucsd.stannis.spec import Spec

LINE_SECONDS = 5.0  # between plain lines of steps
STATES = {"training": "green", "ready": "cyan", "waiting": "dim", "lost": "red"}


class Display(Protocol):
    """What a run tells."""

    def note(self, text: str) -> None:
        """What is being done before the first event."""
        ...

    def event(self, event: Mapping[str, Any], standing: Standing) -> None:
        """An event, already in ``standing``."""
        ...

    def close(self) -> None:
        """Nothing more comes."""
        ...


class Lines:
    """Plain lines: everything but steps as it comes, of steps one every few seconds."""

    def __init__(self, console: Console, spec: Spec) -> None:
        self._console, self._spec = console, spec
        self._told = 0.0

    def note(self, text: str) -> None:
        """A line."""
        self._say(text)

    def event(self, event: Mapping[str, Any], standing: Standing) -> None:
        """A line, if it is worth one."""
        kind = event["event"]
        if kind == "step":
            if time.monotonic() - self._told >= LINE_SECONDS:
                self._told = time.monotonic()
                self._say(summary(standing, self._spec))
        elif text := told(event):
            self._say(text)

    def _say(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)

    def close(self) -> None:
        """Nothing is held."""


class LiveTable:
    """A table that is drawn anew, with the last lines above it."""

    def __init__(self, console: Console, spec: Spec) -> None:
        self._console, self._spec = console, spec
        self._note = ""
        self._standing: Standing | None = None
        self._live = Live(get_renderable=self._draw, console=console, refresh_per_second=4, transient=False)
        self._live.start()

    def note(self, text: str) -> None:
        """What is being done."""
        self._note = text

    def event(self, event: Mapping[str, Any], standing: Standing) -> None:
        """Into the table; what changes the run also as a line above it."""
        self._standing = standing
        if event["event"] != "step" and (text := told(event)):
            self._live.console.print(Text(text), soft_wrap=True)
            self._note = ""

    def close(self) -> None:
        """The last table stays."""
        self._live.stop()

    def _draw(self) -> Group:
        if self._standing is None or not self._standing.steps:
            return Group(Text(self._note, style="dim"))
        return Group(sheet(self._standing), Text(summary(self._standing, self._spec)))


def display(spec: Spec, *, quiet: bool = False) -> Display:
    """What fits standard error."""
    console = Console(stderr=True, highlight=False, quiet=quiet)
    return LiveTable(console, spec) if console.is_terminal and not quiet else Lines(console, spec)


def sheet(standing: Standing) -> Table:
    """A row a node."""
    table = Table("node", "state", "batch", "images/s", "waits", "images", "joules", box=None, pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    spent = standing.meter.record()["nodes"]
    for node in standing.nodes.values():
        table.add_row(
            node.name,
            Text(node.state, style=STATES.get(node.state, "")),
            str(node.batch or "-"),
            f"{node.rate:.1f}" if node.rate else "-",
            f"{node.recent_waiting:.0%}" if node.recent else "-",
            f"{node.images:,}",
            f"{spent.get(node.name, 0.0):,.0f}",
        )
    return table


def summary(standing: Standing, spec: Spec) -> str:
    """The whole run in one line."""
    steps = int(standing.plans[-1]["steps"]) * spec.epochs if standing.plans else 0
    steps = min(steps, spec.steps or steps)
    loss = "" if standing.loss is None else f", loss {standing.loss:.4f}"
    left = standing.seconds_left(spec.epochs, spec.steps)
    rest = "" if left is None else f", {show_time(left * 1e9)} left"
    return (
        f"epoch {standing.epoch + 1}/{spec.epochs}, step {standing.steps}/{steps}{loss}, lr {standing.lr:.3g}, "
        f"{standing.rate:.1f} images/s, {standing.meter.joules:,.0f} J (modelled){rest}"
    )


def told(event: Mapping[str, Any]) -> str:
    """An event as a line, empty where it is not worth one."""
    teller = _TELLERS.get(str(event["event"]))
    return teller(event) if teller else ""


def _told_epoch(event: Mapping[str, Any]) -> str:
    test = event.get("evaluation") or {}
    shown = [f"epoch {int(event['epoch']) + 1}: loss {event['loss']:.4f}, accuracy {event['accuracy']:.3f}"]
    if test:
        shown.append(f"test loss {test['loss']:.4f}, accuracy {test['accuracy']:.3f}")
    return "; ".join(shown)


def _told_checkpoint(event: Mapping[str, Any]) -> str:
    if event.get("error"):
        return f"checkpoint not kept: {event['error']}"
    return ""


_TELLERS = {
    "hello": lambda event: f"{event['node']} has joined",
    "lost": lambda event: f"{event['node']} is lost: {event['why']}",
    "missing": lambda event: f"{event['node']} is left out: {event['why']}",
    "refused": lambda event: f"{event.get('node', 'somebody')} may not join: {event['text']}",
    "resumed": lambda event: f"going on after step {event['step']}, kept in {event['where']}",
    "rejoined": lambda event: f"{event['node']} is back",
    "plan": lambda event: str(event.get("table", "")),
    "retuned": lambda event: f"batches are now {event['batches']}: {event['why']}",
    "epoch": _told_epoch,
    "checkpoint": _told_checkpoint,
}
