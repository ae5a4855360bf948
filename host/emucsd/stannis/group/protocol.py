"""What coordinator and workers say to each other: JSON objects, one a line, over TCP. See docs/stannis-group.md.

Each message is a dataclass here; ``pack`` and ``parse`` are the way to and from bytes, ``Lines`` cuts a stream into
lines. Nothing that a peer sends is believed: unknown kinds, fields missing or too many, values of another type or out
of range and lines too long are a ``GroupViolation``. Standard library alone.
"""

from __future__ import annotations

import hmac
import json
import math
from dataclasses import dataclass, field
from typing import Any

from emucsd.stannis import fields
from emucsd.stannis.errors import GroupViolation

VERSION = 1
HELLO_LIMIT = 16 << 10  # bytes of a line before the peer has shown the token
WORKER_LIMIT = 1 << 20  # ... of a worker
COORDINATOR_LIMIT = 64 << 20  # ... of the coordinator: plans of many ranks
NAME_LIMIT = 200
TEXT_LIMIT = 4000
COUNT_LIMIT = 1 << 53
HEARTBEAT_SECONDS = 1.0
SILENCE_SECONDS = 10.0


def _check(good: bool, text: str) -> None:
    if not good:
        raise GroupViolation(text)


def _check_count(name: str, value: int, high: int = COUNT_LIMIT, low: int = 0) -> None:
    _check(low <= value <= high, f"{name} is {value}; {low} to {high}")


def _check_text(name: str, value: str, limit: int = TEXT_LIMIT) -> None:
    _check(len(value) <= limit, f"{name} has {len(value)} characters; {limit} at most")


def _check_seconds(name: str, value: float) -> None:
    _check(math.isfinite(value) and value >= 0, f"{name} is {value}; a time from 0")


# -- a worker's


@dataclass(frozen=True)
class Hello:
    """First line of a connection.

    :ivar versions: emucsd, python, torch, numpy: what must be equal on all ranks, or is told in errors
    :ivar machine: architecture and processor
    :ivar computer: equal on nodes that share one kernel: their benchmarks would disturb each other
    :ivar address: of this end of the connection: where the other ranks reach it
    """

    token: str
    node: str
    protocol: int
    versions: dict[str, str]
    machine: str = ""
    computer: str = ""
    cores: int = 1
    memory_bytes: int = 0
    address: str = ""
    pid: int = 0

    def __post_init__(self) -> None:
        _check(0 < len(self.node) <= NAME_LIMIT, f"node's name has {len(self.node)} characters; 1 to {NAME_LIMIT}")
        _check(len(self.versions) <= 16, f"{len(self.versions)} versions; 16 at most")
        for value in (*self.versions, *self.versions.values(), self.machine, self.computer, self.address):
            _check_text("a text of the hello", value, NAME_LIMIT)
        _check_count("cores", self.cores, 1 << 20, 1)
        _check_count("memory_bytes", self.memory_bytes)


@dataclass(frozen=True)
class Beat:
    """The worker lives. Sent every ``HEARTBEAT_SECONDS`` by a thread of its own."""


@dataclass(frozen=True)
class Answer:
    """A request was done. What it holds depends on the request, whose asker checks it."""

    request: int
    value: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """A request failed, or (``request`` -1) the worker as a whole.

    :ivar error: name of an error of emucsd.stannis.errors, or of another exception
    :ivar where: file:line in the user's own code
    :ivar facts: the error's fields that are public: batch, needed, limit, pool, index, parameter
    :ivar trace: the traceback, with --debug alone
    """

    request: int
    error: str
    text: str
    where: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    trace: str = ""

    def __post_init__(self) -> None:
        _check_text("error", self.error, NAME_LIMIT)
        _check_text("text", self.text)
        _check_text("where", self.where)
        _check_text("trace", self.trace, WORKER_LIMIT)
        _check(len(self.facts) <= 16, f"{len(self.facts)} facts; 16 at most")


@dataclass(frozen=True)
class Step:
    """A rank has done a step; ``training.report.StepReport``, as far as others want to know.

    :ivar generation: the group's
    :ivar step: of the run, from 1
    :ivar epoch: from 0
    :ivar samples: of this rank; ``total`` of all
    :ivar loss: mean over all ranks; None: not finite
    :ivar accuracy: over all ranks, 0 .. 1
    :ivar load: seconds of this rank; so are compute, wait and transfer
    :ivar left_out: samples of this rank that could not be read
    :ivar sent: bytes that this rank gave to the others' additions since its last word
    """

    generation: int
    step: int
    epoch: int
    samples: int
    total: int
    loss: float | None
    accuracy: float
    lr: float
    load: float
    compute: float
    wait: float
    transfer: float
    skipped: bool = False
    left_out: int = 0
    sent: int = 0

    def __post_init__(self) -> None:
        for name in ("generation", "step", "epoch", "samples", "total", "left_out", "sent"):
            _check_count(name, getattr(self, name))
        for name in ("load", "compute", "wait", "transfer"):
            _check_seconds(name, getattr(self, name))


@dataclass(frozen=True)
class Epoch:
    """An epoch is through; the same of every rank, so rank 0 alone says it.

    :ivar evaluation: samples, loss, accuracy, seconds on the test set; empty: it was not its turn
    """

    generation: int
    epoch: int
    steps: int
    samples: int
    loss: float | None
    accuracy: float
    seconds: float
    skipped: int = 0
    evaluation: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("generation", "epoch", "steps", "samples", "skipped"):
            _check_count(name, getattr(self, name))
        _check_seconds("seconds", self.seconds)
        _check(len(self.evaluation) <= 8, f"{len(self.evaluation)} figures of an evaluation; 8 at most")


