"""Tuning by request: the tuner here, each benchmark on the engine that it is about."""

from __future__ import annotations

import argparse
import hashlib
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from emucsd.stannis import fields
from emucsd.stannis.errors import MemoryExceeded, PeerLost, SpecError, StannisError
from emucsd.stannis.group.membership import Membership, Outcome, Present
from emucsd.stannis.group.options import batches_of
from emucsd.stannis.plan.cache import TuningCache, tuning_key
from emucsd.stannis.plan.measured import Bench, Measured
from emucsd.stannis.plan.plan import Engine
from emucsd.stannis.plan.tuner import tune_all, tune_fixed
from emucsd.stannis.plan.tuning import Tuning
from emucsd.stannis.spec import Spec


@dataclass(frozen=True)
class Kind:
    """Engines that are alike.

    :ivar nodes: the first of them is benchmarked
    :ivar batch: as the user wants it; None: to be found
    """

    name: str
    nodes: tuple[str, ...]
    fingerprint: str
    batch: int | None


class Tuner:
    """Finds each node's batch.

    Each step of training ends with an addition over all ranks, whatever its batch: a batch is chosen by the rate that
    it has with that. What is kept and planned with are the times without.

    :param sync_seconds: of that addition
    :param check: called while waiting; raises what ends the run
    """

    def __init__(
        self,
        spec: Spec,
        members: Membership,
        options: argparse.Namespace,
        sync_seconds: float,
        check: Callable[[], None],
    ) -> None:
        self.spec, self.members, self.options, self._check = spec, members, options, check
        self.sync_seconds = sync_seconds

    def engines(self, nodes: list[Present]) -> tuple[list[Engine], dict[str, str]]:
        """The engines of these nodes, measured or remembered.

        :returns: they; node -> why it can't take part
        :raises DoesNotFit: the model is too large for one, and the spec wants all
        :raises SpecError: nothing is to be tuned, and a batch is not given
        """
        kinds = self._kinds(nodes)
        found: dict[str, Engine] = {}
        missing: dict[str, str] = {}
        for group in ([k for k in kinds if k.batch is not None], [k for k in kinds if k.batch is None]):
            if not group:
                continue
            tuning, cached = self._tuning(group)
            self.members.events.tell("tuned", tuning=fields.dump(tuning), cached=cached, nodes=_nodes(group))
            for kind in group:
                if kind.name in tuning.tuned:
                    found |= {node: tuning.tuned[kind.name].engine(node) for node in kind.nodes}
                else:
                    missing |= dict.fromkeys(kind.nodes, tuning.missing.get(kind.name, "not measured"))
        return [found[node.name] for node in nodes if node.name in found], missing

    def _kinds(self, nodes: list[Present]) -> list[Kind]:
        """Nodes by what decides their speed."""
        alike: dict[tuple[str, int | None], list[str]] = {}
        for node in nodes:
            batch = self.spec.batches.get(node.name)
            if batch is None and not self.spec.tune:
                raise SpecError(f"tune is off, and batches has none for {node.name!r}; give it one")
            alike.setdefault((self._fingerprint(node), batch), []).append(node.name)
        kinds: list[Kind] = []
        for (fingerprint, batch), names in alike.items():
            engine = self.members.cluster.member(names[0]).engine or names[0]
            taken = {kind.name for kind in kinds}
            kinds.append(Kind(engine if engine not in taken else names[0], tuple(names), fingerprint, batch))
        return kinds

    def _fingerprint(self, node: Present) -> str:
        """Engines of one fingerprint take equal time, as far as can be known without trying."""
        member, hello = self.members.cluster.member(node.name), node.hello
        known = [member.engine, hello.machine, hello.cores, member.memory_bytes or round(hello.memory_bytes, -9)]
        versions = [hello.versions.get(name, "") for name in ("torch", "python", "program")]
        # without a kind nothing says that two nodes are held to the same share of their processor
        own = [] if member.engine else [node.name]
        return " | ".join(map(str, [*known, self.spec.threads.get(node.name), *versions, *own]))

    def _tuning(self, kinds: list[Kind]) -> tuple[Tuning, bool]:
        """:returns: it, and whether it was known before"""
        settings = {
            "batches": batches_of(self.options.batches),
            "margin": self.options.margin,
            "c": self.options.grain,
            "ranks": len(self.members.present),  # what an addition takes depends on them
            "fixed": {kind.name: kind.batch for kind in kinds if kind.batch is not None},
        }
        prints = {kind.name: kind.fingerprint for kind in kinds}
        key = tuning_key(self.spec.model_hash + _source(self.spec.factory), prints, **settings)
        cache = TuningCache(self.options.tuning)
        return cache.tuned(key, lambda: self._led(lambda: self._measure(kinds)), fresh=self.options.no_cache)

    def _measure(self, kinds: list[Kind]) -> Tuning:
        """On a thread of its own: the tuner waits for its benchmarks."""
        benches = {kind.name: self._bench(kind) for kind in kinds}
        if kinds[0].batch is not None:
            asked = {kind.name: kind.batch or 1 for kind in kinds}
            return tune_fixed(benches, asked, allow_missing=self.spec.allow_missing)
        named: dict[str, Any] = {"batches": batches_of(self.options.batches), "margin": self.options.margin}
        tuning = tune_all(
            benches,
            c=self.options.grain,
            allow_missing=self.spec.allow_missing,
            **{name: value for name, value in named.items() if value is not None},
        )
        return _without(tuning, self.sync_seconds)

    # -- the tuner's thread asks, this one does

    def _led(self, measure: Callable[[], Tuning]) -> Tuning:
        """Let the tuner run beside, and do what it asks; one benchmark at a time."""
        result: Future[Tuning] = Future()

        def run() -> None:
            try:
                result.set_result(measure())
            except BaseException as problem:
                result.set_exception(problem)

        self._asked: list[tuple[Kind, int, Future[Measured]]] = []
        self._lock = threading.Lock()
        self._given_up = False
        threading.Thread(target=run, name="tuner", daemon=True).start()
        try:
            while not result.done():
                with self._lock:
                    asked, self._asked = self._asked, []
                for kind, batch, answer in asked:
                    self._ask(kind, batch, answer)
                self._check()
                self.members.turn(0.02)
        except BaseException as problem:
            self._given_up = True
            for _, _, answer in self._asked:
                answer.set_exception(problem)
            raise
        return result.result()

    def _bench(self, kind: Kind) -> Bench:
        def bench(batch: int) -> Measured:
            answer: Future[Measured] = Future()
            with self._lock:
                self._asked.append((kind, batch, answer))
            while True:
                try:
                    return answer.result(timeout=1.0)
                except TimeoutError:
                    if self._given_up:
                        raise PeerLost("tuning was given up") from None

        return bench

    def _ask(self, kind: Kind, batch: int, answer: Future[Measured]) -> None:
        node = next((self.members.present[name] for name in kind.nodes if name in self.members.present), None)
        if node is None:
            answer.set_exception(PeerLost(f"{', '.join(kind.nodes)}: lost while tuning", kind.nodes[0]))
            return

        added = self.sync_seconds if kind.batch is None else 0.0

        def answered(one: Present, outcome: Outcome) -> None:
            if isinstance(outcome, PeerLost) and any(name in self.members.present for name in kind.nodes):
                self._ask(kind, batch, answer)  # another of its kind
                return
            self._tell(kind, one, batch, outcome)
            try:
                found = _measured(one, outcome)
                answer.set_result(replace(found, seconds=found.seconds + added))
            except StannisError as problem:
                answer.set_exception(problem)

        self.members.ask(node, "bench", {"batch": batch, "seconds": self.options.bench_seconds}, answered)

    def _tell(self, kind: Kind, node: Present, batch: int, outcome: Outcome) -> None:
        about: dict[str, Any] = {"seconds": None, "memory_bytes": 0}
        if isinstance(outcome, MemoryExceeded):
            about |= {"memory_bytes": outcome.needed, "missing_bytes": outcome.missing, "text": str(outcome)}
        elif isinstance(outcome, StannisError):
            about |= {"text": str(outcome)}
        else:
            about |= {"seconds": outcome.get("seconds"), "memory_bytes": outcome.get("memory_bytes")}
        self.members.events.tell("bench", engine=kind.name, node=node.name, batch=batch, **about)


