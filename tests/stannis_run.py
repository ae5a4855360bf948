"""Training runs for tests: a coordinator and its workers as processes on loopback, always ended."""

from __future__ import annotations

import io
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from emucsd.stannis.group import options
from emucsd.stannis.group.cluster import Cluster, Member, Place
from emucsd.stannis.group.controller import Controller
from emucsd.stannis.group.events import Events
from emucsd.stannis.group.server import Server
from emucsd.stannis.group.worker import Worker
from emucsd.stannis.spec import Spec

TOKEN = "a token of some length"
PATIENCE = 60.0  # seconds for what takes a fraction of one on an idle machine

NET = """
import torch

def make(classes=4, slow=0.0):
    torch.manual_seed(1)
    return Net(classes, slow)

class Net(torch.nn.Module):
    def __init__(self, classes, slow):
        super().__init__()
        self.slow = slow
        self.net = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(4),
            torch.nn.Flatten(), torch.nn.Linear(64, classes),
        )

    def forward(self, x):
        if self.slow:
            import time
            time.sleep(self.slow)
        return self.net(x)
"""

Event = dict[str, Any]


def environment(**more: str) -> dict[str, str]:
    """Of a child: it imports what this process imports, on one thread."""
    path = os.pathsep.join(path for path in sys.path if path)
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "EMUCSD_STANNIS_TOKEN": TOKEN, **more}


def pictures(folder: Path, counts: Mapping[str, int], side: int = 8) -> dict[str, Place]:
    """Pools of random images of 4 classes, as .npz files that every node can read; not yet given to nodes."""
    import numpy as np

    places = {}
    for number, (name, count) in enumerate(counts.items()):
        random = np.random.default_rng(number)
        labels = np.arange(count) % 4
        images = random.integers(0, 200, (count, side, side, 3)) + labels[:, None, None, None] * 18
        np.savez(folder / f"{name}.npz", images=images.astype(np.uint8), labels=labels)
        places[name] = Place(name, {"?": str(folder / f"{name}.npz")})
    return places


def place(at: Place, *nodes: str, private: bool = False) -> Place:
    """A pool as these nodes reach it."""
    return Place(at.name, dict.fromkeys(nodes, at.at["?"]), private)


class Process:
    """A child whose lines are kept."""

    def __init__(self, argv: list[str], folder: Path, name: str, **more: str) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        with open(self.log, "ab") as log:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", *argv],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=folder,
                env=environment(**more),
                text=True,
            )

    def send(self, number: signal.Signals) -> None:
        """A signal."""
        self.popen.send_signal(number)

    def end(self) -> None:
        """Whatever it does."""
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()
        for stream in (self.popen.stdin, self.popen.stdout):
            if stream is not None:
                stream.close()


