"""What leads a run: hello, inspect, tune, plan, train, evaluate, done; and what to do when somebody is lost or comes.

    hello -> inspect -> tune -> plan -> train -> evaluate -> done
                                  ^       |  lost: those that are left answer where they are; plan anew
                                  '-------'  rejoined: all pause after the same step; plan anew

After a loss the newest state among those that are left is the run's; a rank that is a step behind, or new, takes it
over (``training.share``). A plan that comes in the middle of an epoch deals out what is left of it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from emucsd.stannis import fields
from emucsd.stannis.errors import (
    CheckpointMissing,
    GroupError,
    MemoryExceeded,
    NodeFailed,
    NoRanks,
    PeerLost,
    StannisError,
    VersionMismatch,
)
from emucsd.stannis.group import protocol
from emucsd.stannis.group.cluster import Cluster
from emucsd.stannis.group.events import Events
from emucsd.stannis.group.failures import WorkerFailed
from emucsd.stannis.group.inventory import Inventory
from emucsd.stannis.group.joining import Joining
from emucsd.stannis.group.membership import Membership, Present
from emucsd.stannis.group.protocol import Message, Welcome
from emucsd.stannis.group.rounds import Round, Rounds, load_plan, load_position
from emucsd.stannis.group.server import Server
from emucsd.stannis.group.tuning import Tuner
from emucsd.stannis.plan.balancer import balance
from emucsd.stannis.plan.plan import Engine, Plan
from emucsd.stannis.plan.replan import replan
from emucsd.stannis.spec import Spec
from emucsd.stannis.training.position import Position

_ATTEMPTS = 3  # to form a group of ranks none of which is lost


class Stopped(Exception):
    """The run is to end now, by its user's wish."""


@dataclass
class Standing:
    """Where the run is. :ivar plan: the one that ``at`` counts steps by"""

    plan: Plan
    at: Position


