"""A run that goes on: its coordinator and workers, started on their nodes, watched, started again where they were lost.

The coordinator runs on the first node, this machine or the testbed's host machine; a worker runs on each. What
the coordinator prints are events; they go into the run folder and to whoever displays them. Nothing is ended here that
was not started here.
"""

from __future__ import annotations

import contextlib
import json
import queue
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from emucsd.stannis.errors import NodeFailed
from emucsd.stannis.group.cluster import Cluster
from emucsd.stannis.launch.errors import RunFailed
from emucsd.stannis.launch.nodes import Ended, Files, Node, Running
from emucsd.stannis.launch.standing import Standing
from emucsd.stannis.spec import Spec

Event = dict[str, Any]
COORDINATOR = "emucsd.stannis.group.coordinator"
WORKER = "emucsd.stannis.group.worker"
PAUSES = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)  # s, before a lost worker is started again
LONG = 60.0  # s, after which a worker is taken to have worked
LOST_GRACE = 2.0  # s that the worker of a lost node has to end by itself
STOP_SECONDS = 60.0  # for the last checkpoint, once the run was asked to stop
END_SECONDS = 10.0  # for workers, once the coordinator has ended
_TOKEN = "token"
_NOT_AGAIN = (1, 2, 4)  # exit statuses of a worker that would fail again: its own fault, wrong usage, not admitted