def _measured(node: Present, outcome: Outcome) -> Measured:
    """:raises StannisError: the benchmark failed, or the worker said nonsense"""
    if isinstance(outcome, StannisError):
        raise outcome
    try:
        return fields.load(Measured, outcome, f"{node.name}'s benchmark")
    except fields.FieldError as problem:
        raise StannisError(str(problem)) from None


def _without(tuning: Tuning, seconds: float) -> Tuning:
    """The same, each time less by so much."""
    if not seconds:
        return tuning
    tuned = {
        kind: replace(
            found,
            seconds=found.seconds - seconds,
            curve=tuple((batch, taken - seconds) for batch, taken in found.curve),
        )
        for kind, found in tuning.tuned.items()
    }
    trials = tuple(replace(one, seconds=one.seconds - seconds if one.seconds else one.seconds) for one in tuning.trials)
    return replace(tuning, tuned=tuned, trials=trials)


def _nodes(kinds: list[Kind]) -> Mapping[str, list[str]]:
    return {kind.name: list(kind.nodes) for kind in kinds}


def _source(factory: str) -> str:
    """A digest of the user's file, where it lies here: another network under the same name is tuned anew."""
    path = Path(factory.rpartition(":")[0])
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest() if path.suffix == ".py" else ""
    except OSError:
        return ""
