"""One group of ranks, from its forming to its end: by the run's end, a loss, a newcomer, or a stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from emucsd.stannis import fields
from emucsd.stannis.errors import GroupViolation, PeerLost, StannisError
from emucsd.stannis.group.events import Events
from emucsd.stannis.group.failures import WorkerFailed
from emucsd.stannis.group.membership import Membership, Outcome, Present
from emucsd.stannis.group.protocol import Abandon, Broken, Epoch, Message, Pause, Planned, Saved, Step, Store, StoreAt
from emucsd.stannis.group.steps import Steps
from emucsd.stannis.plan.plan import Plan
from emucsd.stannis.training.position import Position

_SYNC_LIMIT = 3600.0  # seconds that no addition takes


@dataclass(frozen=True)
class Stand:
    """Where a rank was when its group ended.

    :ivar ended: ``training.report.Ended``'s values, or ``lost``
    :ivar at: None: it had not begun
    :ivar plan: the one that it followed at last
    """

    node: str
    ended: str
    at: Position | None
    plan: Plan | None

    @property
    def step(self) -> int:
        """Of the run; -1: it had not begun."""
        return self.at.step if self.at is not None else -1


@dataclass
class Round:
    """A generation's ranks, and what came of it.

    :ivar nodes: by rank
    :ivar stands: by node: those that answered
    :ivar failures: by node: those that failed or were lost
    """

    generation: int
    nodes: tuple[str, ...]
    stands: dict[str, Stand] = field(default_factory=dict)
    failures: dict[str, StannisError] = field(default_factory=dict)
    abandoned: bool = False
    asked: str = ""  # "pause" or "stop", once that was said

    @property
    def over(self) -> bool:
        """Every rank has answered, failed or gone."""
        return len(self.stands) + len(self.failures) == len(self.nodes)

    @property
    def newest(self) -> Stand | None:
        """Of the ranks that are left, one that has done most steps; of several the lowest."""
        return max(self.stands.values(), key=lambda stand: stand.step, default=None)


class Rounds:
    """Runs rounds. It is told by the controller what comes in meanwhile.

    :ivar now: the round that runs
    :ivar evaluated: epoch -> its evaluation
    """

    def __init__(self, members: Membership, events: Events) -> None:
        self.members, self.events = members, events
        self.steps = Steps(events)
        self.now: Round | None = None
        self.epochs: dict[int, Epoch] = {}
        self.kept: dict[str, int] = {}
        self._generation = 0

    def run(self, plan: Plan, about: dict[str, Any], check: Callable[[Round], None]) -> Round:
        """Form a group for a plan and train until it ends.

        :param about: goes along with the request: classes, readers, resume
        :param check: called at every turn; may ask for a pause, or raise
        """
        now = self._begin(plan.nodes)
        self.steps.begin(now.generation, plan.nodes)

        def ended(node: Present, outcome: Outcome) -> None:
            self._ended(now, node.name, outcome)

        arguments = {**self._meeting(now), "plan": fields.dump(plan), **about}
        for name in plan.nodes:
            node = self.members.present.get(name)
            if node is None:
                self._fail(now, name, PeerLost(f"{name} is lost", name))
            else:
                self.members.ask(node, "train", arguments, ended)
        try:
            while not now.over:
                check(now)
                self.members.turn(0.2)
        finally:
            self.now = None
        newest = now.newest
        self.steps.end(newest.step if newest is not None else 0)
        return now

    def sync_seconds(self, nodes: Sequence[str], check: Callable[[], None]) -> float:
        """How long these nodes take to add up one step's gradients. :raises StannisError: the model can't be made"""
        now = self._begin(tuple(nodes))
        asked: dict[str, tuple[str, dict[str, Any]]] = {
            name: ("sync", {**self._meeting(now), "nodes": list(nodes)}) for name in nodes
        }

        def turn() -> None:
            check()
            if any(name not in self.members.present for name in nodes):
                self._abandon(now, "a rank is gone")

        try:
            outcomes = self.members.ask_all(asked, turn)
        finally:
            self.now = None
        times = []
        for outcome in outcomes.values():
            if isinstance(outcome, WorkerFailed) and outcome.fatal:
                raise outcome
            seconds = outcome.get("seconds") if isinstance(outcome, dict) else None
            if isinstance(seconds, float) and 0 <= seconds < _SYNC_LIMIT:
                times.append(seconds)
        why = next((one["why"] for one in outcomes.values() if isinstance(one, dict) and "why" in one), None)
        self.events.tell("sync", nodes=list(nodes), seconds=max(times, default=None), **({"why": why} if why else {}))
        return max(times, default=0.0)

    def _meeting(self, now: Round) -> dict[str, Any]:
        """How the ranks are to meet. Where each has an address of its own they are on the drives' tunnels, and these
        meet at the host's end, which is where the first node is."""
        present = [self.members.present[name] for name in now.nodes if name in self.members.present]
        addresses = {node.hello.address for node in present}
        host_leads = now.nodes[0] == self.members.cluster.names[0]
        return {"generation": now.generation, "over_host": host_leads and len(addresses) == len(now.nodes)}

    def _begin(self, nodes: tuple[str, ...]) -> Round:
        self._generation += 1
        self.now = Round(self._generation, nodes)
        return self.now

    def _fail(self, now: Round, name: str, problem: StannisError) -> None:
        now.failures[name] = problem
        self._abandon(now, str(problem))

    def _ended(self, now: Round, name: str, outcome: Outcome) -> None:
        try:
            if isinstance(outcome, StannisError):
                raise outcome
            stand = _stand(name, outcome)
        except StannisError as problem:
            self._fail(now, name, problem)
            return
        now.stands[name] = stand
        if stand.ended == "lost":
            self._abandon(now, "another rank lost its peers")

    def _abandon(self, now: Round, why: str) -> None:
        """Nobody is to wait for a rank that is gone."""
        if not now.abandoned:
            now.abandoned = True
            self.members.tell(now.nodes, Abandon(now.generation, why[:500]))

    def ask(self, now: Round, what: str) -> None:
        """``pause``, or ``stop`` with a checkpoint: after the step that all are in. One rank passes it on to all."""
        if now.asked in ("", "pause") and now.asked != what and not now.abandoned:
            now.asked = what
            self.members.tell(now.nodes, Pause(now.generation, what == "stop"))

    # -- what ranks say meanwhile

    def said(self, node: Present, message: Message) -> None:
        """A message that is no answer."""
        now = self.now
        if isinstance(message, Saved):
            self._saved(node, message)
        elif now is None or getattr(message, "generation", None) != now.generation:
            return  # of a round that is over
        elif isinstance(message, Step):
            self.steps.take(node.name, message)
        elif isinstance(message, Store):
            self._store(now, node, message)
        elif isinstance(message, Broken):
            self._abandon(now, message.text or "a rank lost its peers")
        elif isinstance(message, Epoch):
            self._epoch(message)
        elif isinstance(message, Planned):
            self._planned(node, message)

    def _store(self, now: Round, node: Present, message: Store) -> None:
        if node.name != now.nodes[0]:
            raise GroupViolation(f"{node.name} opened a store and is not rank 0")
        address = node.hello.address or node.peer.where.rpartition(":")[0]
        self.members.tell(now.nodes[1:], StoreAt(now.generation, address, message.port))

    def _saved(self, node: Present, message: Saved) -> None:
        about = {"node": node.name, "step": message.step, "bytes": message.bytes, "seconds": message.seconds}
        if message.error:
            self.events.tell("checkpoint", **about, error=message.error)
            return
        self.kept[node.name] = message.step
        self.events.tell("checkpoint", **about, where=message.where)

    def _epoch(self, message: Epoch) -> None:
        self.epochs[message.epoch] = message
        about = fields.dump(message)
        about["evaluation"] = message.evaluation or None
        self.events.tell("epoch", **about)

    def _planned(self, node: Present, message: Planned) -> None:
        plan = load_plan(node.name, message.plan)
        self.events.tell(
            "retuned",
            step=message.step,
            nodes=list(plan.nodes),
            batches=list(plan.batches),
            why=message.why,
            plan=fields.dump(plan),
        )


def load_plan(node: str, said: Any) -> Plan:
    """A plan that a worker sent. :raises StannisError: it is none"""
    try:
        return fields.load(Plan, said, "plan")
    except fields.FieldError as problem:
        raise GroupViolation(f"{node} sent a plan that is none: {problem}") from None


def load_position(node: str, said: Any) -> Position:
    """A position that a worker sent. :raises GroupViolation: it is none"""
    try:
        found = fields.load(Position, said, "at")
    except fields.FieldError as problem:
        raise GroupViolation(f"{node} sent a position that is none: {problem}") from None
    if min(found.step, found.epoch, found.inside) < 0:
        raise GroupViolation(f"{node} is at step {found.step}, epoch {found.epoch}; both from 0")
    return found


def _stand(node: str, said: dict[str, Any]) -> Stand:
    """:raises StannisError: no such answer"""
    ended, at, plan = said.get("ended"), said.get("at"), said.get("plan")
    if ended not in ("done", "until", "paused", "stopped", "retune", "lost"):
        raise GroupViolation(f"{node} ended by {ended!r}")
    if at is None or plan is None:
        return Stand(node, ended, None, None)
    return Stand(node, ended, load_position(node, at), load_plan(node, plan))