@dataclass(frozen=True)
class Store:
    """Rank 0 has opened a generation's store. :ivar port: TCP, on the worker's address"""

    generation: int
    port: int

    def __post_init__(self) -> None:
        _check_count("generation", self.generation)
        _check_count("port", self.port, 65535, 1)


@dataclass(frozen=True)
class Broken:
    """The rank's group gave an error: somebody is gone, it can't know who."""

    generation: int
    text: str = ""

    def __post_init__(self) -> None:
        _check_count("generation", self.generation)
        _check_text("text", self.text)


@dataclass(frozen=True)
class Saved:
    """A checkpoint was kept, or ``error`` says why not. :ivar where: the folder or disk, as the node names it"""

    step: int
    where: str = ""
    bytes: int = 0
    seconds: float = 0.0
    error: str = ""

    def __post_init__(self) -> None:
        _check_count("step", self.step)
        _check_count("bytes", self.bytes)
        _check_seconds("seconds", self.seconds)
        _check_text("where", self.where)
        _check_text("error", self.error)


@dataclass(frozen=True)
class Planned:
    """Other batches hold from the next step on; every rank decided the same, rank 0 says it.

    :ivar plan: the Plan's JSON object
    """

    generation: int
    step: int
    plan: dict[str, Any]
    why: str = ""

    def __post_init__(self) -> None:
        _check_count("generation", self.generation)
        _check_count("step", self.step)
        _check_text("why", self.why)


# -- the coordinator's


@dataclass(frozen=True)
class Welcome:
    """The worker is let in.

    :ivar spec: the run's Spec, as its JSON object
    :ivar beat: seconds between heartbeats
    :ivar silence: seconds without a line after which the other end is taken for dead
    :ivar memory_bytes: what training may use; 0: what there is
    :ivar checkpoint: where this node keeps checkpoints; empty: nowhere
    :ivar debug: failures carry tracebacks
    """

    spec: dict[str, Any]
    beat: float = HEARTBEAT_SECONDS
    silence: float = SILENCE_SECONDS
    memory_bytes: int = 0
    checkpoint: str = ""
    debug: bool = False


@dataclass(frozen=True)
class Refused:
    """The worker is not let in, or thrown out. :ivar again: it may try anew under the same name"""

    error: str
    text: str
    again: bool = False


@dataclass(frozen=True)
class Request:
    """Something to do: inspect, bench, find, train, evaluate. One after the other; each is answered."""

    request: int
    do: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StoreAt:
    """Where a generation's store is."""

    generation: int
    host: str
    port: int


@dataclass(frozen=True)
class Abandon:
    """A rank of this generation is gone: don't wait for it."""

    generation: int
    text: str = ""


@dataclass(frozen=True)
class Pause:
    """Let all ranks stop after the same step; ``train`` is answered then. :ivar stop: after a checkpoint, for good"""

    generation: int
    stop: bool = False


@dataclass(frozen=True)
class Stop:
    """The run is over; end. :ivar status: the worker's exit status"""

    text: str = ""
    status: int = 0


@dataclass(frozen=True)
class Pulse:
    """The coordinator lives; the answer to a Beat."""


Message = (
    Hello | Beat | Answer | Failure | Step | Epoch | Store | Broken | Saved | Planned
    | Welcome | Refused | Request | StoreAt | Abandon | Pause | Stop | Pulse
)  # fmt: skip

FROM_WORKER: dict[str, type[Message]] = {
    kind.__name__.lower(): kind for kind in (Hello, Beat, Answer, Failure, Step, Epoch, Store, Broken, Saved, Planned)
}
FROM_COORDINATOR: dict[str, type[Message]] = {
    kind.__name__.lower(): kind for kind in (Welcome, Refused, Request, StoreAt, Abandon, Pause, Stop, Pulse)
}


def pack(message: Message) -> bytes:
    """A message as its line."""
    body = {"is": type(message).__name__.lower(), **fields.dump(message)}
    return json.dumps(body, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def parse(line: bytes, kinds: dict[str, type[Message]]) -> Message:
    """The message of a line.

    :param kinds: those that this peer may send: ``FROM_WORKER`` or ``FROM_COORDINATOR``
    :raises GroupViolation: it is none of them
    """
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        raise GroupViolation(f"a line of {len(line)} bytes is no JSON") from None
    if not isinstance(found, dict):
        raise GroupViolation(f"a line is {type(found).__name__}, must be an object")
    name = found.pop("is", None)
    kind = kinds.get(name) if isinstance(name, str) else None
    if kind is None:
        raise GroupViolation(f"no message is called {str(name)[:40]!r}; {', '.join(kinds)}")
    try:
        return fields.load(kind, found, str(name))
    except fields.FieldError as problem:
        raise GroupViolation(str(problem)) from None


class Lines:
    """Cuts a stream into lines. :ivar limit: bytes of a line at most; may be raised once a peer is trusted"""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are whole now. :raises GroupViolation: one passes the limit"""
        searched = len(self._rest)
        self._rest += data
        if b"\n" not in data:
            self._check(len(self._rest))
            return []
        end = self._rest.rindex(b"\n", searched) + 1
        lines = bytes(self._rest[:end]).split(b"\n")[:-1]
        del self._rest[:end]
        for length in (*map(len, lines), len(self._rest)):
            self._check(length)
        return lines

    def _check(self, length: int) -> None:
        if length > self.limit:
            raise GroupViolation(f"a line of more than {self.limit} bytes")


def same_token(given: str, known: str) -> bool:
    """Compared in constant time."""
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), known.encode())
