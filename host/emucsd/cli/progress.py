"""Progress on standard error, for people only: nothing is drawn where nobody looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Tell = Callable[[str], None]
Advance = Callable[[float, str], None]


@contextmanager
def spinner(what: str) -> Iterator[Tell]:
    """A step of unknown length; the function given shows one more line of what it is at."""
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None, note="")
        yield lambda note: progress.update(task, note=note[: max(console.width - len(what) - 16, 10)])


@contextmanager
def bar(what: str, total: float) -> Iterator[Advance]:
    """A step of known length; the function given sets how far it is, and a note such as a rate."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total, note="")
        yield lambda done, note="": progress.update(task, completed=min(done, total), note=note)  # type: ignore[misc]
