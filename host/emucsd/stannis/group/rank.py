"""What a worker does when the coordinator asks: look at samples, measure, find checkpoints, train, evaluate.

PyTorch is imported when the first of these needs it; ``worker`` has seen to that before it said hello.
"""

from __future__ import annotations

import contextlib
import json
import math
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from emucsd.stannis import fields
from emucsd.stannis.errors import CheckpointError, CheckpointMissing, GroupViolation, PeerLost
from emucsd.stannis.group import protocol
from emucsd.stannis.group.protocol import Abandon, Message, Pause, StoreAt
from emucsd.stannis.group.samples import Samples
from emucsd.stannis.plan.plan import Plan
from emucsd.stannis.spec import Spec

if TYPE_CHECKING:
    from emucsd.stannis.group.gloo import GlooGroup
    from emucsd.stannis.training.checkpoint import Store
    from emucsd.stannis.training.probe import Probe
    from emucsd.stannis.training.report import CheckpointReport, EpochReport, PlanReport, StepReport
    from emucsd.stannis.training.trainer import Hooks, Trainer

Arguments = Mapping[str, Any]
_SYNC_TIMES = 5  # additions that are timed, after one in which ranks wait for each other


class Rank:
    """One worker's part in one run, from its admission to its dismissal.

    ``do`` is for the thread that trains; ``hear`` for the one that reads.

    :param address: where other ranks reach this one
    :param say: sends to the coordinator
    :raises FieldError: the coordinator's spec is none
    """

    def __init__(self, welcome: protocol.Welcome, node: str, address: str, say: Callable[[Message], None]) -> None:
        self.spec = fields.load(Spec, welcome.spec, "spec")
        self.welcome, self.node, self.address = welcome, node, address
        self._say = say
        self._samples = Samples(self.spec, node)
        self._probe: Probe | None = None
        self._keeper: Store | None = None
        self._group: GlooGroup | None = None
        self._trainer: Trainer | None = None
        self._told_sent = self._sent_before = 0
        self._lock = threading.Lock()
        self._abandoned = -1
        self._running = False
        self._stores: dict[int, tuple[str, int]] = {}

    # -- from the thread that reads

    def hear(self, message: Message) -> None:
        """What must not wait until a request is done."""
        if isinstance(message, StoreAt):
            self._stores[message.generation] = (message.host, message.port)
        elif isinstance(message, Abandon):
            self.abandon(message.generation, message.text)
        elif isinstance(message, Pause):
            self._pause(message)

    def abandon(self, generation: int, why: str) -> None:
        """Leave the groups up to this generation, also one that is still to be formed."""
        with self._lock:
            self._abandoned = max(self._abandoned, generation)
            group = self._group
        if group is not None and group.generation <= generation:
            group.abandon(why)

    def _pause(self, pause: Pause) -> None:
        with self._lock:
            group, trainer = self._group, self._trainer
        if trainer is not None and group is not None and group.generation == pause.generation:
            from emucsd.stannis.training.gradients import Flag

            trainer.ask(Flag.STOP if pause.stop else Flag.PAUSE)

    # -- requests

    def do(self, request: protocol.Request) -> dict[str, Any]:
        """One request. :returns: the answer's value :raises: whatever goes wrong"""
        calls: dict[str, Callable[[Arguments], dict[str, Any]]] = {
            "inspect": self._inspect,
            "bench": self._bench,
            "sync": self._sync,
            "find": self._find,
            "train": self._train,
            "evaluate": self._evaluate,
            "keep": self._keep,
        }
        if request.do not in calls:
            raise GroupViolation(f"no request is called {request.do[:40]!r}; {', '.join(calls)}")
        if request.do in ("bench", "sync", "train"):
            self._use_threads()
        return calls[request.do](request.arguments)

    def _use_threads(self) -> None:
        """As many as the user wants for this node; measurements have what training has."""
        import torch

        if threads := self.spec.threads.get(self.node):
            torch.set_num_threads(threads)

    def keep(self) -> CheckpointReport | None:
        """A checkpoint of the last step boundary, for whoever resumes. :returns: None: this node keeps none, or has
        nothing new :raises CheckpointError: it can't be kept"""
        trainer, keeper = self._trainer, self._checkpoints()
        if trainer is None or keeper is None or not trainer.at.step:
            return None
        return keeper.save(trainer.state())

    def _keep(self, arguments: Arguments) -> dict[str, Any]:
        """Keep the state, if it is of this step."""
        trainer = self._trainer
        if trainer is not None and trainer.at.step == int(arguments["step"]):
            try:
                report = self.keep()
            except CheckpointError as problem:
                self._say(protocol.Saved(trainer.at.step, error=str(problem)[:2000]))
            else:
                if report is not None:
                    self._kept(report)
        return {}

    def close(self) -> None:
        """Let everything go."""
        self._drop()
        self._samples.close()
        if self._keeper is not None:
            self._keeper.close()

    def _inspect(self, arguments: Arguments) -> dict[str, Any]:
        return self._samples.open(arguments["pools"], arguments["tests"])

    def _bench(self, arguments: Arguments) -> dict[str, Any]:
        """Time a batch. :returns: ``plan.measured.Measured``"""
        from emucsd.stannis.training.probe import Probe

        if self._probe is None:
            self._probe = Probe(self.spec, memory_bytes=self.welcome.memory_bytes or None)
        self._probe.least = float(arguments["seconds"])
        return asdict(self._probe(int(arguments["batch"])))

    def _sync(self, arguments: Arguments) -> dict[str, Any]:
        """Time what ends each step: the addition of all gradients over all ranks. :returns: seconds; empty: no peers"""
        import torch

        from emucsd.stannis.training.factory import build_model
        from emucsd.stannis.training.gradients import BUCKET_BYTES

        nodes = list(arguments["nodes"])
        group = self._new_group(nodes.index(self.node), len(nodes), arguments)
        try:
            count = sum(p.numel() for p in build_model(self.spec).parameters() if p.requires_grad)
            buckets = torch.zeros(max(count, 1)).split(BUCKET_BYTES // 4)
            self._form(group)
            times = []
            for _ in range(1 + _SYNC_TIMES):
                begun = time.perf_counter()
                for pending in [group.begin(bucket) for bucket in buckets]:
                    pending.wait()
                times.append(time.perf_counter() - begun)
        except BaseException as problem:
            group.abandon("this rank has left")
            self._say(protocol.Broken(group.generation, str(problem)[:500]))  # nobody is to wait for it
            if isinstance(problem, PeerLost):
                return {"why": str(problem)}
            raise
        finally:
            self._retire()
        group.close()
        return {"seconds": statistics.median(times[1:]), "parameters": count}

    def _find(self, arguments: Arguments) -> dict[str, Any]:
        """The newest checkpoint that is whole. :returns: its position and plan; empty: there is none"""
        keeper = self._checkpoints()
        if keeper is None:
            return {}
        try:
            found = keeper.load()
        except CheckpointMissing:
            return {}
        return {
            "at": found.state["at"],
            "plan": json.loads(found.state["plan"]),
            "where": found.where,
            "passed_over": list(found.passed_over),
        }

    def _checkpoints(self) -> Store | None:
        if self._keeper is None and self.welcome.checkpoint:
            from emucsd.stannis.training import checkpoint

            self._keeper = checkpoint.keeper(self.welcome.checkpoint)
        return self._keeper

    # -- training

    def _train(self, arguments: Arguments) -> dict[str, Any]:
        """Form the group, train until something ends it. :returns: why, and where"""
        plan = fields.load(Plan, arguments["plan"], "plan")
        self._samples.classes = tuple(arguments["classes"])
        self._samples.readers = dict(arguments["readers"])
        if self._probe is not None:
            self._probe.close()
            self._probe = None
        group = self._new_group(plan.nodes.index(self.node), plan.world, arguments)
        try:
            trainer = self._prepared(group, plan, resume=bool(arguments["resume"]))
            self._form(group)
            self._running = True
            ended = trainer.run().value
        except PeerLost as problem:
            group.abandon(str(problem))
            self._say(protocol.Broken(group.generation, str(problem)[:500]))
            ended = "lost"
        except BaseException:
            self._drop()
            raise
        finally:
            self._running = False
        return self._where(ended)

    def _evaluate(self, arguments: Arguments) -> dict[str, Any]:
        """Over all ranks of the group that has just trained: its last evaluation was cut off."""
        trainer = self._trainer
        if trainer is None or trainer.tests is None:
            return {}
        try:
            found = trainer.evaluate(trainer.tests(trainer.group.rank, trainer.group.size))
        except PeerLost:
            return {}
        return asdict(found)

    def _where(self, ended: str) -> dict[str, Any]:
        trainer = self._trainer
        if trainer is None:  # lost before there was one
            return {"ended": ended, "at": None, "plan": None}
        return {"ended": ended, "at": asdict(trainer.at), "plan": fields.dump(trainer.plan)}

    def _new_group(self, rank: int, size: int, arguments: Arguments) -> GlooGroup:
        from emucsd.stannis.group.gloo import GlooGroup

        generation = int(arguments["generation"])
        group = GlooGroup(rank, size, generation, over_host=bool(arguments["over_host"]))
        self._retire()
        with self._lock:
            self._group = group
            if generation <= self._abandoned:
                group.abandon("this generation was given up before it began")
        return group

    def _form(self, group: GlooGroup) -> None:
        group.form(
            self.address,
            store=lambda: self._stores.get(group.generation),
            announce=lambda port: self._say(protocol.Store(group.generation, port)),
        )

    def _prepared(self, group: GlooGroup, plan: Plan, *, resume: bool) -> Trainer:
        """The trainer: with its state, or made anew."""
        if self._trainer is None:
            trainer = self._made(group, plan, resume=resume)
            with self._lock:
                self._trainer = trainer
        else:
            self._trainer.regroup(group, plan)
        if self.spec.retune:
            from emucsd.stannis.group.retuning import Follower

            self._trainer.retuner = Follower(plan)
        return self._trainer

    def _made(self, group: GlooGroup, plan: Plan, *, resume: bool) -> Trainer:
        from emucsd.stannis.training.factory import build_model
        from emucsd.stannis.training.trainer import Trainer

        keeper = self._checkpoints()
        trainer = Trainer(
            self.spec,
            build_model(self.spec),
            group,
            plan,
            self._samples.loader,
            hooks=self._hooks(),
            tests=(lambda rank, size: self._samples.test(trainer.plan)) if self._samples.tested else None,
            keeper=keeper,
        )
        if resume and keeper is not None:
            with contextlib.suppress(CheckpointMissing):  # another rank has one, and gives its state to all
                trainer.load_state(keeper.load().state)
        return trainer

    def _retire(self) -> GlooGroup | None:
        """The group has done its part. :returns: it"""
        with self._lock:
            group, self._group = self._group, None
        self._sent_before += group.sent if group is not None else 0
        return group

    def _drop(self) -> None:
        group = self._retire()
        with self._lock:
            self._trainer = None
        if group is not None:
            group.abandon("this rank has failed")

    # -- telling

    def _hooks(self) -> Hooks:
        from emucsd.stannis.training.trainer import Hooks

        return Hooks(step=self._step, epoch=self._epoch, checkpoint=self._kept, plan=self._planned)

    @property
    def _generation(self) -> int:
        group = self._group
        return group.generation if group is not None else 0

    def _step(self, report: StepReport) -> None:
        self._say(
            protocol.Step(
                generation=self._generation,
                step=report.step,
                epoch=report.epoch,
                samples=report.samples,
                total=report.global_samples,
                loss=_finite(report.loss),
                accuracy=report.accuracy,
                lr=report.lr,
                load=report.seconds_load,
                compute=report.seconds_compute,
                wait=max(report.seconds_wait, 0.0),
                transfer=max(report.seconds_transfer, 0.0),
                skipped=report.skipped,
                left_out=report.left_out,
                sent=self._newly_sent(),
            )
        )

    def _newly_sent(self) -> int:
        """Bytes since this was last asked, of all groups."""
        group = self._group
        total = self._sent_before + (group.sent if group is not None else 0)
        before, self._told_sent = self._told_sent, total
        return total - before

    def _epoch(self, report: EpochReport) -> None:
        group = self._group
        if group is None or group.rank != 0:
            return
        found = report.evaluation
        evaluation = {name: float(v) for name, v in asdict(found).items() if math.isfinite(v)} if found else {}
        self._say(
            protocol.Epoch(
                generation=group.generation,
                epoch=report.epoch,
                steps=report.steps,
                samples=report.samples,
                loss=_finite(report.loss),
                accuracy=report.accuracy,
                seconds=report.seconds,
                skipped=report.skipped,
                evaluation=evaluation,
            )
        )

    def _kept(self, report: CheckpointReport) -> None:
        self._say(protocol.Saved(report.step, report.where, report.bytes, report.seconds, report.error[:2000]))

    def _planned(self, report: PlanReport) -> None:
        """The plan that the coordinator gave needs no telling; one that the ranks made of it does."""
        group = self._group
        if self._running and group is not None and group.rank == 0:
            self._say(protocol.Planned(group.generation, report.step, fields.dump(report.plan), report.why[:2000]))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