class TrainingRun:
    """A coordinator, and workers that can be killed, stopped and started again.

    :param about: nodes, test; start: who is started at once; apart: each worker with an address of its own
    """

    def __init__(self, folder: Path, spec: Spec, pools: tuple[Place, ...], *words: str, **about: Any) -> None:
        self.folder = folder
        nodes = about.pop("nodes", None) or sorted({node for pool in pools for node in pool.at})
        members = tuple(node if isinstance(node, Member) else Member(node) for node in nodes)
        self.apart = bool(about.pop("apart", False))
        self.names = [member.name for member in members]
        folder.mkdir(exist_ok=True)
        (folder / "net.py").write_text(NET)
        (folder / "spec.json").write_text(spec.to_json())
        (folder / "cluster.json").write_text(Cluster(members, pools, about.pop("test", ())).to_json())
        self.events: list[Event] = []
        self._new: queue.Queue[Event] = queue.Queue()
        self.workers: dict[str, Process] = {}
        argv = ["emucsd.stannis.group.coordinator", "--listen", "127.0.0.1:0", "--spec", "spec.json"]
        argv += ["--cluster", "cluster.json", "--tuning", str(folder / "tuning.json"), "--bench-seconds", "0", *words]
        self.coordinator = Process(argv, folder, "coordinator")
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.address = str(self.wait("listening")["address"])
            for name in about.pop("start", self.names):
                self.start(name)
        except BaseException:
            self.__exit__()
            raise

    def work(self, name: str) -> Callable[[], int]:
        """A worker as a thread of this process. :returns: waits for its end, and gives its exit status"""
        (self.folder / "token").write_text(TOKEN)
        argv = ["--coordinator", self.address, "--node", name, "--token-file", str(self.folder / "token")]
        worker, status = Worker(options.worker_parser().parse_args(argv)), list[int]()
        thread = threading.Thread(target=lambda: status.append(worker.run()), daemon=True)
        thread.start()

        def end() -> int:
            thread.join(PATIENCE)
            assert status, self.told()
            return status[0]

        return end

    def start(self, name: str, **more: str) -> Process:
        """A worker; a second one of a name replaces the first in ``workers``. Where workers have addresses of their
        own, they add up over rank 0, as over the drives' tunnels."""
        if name in self.workers:
            self.workers[name].end()
        argv = ["emucsd.stannis.group.worker", "--coordinator", self.address, "--node", name]
        argv += ["--address", f"127.0.1.{1 + self.names.index(name)}"] if self.apart else []
        self.workers[name] = Process(argv, self.folder, f"worker-{name}", **more)
        return self.workers[name]

    def _read(self) -> None:
        assert self.coordinator.popen.stdout is not None
        for line in self.coordinator.popen.stdout:
            self._new.put(json.loads(line))
        self._new.put({"event": "ended"})

    def wait(self, event: str, when: Callable[[Event], bool] = lambda _: True, seconds: float = PATIENCE) -> Event:
        """The next event of that kind; all that come are kept in ``events``."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                found = self._new.get(timeout=max(deadline - time.monotonic(), 0.0))
            except queue.Empty:
                raise AssertionError(f"no event {event!r} in {seconds} s\n{self.told()}") from None
            self.events.append(found)
            if found["event"] == event and when(found):
                return found
            if found["event"] in ("ended", "failed"):
                raise AssertionError(f"no event {event!r} before the end\n{self.told()}")

    def all(self, event: str) -> list[Event]:
        """Those of a kind that came."""
        return [one for one in self.events if one["event"] == event]

    def told(self) -> str:
        """For a failed test."""
        logs = [f"{path.name}:\n{path.read_text()[-2000:]}" for path in sorted(self.folder.glob("*.log"))]
        return "\n".join([*(json.dumps(event)[: int(os.environ.get("W", 400))] for event in self.events[-30:]), *logs])

    def finish(self) -> int:
        """Until the coordinator has ended. :returns: its exit status"""
        while self.coordinator.popen.poll() is None or self._reader.is_alive() or not self._new.empty():
            try:
                self.events.append(self._new.get(timeout=0.05))
            except queue.Empty:
                continue
        return int(self.coordinator.popen.wait(PATIENCE))

    def __enter__(self) -> TrainingRun:
        return self

    def __exit__(self, *_: object) -> None:
        for process in (self.coordinator, *self.workers.values()):
            process.end()
        self._reader.join(PATIENCE)


# -- the same in one process: quicker, where nothing is to be killed


class Led(NamedTuple):
    """How a run in this process ended."""

    status: int
    events: list[dict[str, Any]]
    workers: dict[str, int]

    def one(self, event: str) -> dict[str, Any]:
        """The only event of its kind."""
        (found,) = [one for one in self.events if one["event"] == event]
        return found


def led(
    tmp_path: Path,
    spec: Spec,
    cluster: Cluster,
    *words: str,
    meanwhile: Callable[[tuple[str, int]], None] | None = None,
    watch: Callable[[Controller], None] | None = None,
) -> Led:
    """A run whose coordinator and workers are threads of this process, to its end.

    :param meanwhile: is called, on a thread, with the coordinator's address once a worker has trained a step
    :param watch: is called, on the same, with the controller
    """
    (tmp_path / "token").write_text(TOKEN)
    argv = ["--spec", "spec.json", "--cluster", "cluster.json", "--tuning", str(tmp_path / "tuning.json")]
    argv += ["--bench-seconds", "0", *words]
    said, statuses = io.StringIO(), dict[str, int]()
    events = Events(said)
    server = Server("127.0.0.1", 0, TOKEN, 10.0)
    controller = Controller(spec, cluster, options.coordinator_parser().parse_args(argv), server, events)
    server.start()

    def work(name: str) -> None:
        words = ["--coordinator", f"127.0.0.1:{server.address[1]}", "--node", name]
        parsed = options.worker_parser().parse_args([*words, "--token-file", str(tmp_path / "token")])
        statuses[name] = Worker(parsed).run()

    def disturb() -> None:
        while not controller.rounds.steps.last:
            time.sleep(0.005)
        if meanwhile is not None:
            meanwhile(server.address)
        if watch is not None:
            watch(controller)

    threads = [threading.Thread(target=work, args=(name,)) for name in cluster.names]
    if meanwhile or watch:
        threads.append(threading.Thread(target=disturb))
    for thread in threads:
        thread.start()
    try:
        status = controller.run()
    finally:
        server.close()
        events.close()
        for thread in threads:
            thread.join(60.0)
    return Led(status, [json.loads(line) for line in said.getvalue().splitlines()], statuses)
