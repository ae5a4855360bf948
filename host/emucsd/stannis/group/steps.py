"""Steps as the run knows them: put together from what each rank says of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from emucsd.stannis.group.events import Events
from emucsd.stannis.group.protocol import Step


class Steps:
    """Collects a generation's steps, and tells each once all ranks have said theirs.

    :ivar last: the last step that some rank has done, from 1; 0: none yet
    """

    def __init__(self, events: Events) -> None:
        self._events = events
        self._open: dict[int, dict[str, Step]] = {}
        self._nodes: tuple[str, ...] = ()
        self._generation = 0
        self.last = 0
        self.loss: float | None = None

    def begin(self, generation: int, nodes: Sequence[str]) -> None:
        """A new group."""
        self._open, self._nodes, self._generation = {}, tuple(nodes), generation

    def take(self, node: str, step: Step) -> None:
        """A rank's word; that of an earlier group is late, and left out."""
        if step.generation != self._generation or node not in self._nodes:
            return
        self.last = max(self.last, step.step)
        said = self._open.setdefault(step.step, {})
        said[node] = step
        if len(said) == len(self._nodes):
            del self._open[step.step]
            self._tell(said)

    def end(self, step: int) -> None:
        """The group is over, and the run stands after ``step``: steps up to it counted, though not all that took part
        could say so."""
        for number in sorted(self._open):
            if number <= step:
                self._tell(self._open[number])
        self._open = {}

    def _tell(self, said: dict[str, Step]) -> None:
        first = next(iter(said.values()))
        self.loss = first.loss
        nodes = [node for node in self._nodes if node in said]
        steps = [said[node] for node in nodes]
        about: dict[str, Any] = {
            "images": [step.samples for step in steps],
            "compute": [round(step.compute, 6) for step in steps],
            "load": [round(step.load, 6) for step in steps],
            "wait": [round(step.wait, 6) for step in steps],
            "transfer": [round(step.transfer, 6) for step in steps],
            "left_out": [step.left_out for step in steps],
            "sent": [step.sent for step in steps],
        }
        self._events.tell(
            "step",
            generation=self._generation,
            step=first.step,
            epoch=first.epoch,
            loss=first.loss,
            accuracy=first.accuracy,
            lr=first.lr,
            skipped=first.skipped,
            total=first.total,
            nodes=nodes,
            **about,
        )