class Worker:
    """A node's worker over all its starts."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.running: Running | None = None
        self.starts = self.failures = 0
        self.begun = 0.0
        self.due = 0.0  # when it is to be started; 0: it runs, or is not to be started
        self.kill_at = 0.0  # when to end what did not end by itself

    def pause(self) -> float:
        """Seconds until it is started again: longer and longer while it ends early."""
        if self.begun and time.monotonic() - self.begun > LONG:
            self.failures = 0
        self.failures += 1
        return PAUSES[min(self.failures, len(PAUSES)) - 1]


class Run:
    """Coordinator and workers.

    :param nodes: a worker runs on each
    :param leader: the coordinator runs on it; None: on the first of the nodes
    :param options: more words for the coordinator
    :param files: that every node gets into its working folder: the user's own code
    :param tell: is given each event, after ``standing`` was
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        spec: Spec,
        cluster: Cluster,
        folder: Path,
        standing: Standing,
        *,
        leader: Node | None = None,
        options: Sequence[str] = (),
        files: Files | None = None,
        tell: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self.nodes, self.spec, self.cluster, self.folder, self.standing = nodes, spec, cluster, folder, standing
        self._leader = leader or nodes[0]
        self._options, self._tell = list(options), tell
        self._files: dict[str, bytes | Path] = {**(files or {}), _TOKEN: secrets.token_hex(16).encode()}
        self._news: queue.Queue[tuple[str, Any]] = queue.Queue()
        self._workers = {node.name: Worker(node) for node in nodes}
        self._coordinator: Running | None = None
        self._coordinator_ended: Ended | None = None
        self._where = ""
        self._stops = 0
        self._stop_at = float("inf")
        self._said: list[str] = []  # what the coordinator printed that is no event
        self.starts: dict[str, int] = {}

    def run(self) -> None:
        """From start to end. Ctrl-C asks it to stop (with a checkpoint), a second one ends it at once.

        :raises RunFailed: it ended without what was asked for; ``standing.final`` says more
        :raises NodeFailed: the first node can't run the coordinator
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "events.jsonl", "a") as events:
            try:
                self._start_coordinator()
                while self._coordinator_ended is None:
                    try:
                        self._turn(events)
                    except KeyboardInterrupt:
                        self.stop()
                self._drain(events)
            finally:
                self._end()
        self.starts = {name: worker.starts for name, worker in self._workers.items()}
        self._judge()

    def stop(self) -> None:
        """Ask the run to stop: it keeps a checkpoint; the second time it ends at once."""
        self._stops += 1
        self._stop_at = time.monotonic() + (STOP_SECONDS if self._stops == 1 else END_SECONDS)
        if self._coordinator is not None:
            self._coordinator.stop()

    # -- the loop ----------------------------------------------------------------------------------------------------

    def _turn(self, events: Any) -> None:
        """Whatever comes next, or is due."""
        try:
            kind, content = self._news.get(timeout=self._patience())
        except queue.Empty:
            kind, content = "", None
        if kind == "event":
            self._take(content, events)
        elif kind == "ended":
            self._ended(*content)
        elif kind == "coordinator":
            self._coordinator_ended = content
        self._due()

    def _patience(self) -> float:
        now = time.monotonic()
        moments = [self._stop_at]
        moments += [at for worker in self._workers.values() for at in (worker.due, worker.kill_at) if at]
        return max(min(min(moments) - now, 1.0), 0.0)

    def _take(self, event: Event, events: Any) -> None:
        events.write(json.dumps(event) + "\n")
        events.flush()
        self.standing.take(event)
        if event["event"] == "listening":
            self._where = str(event["address"])
            for worker in self._workers.values():
                worker.due = time.monotonic()
        elif event["event"] == "lost" and str(event.get("node")) in self._workers:
            self._workers[str(event["node"])].kill_at = time.monotonic() + LOST_GRACE
        self._tell(event)

    def _due(self) -> None:
        now = time.monotonic()
        for worker in self._workers.values():
            if worker.kill_at and now >= worker.kill_at:
                worker.kill_at = 0.0
                if worker.running is not None:
                    worker.running.kill()
            if worker.due and now >= worker.due:
                worker.due = 0.0
                threading.Thread(target=self._start, args=(worker,), name=worker.node.name, daemon=True).start()
        if now >= self._stop_at and self._coordinator is not None:
            self._stop_at = float("inf")
            self._coordinator.kill()

    def _ended(self, worker: Worker, how: Ended) -> None:
        """A worker is gone: start it again, unless it would fail again."""
        worker.running, worker.kill_at = None, 0.0
        self._log(worker.node.name, f"[{how.why}]")
        if self._stops or how.ok or how.status in _NOT_AGAIN or not self._where:
            return
        worker.due = time.monotonic() + worker.pause()

    def _drain(self, events: Any) -> None:
        """Events that came before the coordinator's end was noticed."""
        with contextlib.suppress(queue.Empty):
            while True:
                kind, content = self._news.get_nowait()
                if kind == "event":
                    self._take(content, events)

    # -- starting and ending -------------------------------------------------------------------------------------------

    def _start_coordinator(self) -> None:
        node = self._leader
        words = [node.python, "-m", COORDINATOR, "--listen", f"{node.address}:0", "--token-file", _TOKEN]
        words += ["--spec", "spec.json", "--cluster", "cluster.json", *self._options]
        inputs = {"spec.json": self.spec.to_json().encode(), "cluster.json": self.cluster.to_json().encode()}
        self._coordinator = node.start(words, {}, {**self._files, **inputs})
        threading.Thread(target=self._follow, args=(self._coordinator,), name="coordinator", daemon=True).start()

    def _follow(self, running: Running) -> None:
        """In a thread: the coordinator's output."""
        for line in running.lines():
            event = _event(line)
            if event is None:
                self._said.append(line)
                self._log("coordinator", line)
            else:
                self._news.put(("event", event))
        self._news.put(("coordinator", running.wait()))

    def _start(self, worker: Worker) -> None:
        """In a thread: a worker from its start to its end."""
        node = worker.node
        worker.starts += 1
        worker.begun = time.monotonic()
        words = [node.python, "-m", WORKER, "--coordinator", self._where, "--node", node.name, "--token-file", _TOKEN]
        words += ["--address", node.address]
        try:
            running = node.start(words, {}, self._files)
        except NodeFailed as problem:
            self._news.put(("ended", (worker, Ended(None, str(problem)))))
            return
        worker.running = running
        if self._coordinator_ended is not None:  # it came too late
            running.kill()
        for line in running.lines():
            self._log(node.name, line)
        self._news.put(("ended", (worker, running.wait())))

    def _end(self) -> None:
        """Whoever still runs: first asked, then ended."""
        if self._coordinator is not None and self._coordinator_ended is None:
            self._coordinator.kill()
        self._stops = max(self._stops, 1)  # nobody is started again
        self._await_workers(END_SECONDS)
        for running in self._left():
            running.stop()
        self._await_workers(END_SECONDS)
        for running in self._left():
            running.kill()
        self._await_workers(END_SECONDS)

    def _left(self) -> list[Running]:
        return [worker.running for worker in self._workers.values() if worker.running is not None]

    def _await_workers(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._left():
            try:
                kind, content = self._news.get(timeout=max(deadline - time.monotonic(), 0.0))
            except queue.Empty:
                return
            if kind == "ended":
                self._ended(*content)

    # -- what it said ------------------------------------------------------------------------------------------------

    def _log(self, name: str, line: str) -> None:
        with open(self.folder / f"{name}.log", "a") as file:
            file.write(line + "\n")

    def _judge(self) -> None:
        """:raises RunFailed: there is no result"""
        final, ended = self.standing.final, self._coordinator_ended
        if final.get("how") in ("done", "stopped") and ended is not None and ended.ok:
            return
        if final.get("how") == "failed":
            where = f" ({final['where']})" if final.get("where") else ""
            node = f"{final['node']}: " if final.get("node") else ""
            raise RunFailed(f"{node}{final.get('text') or final.get('error')}{where}", str(final.get("hint", "")))
        if self._stops:
            self.standing.final = {"how": "ended", "text": "ended before it could keep a checkpoint"}
            return
        why = ended.why if ended is not None else "it was lost"
        tail = "\n".join(self._said[-20:])
        self.standing.final = {"how": "failed", "text": f"the coordinator ended: {why}"}
        raise RunFailed(f"the coordinator ended: {why}" + (f"\n{tail}" if tail else ""), f"logs: {self.folder}")


def _event(line: str) -> Event | None:
    """A line of the coordinator's that is an event."""
    if not line.startswith("{"):
        return None
    with contextlib.suppress(ValueError):
        found = json.loads(line)
        if isinstance(found, dict) and "event" in found:
            return found
    return None
