"""How a run stands: what its events add up to, for the live display and for the record."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from emucsd.stannis.energy import Meter, calibrate

WINDOW = 8  # steps that a live rate is taken over
TIMES = ("compute", "load", "wait", "transfer")
Event = Mapping[str, Any]


@dataclass
class NodeStanding:
    """What one node has done.

    :ivar state: waiting, ready, training, lost
    :ivar batch: of the plan in force
    :ivar sent: bytes that it gave to the additions of gradients, by its own account
    :ivar seconds: of all its steps, by what they went to
    :ivar recent: (images, seconds) of its last steps
    """

    name: str
    kind: str
    state: str = "waiting"
    batch: int = 0
    images: int = 0
    steps: int = 0
    sent: int = 0
    losses: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(TIMES, 0.0))
    recent: deque[tuple[int, float, float]] = field(default_factory=lambda: deque(maxlen=WINDOW))

    @property
    def total_seconds(self) -> float:
        """Of all steps."""
        return sum(self.seconds.values())

    @property
    def waiting(self) -> float:
        """Share of its steps' time in which it waited for others."""
        return self.seconds["wait"] / self.total_seconds if self.total_seconds else 0.0

    @property
    def rate(self) -> float:
        """Images/s of its last steps, waiting included."""
        seconds = sum(taken for _, taken, _ in self.recent)
        return sum(images for images, _, _ in self.recent) / seconds if seconds else 0.0

    @property
    def recent_waiting(self) -> float:
        """Share of its last steps' time in which it waited."""
        seconds = sum(taken for _, taken, _ in self.recent)
        return sum(waited for _, _, waited in self.recent) / seconds if seconds else 0.0

    def record(self) -> dict[str, Any]:
        """Plain values."""
        seconds = self.total_seconds
        return {
            "kind": self.kind,
            "images": self.images,
            "steps": self.steps,
            "images_per_second": self.images / seconds if seconds else 0.0,
            "images_per_computing_second": _over(self.images, self.seconds["compute"] + self.seconds["load"]),
            "waiting_share": self.waiting,
            "seconds": {name: round(value, 6) for name, value in self.seconds.items()},
            "gradient_bytes_sent": self.sent,
            "times_lost": self.losses,
        }


