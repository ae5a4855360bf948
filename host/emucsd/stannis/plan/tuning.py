"""What the tuner found: a batch for each kind of engine, and every measurement on the way to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from emucsd.stannis import fields
from emucsd.stannis.errors import PlanError
from emucsd.stannis.plan.plan import Engine
from emucsd.stannis.plan.table import columns


@dataclass(frozen=True)
class Trial:
    """One benchmark.

    :ivar engine: of which kind
    :ivar seconds: of a step; None: it passed the memory
    :ivar memory_bytes: peak; 0: not measured
    :ivar why: what the batch was tried for
    """

    engine: str
    batch: int
    seconds: float | None
    memory_bytes: int
    why: str


@dataclass(frozen=True)
class Tuned:
    """A kind of engine with its batch.

    :ivar seconds: of a step at that batch
    :ivar memory_limit_batch: the largest that was seen to fit, where one was seen not to; None: memory was no limit
    :ivar curve: all that was measured: (batch, seconds), by rising batch
    """

    batch: int
    seconds: float
    memory_limit_batch: int | None = None
    curve: tuple[tuple[int, float], ...] = ()

    @property
    def rate(self) -> float:
        """Images/s."""
        return self.batch / self.seconds

    def engine(self, node: str) -> Engine:
        """What the balancer wants to know of a node of this kind."""
        return Engine(node, self.batch, self.rate, self.seconds, self.memory_limit_batch, self.curve)


@dataclass(frozen=True)
class Tuning:
    """A tuner's result.

    :ivar slowest: the kind whose best batch sets the time that all others are brought to
    :ivar tuned: kind -> its batch
    :ivar trials: in the order in which they were made
    :ivar margin: Algorithm 1's E
    :ivar c: Algorithm 1's C, seconds
    :ivar missing: kind -> why it can't take part
    """

    slowest: str
    tuned: dict[str, Tuned]
    trials: tuple[Trial, ...]
    margin: float
    c: float
    missing: dict[str, str] = field(default_factory=dict)

    def to_json(self, indent: int | None = None) -> str:
        """All of it; ``from_json`` gives an equal one."""
        return fields.to_json(self, indent)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """:raises PlanError: no JSON, or no tuning"""
        try:
            return fields.from_json(cls, text)
        except fields.FieldError as problem:
            raise PlanError(f"tuning: {problem}") from None

    def table(self) -> str:
        """For people: a line a measurement, the chosen ones marked."""
        rows = [(trial.engine, *self._cells(trial), trial.why) for trial in self.trials]
        head = ("engine", "batch", "s/step", "images/s", f"of {self.slowest}'s time", "why")
        notes = [f"{kind} left out: {why}" for kind, why in self.missing.items()]
        return "\n".join([columns(head, rows, left=1), *notes])

    def _cells(self, trial: Trial) -> tuple[str, ...]:
        found = self.tuned.get(trial.engine)
        chosen = " *" if found is not None and (found.batch, found.seconds) == (trial.batch, trial.seconds) else "  "
        if trial.seconds is None:
            return f"{trial.batch}{chosen}", "no memory", "", ""
        reference = self.tuned[self.slowest].seconds
        rate = trial.batch / trial.seconds
        return f"{trial.batch}{chosen}", f"{trial.seconds:.4g}", f"{rate:.4g}", f"{trial.seconds / reference:.2f}"