class Controller:
    """Leads one run.

    :ivar stops: how often the run was asked to stop; may be raised from any thread
    """

    def __init__(
        self, spec: Spec, cluster: Cluster, options: argparse.Namespace, server: Server, events: Events
    ) -> None:
        self.spec, self.cluster, self.options, self.events = spec, cluster, options, events
        welcome = Welcome(
            fields.dump(spec),
            beat=min(protocol.HEARTBEAT_SECONDS, options.silence / 4),
            silence=options.silence,
            debug=options.debug,
        )
        self.members = Membership(cluster, welcome, server, events)
        self.members.watcher = self
        self.inventory = Inventory(cluster)
        self.engines: dict[str, Engine] = {}
        self.rounds = Rounds(self.members, events)
        self.joining = Joining(self.members, self.inventory, self.engines)
        self.stops = 0
        self._training = False
        self._sync_seconds = 0.0
        self._begun = time.monotonic()

    # -- told by the membership

    def arrived(self, node: Present) -> None:
        """A node was let in."""
        if self._training:
            self.joining.begin(node)

    def left(self, node: Present, why: str) -> None:
        """A node is gone."""
        self.joining.forget(node)
        private = [pool.name for pool in self.inventory.pools.values() if set(pool.at) == {node.name}]
        self.events.tell("lost", node=node.name, why=why, pools=private, step=self.rounds.steps.last)

    def said(self, node: Present, message: Message) -> None:
        """A message that is no answer."""
        try:
            self.rounds.said(node, message)
        except StannisError as problem:
            self.members.dismiss(node, str(problem))

    # -- the run

    def run(self) -> int:
        """:returns: the exit status"""
        try:
            self._join()
            self._inspect()
            self._tune()
            standing = self._planned()
            if not self.options.dry_run:
                self._training = True
                self._train(standing)
        except Stopped:
            self.events.tell("stopped", step=self.rounds.steps.last, kept=self.rounds.kept)
            self.members.tell(self.cluster.names, protocol.Stop("the run was stopped", 0))
            return 0
        except StannisError as problem:
            self._fail(problem)
            return 1
        self.members.tell(self.cluster.names, protocol.Stop())
        return 0

    def _fail(self, problem: StannisError) -> None:
        about: dict[str, Any] = {}
        if isinstance(problem, WorkerFailed):
            about = {"error": problem.kind, "where": problem.where, "facts": problem.facts}
            if self.options.debug:
                about["trace"] = problem.log
        elif isinstance(problem, MemoryExceeded):
            about = {"facts": {"batch": problem.batch, "needed": problem.needed, "missing": problem.missing}}
        node = str(getattr(problem, "node", "") or "")
        self.events.tell("failed", **{"error": type(problem).__name__, "text": str(problem), "node": node, **about})
        self.members.tell(self.cluster.names, protocol.Stop(f"the run failed: {problem}"[:1000], 1))

    def _check(self) -> None:
        """Outside of training there is nothing to keep. :raises Stopped: it is to end"""
        if self.stops:
            raise Stopped

    # -- before training

    def _join(self) -> None:
        """Wait for all nodes. :raises NodeFailed: one never came, or may not"""
        names = set(self.cluster.names)
        refused = self.members.refused

        def here() -> bool:
            if refused and not self.spec.allow_missing:
                return True
            return names <= {*self.members.present, *refused}

        self.members.wait_for(here, self.options.join_seconds, self._check)
        for node, why in refused.items():
            kind = VersionMismatch if why.error == "VersionMismatch" else NodeFailed
            self._missing(node, kind(why.text))
        for name in self.cluster.names:
            if name not in self.members.present and name not in refused:
                self._missing(name, NodeFailed(f"no worker came within {self.options.join_seconds:g} s", name))

    def _missing(self, node: str, problem: StannisError) -> None:
        """:raises StannisError: the problem, unless the run may go on without the node"""
        if not self.spec.allow_missing:
            raise problem
        self.events.tell("missing", node=node, error=type(problem).__name__, why=str(problem))
        if (present := self.members.present.get(node)) is not None:
            self.members.dismiss(present, str(problem))

    def _inspect(self) -> None:
        wanted = {name: ("inspect", self.inventory.wanted(name)) for name in self._here()}
        for name, outcome in self.members.ask_all(wanted, self._check).items():
            try:
                if isinstance(outcome, StannisError):
                    raise outcome
                self.inventory.take(name, outcome)
            except StannisError as problem:
                self._missing(name, problem)
        self.events.tell("inspected", **self.inventory.told())

    def _tune(self) -> None:
        here = self._here()
        if len(here) > 1 and not set(here) <= set(self.spec.batches):
            self._sync_seconds = self.rounds.sync_seconds(here, self._check)
        tuner = Tuner(self.spec, self.members, self.options, self._sync_seconds, self._check)
        while True:
            try:
                engines, missing = tuner.engines([self.members.present[name] for name in self._here()])
                break
            except PeerLost as problem:
                self._missing(problem.node, problem)
        self.engines.update({engine.node: engine for engine in engines})
        for node, why in missing.items():
            self._missing(node, NodeFailed(why, node))

    def _here(self) -> list[str]:
        """Nodes that are present, in the order of ranks."""
        return [name for name in self.cluster.names if name in self.members.present]

    def _planned(self) -> Standing:
        """The first plan, or the one that follows the newest checkpoint's."""
        self.inventory.frozen = True
        nodes = [name for name in self._here() if name in self.engines]
        engines, pools = [self.engines[name] for name in nodes], self.inventory.of(nodes)
        found = self._found() if self.options.resume else None
        if found is not None:
            plan = replan(found.plan, engines, pools, epoch=found.at.epoch, step=found.at.inside)
            standing = Standing(plan, replace(found.at, inside=0))
        else:
            plan = balance(
                engines,
                pools,
                global_batch=self.spec.global_batch,
                strategy=self.spec.strategy,
                seed=self.spec.seed,
                sync_seconds=self._sync_seconds,
                equal=self.options.equal,
            )
            standing = Standing(plan, Position())
        self._tell_plan(standing.plan)
        if self.options.dry_run:
            self.events.tell("done", step=0, dry_run=True)
        return standing

    def _found(self) -> Standing:
        """The newest checkpoint of all nodes. :raises CheckpointMissing: none of them has any"""
        asked: dict[str, tuple[str, dict[str, Any]]] = {
            name: ("find", {}) for name in self._here() if self.cluster.member(name).checkpoint
        }
        best: tuple[Standing, str, str] | None = None
        for name, outcome in self.members.ask_all(asked, self._check).items():
            if isinstance(outcome, StannisError):
                self.events.tell("missing", node=name, error=type(outcome).__name__, why=str(outcome))
            elif outcome:
                at = load_position(name, outcome.get("at"))
                if best is None or at.step > best[0].at.step:
                    best = Standing(load_plan(name, outcome.get("plan")), at), name, str(outcome.get("where"))
        if best is None:
            raise CheckpointMissing(f"none of {len(asked)} nodes that keep checkpoints has one; start without --resume")
        standing, node, where = best
        self.events.tell("resumed", node=node, where=where, step=standing.at.step, epoch=standing.at.epoch)
        return standing

    def _tell_plan(self, plan: Plan) -> None:
        self.events.tell("plan", generation=plan.generation, plan=fields.dump(plan), why=plan.why, table=plan.table())

    # -- training

    def _train(self, standing: Standing) -> None:
        """Rounds until the run is done. :raises StannisError: it can't go on"""
        about = {"classes": list(self.inventory.classes), "readers": self.inventory.tests}
        attempts, resume = 0, bool(self.options.resume)
        while True:
            now = self.rounds.run(standing.plan, {**about, "resume": resume}, self._during)
            standing, done = self._after(now, standing)
            if done:
                break
            attempts = 0 if now.failures or now.asked else attempts + 1
            if attempts > _ATTEMPTS:
                raise GroupError(
                    f"{standing.plan.world} ranks could not form a group in {attempts} attempts; each must reach the "
                    "others at the address that it gives (--address)"
                )
        self._finish(now, standing)

    def _during(self, now: Round) -> None:
        """At every turn of a round."""
        if self.stops >= 2:
            raise Stopped
        if self.stops:
            self.rounds.ask(now, "stop")
        elif self.joining.ready:
            self.rounds.ask(now, "pause")

    def _after(self, now: Round, standing: Standing) -> tuple[Standing, bool]:
        """What to do after a round. :returns: where the run is, with the next plan; and whether it is done"""
        self._drop_failed(now, standing.plan)
        newest, known = now.newest, max(self.rounds.steps.last, standing.at.step)
        if newest is None or (known > 0 and newest.step < known - 1):
            raise NoRanks(
                f"no rank is left that has the state of step {known}; go on from the last checkpoint: --resume"
            )
        if newest.at is not None and newest.plan is not None:
            standing = Standing(newest.plan, newest.at)
        if newest.ended == "stopped" or self.stops:
            self._keep(standing)
            raise Stopped
        if all(stand.ended == "done" for stand in now.stands.values()):
            return standing, True
        return self._next(now, standing), False

    def _drop_failed(self, now: Round, plan: Plan) -> None:
        """:raises StannisError: of a kind that ends the run"""
        for name, problem in now.failures.items():
            if isinstance(problem, WorkerFailed) and problem.fatal:
                raise problem
            node = self.members.present.get(name)
            if isinstance(problem, MemoryExceeded) and self._shrunk(name, plan):
                continue
            if node is not None:
                self.members.dismiss(node, str(problem), again=True)  # its drive may be back later

    def _shrunk(self, name: str, plan: Plan) -> bool:
        """A rank ran out of memory: from now on it takes smaller batches. :returns: whether there are any"""
        batch = plan.share(name).batch
        if batch < 2 or name not in self.members.present:
            return False
        self.engines[name] = replace(self.engines[name], memory_limit_batch=max(batch * 3 // 4, 1))
        return True

    def _next(self, now: Round, standing: Standing) -> Standing:
        """The plan for those that are here now."""
        known = {engine.node: engine for engine in standing.plan.engines}
        for name, engine in known.items():  # batches may have moved, limits may have been found
            limit = self.engines[name].memory_limit_batch if name in self.engines else None
            self.engines[name] = replace(engine, memory_limit_batch=limit or engine.memory_limit_batch)
        joined = self.joining.take()
        old = {*now.nodes, *standing.plan.dropped} - self.joining.pending
        nodes = [name for name in self._here() if name in {*old, *joined}]
        engines = [self.engines[name] for name in nodes if name in self.engines]
        if not engines:
            raise NoRanks("no engine is left; go on from the last checkpoint: --resume")
        at = standing.at
        plan = replan(standing.plan, engines, self.inventory.of(nodes), epoch=at.epoch, step=at.inside)
        for name in joined:
            self.events.tell("rejoined", node=name, step=at.step)
        self.events.tell(
            "regroup", generation=plan.generation, step=at.step, epoch=at.epoch, nodes=list(plan.nodes), joined=joined,
            lost=sorted(set(now.nodes) - set(plan.nodes)),
        )  # fmt: skip
        self._tell_plan(plan)
        return Standing(plan, replace(at, inside=0))

    # -- the end

    def _keep(self, standing: Standing) -> None:
        """The last state, where a node keeps checkpoints and has not kept this one yet."""
        step = standing.at.step
        names: Sequence[str] = [name for name in self._here() if self.cluster.member(name).checkpoint]
        if step and names and step not in self.rounds.kept.values():
            self.members.ask_all({name: ("keep", {"step": step}) for name in names}, self._impatient)

    def _impatient(self) -> None:
        if self.stops >= 2:
            raise Stopped

    def _finish(self, now: Round, standing: Standing) -> None:
        self._keep(standing)
        last = max(self.rounds.epochs, default=-1)
        epoch = self.rounds.epochs.get(last)
        evaluation: dict[str, Any] = dict(epoch.evaluation) if epoch is not None else {}
        if self.inventory.tests and (not evaluation or last < standing.at.epoch - 1):
            asked: dict[str, tuple[str, dict[str, Any]]] = {name: ("evaluate", {}) for name in now.nodes}
            found = [one for one in self.members.ask_all(asked, self._impatient).values() if isinstance(one, dict)]
            evaluation = next((one for one in found if one), evaluation)
        self.events.tell(
            "done",
            step=standing.at.step,
            epoch=standing.at.epoch,
            loss=self.rounds.steps.loss,
            evaluation=evaluation or None,
            kept=self.rounds.kept,
            seconds=round(time.monotonic() - self._begun, 3),
        )