class Standing:
    """Is given every event, in order.

    :param kinds: node -> its kind
    :param profiles: node -> ``host`` or ``csd``, for the energy
    """

    def __init__(self, kinds: Mapping[str, str], profiles: Mapping[str, str]) -> None:
        self.nodes = {name: NodeStanding(name, kind) for name, kind in kinds.items()}
        self.meter = Meter(calibrate(), profiles)
        self.plans: list[dict[str, Any]] = []
        self.tuning: list[dict[str, Any]] = []
        self.losses: list[tuple[int, float]] = []
        self.epochs: list[dict[str, Any]] = []
        self.checkpoints: list[dict[str, Any]] = []
        self.changes: list[dict[str, Any]] = []  # who was lost, who came back
        self.pools: Any = None
        self.steps = self.done = self.epoch = 0
        self.lr = 0.0
        self.images = 0
        self.begun = self.last = 0.0
        self.phase = "starting"
        self.final: dict[str, Any] = {}
        self._stamps: deque[tuple[float, int]] = deque(maxlen=4 * WINDOW)

    def take(self, event: Event) -> None:
        """One event; those that it doesn't know change nothing."""
        handler = getattr(self, f"_{event.get('event')}", None)
        if handler is not None:
            handler(event)

    # -- one method an event -----------------------------------------------------------------------------------------

    def _hello(self, event: Event) -> None:
        self._node(event).state = "ready"
        self.phase = "joining"

    def _inspected(self, event: Event) -> None:
        self.pools = event.get("pools")

    def _bench(self, event: Event) -> None:
        self.tuning.append(_without(event))
        self.phase = "tuning"

    _tuning = _bench

    def _tuned(self, event: Event) -> None:
        self.tuning.append(_without(event))

    def _plan(self, event: Event) -> None:
        plan = dict(event["plan"])
        self.plans.append(plan)
        for node in self.nodes.values():
            node.batch = 0
        for share in plan["shares"]:
            self.nodes[share["node"]].batch = share["batch"]
            self.nodes[share["node"]].state = "training"
        self.phase = "training"

    def _retuned(self, event: Event) -> None:
        self.changes.append({**_without(event), "event": "retuned"})
        self._plan(event)

    def _step(self, event: Event) -> None:
        now, steps = float(event["time"]), int(event.get("steps", 1))
        longest = 0.0
        for place, name in enumerate(event["nodes"]):
            longest = max(longest, self._part(self.nodes[name], event, place, steps))
        self.images += int(event["total"])
        self.begun = self.begun or now - longest
        self.last = now
        self._stamps.append((now, int(event["total"])))
        self.steps, self.lr, self.epoch = int(event["step"]), float(event["lr"]), int(event["epoch"])
        self.done += steps
        if event["loss"] is not None:
            self.losses.append((self.steps, float(event["loss"])))

    def _part(self, node: NodeStanding, event: Event, place: int, steps: int) -> float:
        """One node's part of a step, or of several in one event. :returns: its seconds"""
        seconds = {name: float(event[name][place]) for name in TIMES}
        taken, images = sum(seconds.values()), int(event["images"][place])
        for name, value in seconds.items():
            node.seconds[name] += value
        node.images += images
        node.steps += steps
        node.sent += int(event["sent"][place]) if "sent" in event else 0
        node.state = "training"
        node.recent.append((images, taken, seconds["wait"]))
        self.meter.add(node.name, taken, seconds["compute"] + seconds["load"], seconds["transfer"])
        return taken

    def _lost(self, event: Event) -> None:
        node = self._node(event)
        node.state = "lost"
        node.losses += 1
        node.recent.clear()
        self.changes.append({**_without(event), "event": "lost"})

    def _missing(self, event: Event) -> None:
        self._node(event).state = "left out"
        self.changes.append({**_without(event), "event": "missing"})

    def _resumed(self, event: Event) -> None:
        self.changes.append({**_without(event), "event": "resumed"})

    def _rejoined(self, event: Event) -> None:
        self._node(event).state = "ready"
        self.changes.append({**_without(event), "event": "rejoined"})

    def _regroup(self, event: Event) -> None:
        self.changes.append({**_without(event), "event": "regroup"})

    def _checkpoint(self, event: Event) -> None:
        self.checkpoints.append(_without(event))

    def _epoch(self, event: Event) -> None:
        self.epochs.append(_without(event))

    def _done(self, event: Event) -> None:
        self.final = {"how": "done", **_without(event)}
        self.phase = "done"

    def _stopped(self, event: Event) -> None:
        self.final = {"how": "stopped", **_without(event)}
        self.phase = "stopped"

    def _failed(self, event: Event) -> None:
        self.final = {"how": "failed", **_without(event)}
        self.phase = "failed"

    def _node(self, event: Event) -> NodeStanding:
        return self.nodes[str(event["node"])]

    # -- sums --------------------------------------------------------------------------------------------------------

    @property
    def rate(self) -> float:
        """Images/s of all nodes, over the last steps."""
        if len(self._stamps) < 2 or self._stamps[-1][0] <= self._stamps[0][0]:
            return 0.0
        first = self._stamps[0][0]
        return sum(images for at, images in self._stamps if at > first) / (self._stamps[-1][0] - first)

    @property
    def loss(self) -> float | None:
        """Of the last step, over all ranks."""
        return self.losses[-1][1] if self.losses else None

    def seconds_left(self, epochs: int, steps: int | None) -> float | None:
        """Until the run's end, as the last steps went; None where nothing is known yet."""
        if not self.plans or not self.steps or len(self._stamps) < 2:
            return None
        an_epoch = int(self.plans[-1]["steps"])
        wanted = min(epochs * an_epoch, steps or epochs * an_epoch)
        return max(wanted - self.steps, 0) * (self.last - self.begun) / max(self.done, 1)

    def record(self) -> dict[str, Any]:
        """What the run's record says of training."""
        seconds = self.last - self.begun
        return {
            "images": self.images,
            "seconds": round(seconds, 6),
            "images_per_second": self.images / seconds if seconds > 0 else 0.0,
            "steps": self.steps,
            "nodes": {name: node.record() for name, node in self.nodes.items()},
            "pools": self.pools,
            "tuning": self.tuning,
            "plans": self.plans,
            "losses": self.losses,
            "epochs": self.epochs,
            "checkpoints": self.checkpoints,
            "changes": self.changes,
            "energy": {**self.meter.record(self.images or None), "model": calibrate().record()},
        }


def _without(event: Event) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key != "event"}


def _over(images: int, seconds: float) -> float:
    return images / seconds if seconds > 0 else 0.0
