"""Coordinator and workers as real processes on loopback: a whole run, what it says, and what goes wrong before it."""

from __future__ import annotations

import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from emucsd.stannis.data import source  # noqa: E402
from emucsd.stannis.data.loader import Loader  # noqa: E402
from emucsd.stannis.errors import PeerLost  # noqa: E402
from emucsd.stannis.group import (  # noqa: E402
    options,
    protocol,
    versions,
)
from emucsd.stannis.group.cluster import Cluster, Member, Place  # noqa: E402
from emucsd.stannis.group.controller import Controller  # noqa: E402
from emucsd.stannis.group.events import Events  # noqa: E402
from emucsd.stannis.group.gloo import GlooGroup  # noqa: E402
from emucsd.stannis.group.server import Server  # noqa: E402
from emucsd.stannis.plan.order import union  # noqa: E402
from emucsd.stannis.plan.plan import Plan  # noqa: E402
from emucsd.stannis.spec import Spec  # noqa: E402
from emucsd.stannis.training.collective import Alone  # noqa: E402
from emucsd.stannis.training.factory import build_model, seed_all  # noqa: E402
from emucsd.stannis.training.step import Stepper  # noqa: E402
from tests.stannis_run import NET, TOKEN, TrainingRun, led, pictures, place  # noqa: E402


def small(**more: Any) -> Spec:
    """A run of a few dozen steps."""
    about: dict[str, Any] = {
        "image": (3, 8, 8),
        "tune": False,
        "base_batch": 9,
        "lr": 0.05,
        "transform": "flip",
        "batches": {"a": 4, "b": 3, "c": 2},
        "arguments": {"classes": 4},
    }
    return Spec(**{"factory": "net.py:make", **about, **more})


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Place]:
    """Generated images: public ones, one node's own, and some to test on."""
    return pictures(tmp_path_factory.mktemp("pools"), {"public": 60, "mine": 12, "test": 20})


def one_process(spec: Spec, plan: Plan, pools: dict[str, Place], epochs: int) -> Iterator[float]:
    """The losses of one process that trains on the union of all ranks' samples, step by step."""
    torch.set_num_threads(1)
    sources = {name: source.open(pools[name].at["?"]) for name in ("public", "mine")}
    stepper = Stepper(spec, build_model(spec), Alone())
    for epoch in range(epochs):
        with Loader(sources, union(plan, epoch), spec.transform, spec.seed, image=spec.image, epoch=epoch) as batches:
            for batch in batches:
                taken = stepper.take(batch, lr=spec.lr * plan.global_batch / spec.base_batch)
                yield taken.totals.loss_sum / taken.totals.samples
    seed_all(0)


def test_a_run(tmp_path: Path, pools: dict[str, Place], monkeypatch: pytest.MonkeyPatch) -> None:
    """Three unequal ranks, one with private samples, train as one process would on all samples; each sample once."""
    spec = small(epochs=2)
    where = place(pools["public"], "a", "b", "c"), place(pools["mine"], "b", private=True)
    with TrainingRun(tmp_path / "run", spec, where, test=(place(pools["test"], "a", "c"),)) as run:
        assert run.finish() == 0, run.told()
        plan = Plan.from_json(json.dumps(run.all("plan")[0]["plan"]))
        steps, epochs, done = run.all("step"), run.all("epoch"), run.all("done")[0]
    assert plan.batches == (4, 3, 2)
    assert sum(step["total"] for step in steps) == 2 * 72
    assert [epoch["samples"] for epoch in epochs] == [72, 72]
    assert all(epoch["evaluation"]["samples"] == 20 for epoch in epochs)
    assert done["step"] == len(steps) == 2 * plan.steps
    assert steps[-1]["loss"] < steps[0]["loss"]
    monkeypatch.chdir(tmp_path / "run")
    alone = list(one_process(spec, plan, pools, 2))
    assert [step["loss"] for step in steps] == pytest.approx(alone, rel=2e-5)
    assert "private" not in json.dumps(steps)


def test_strangers(tmp_path: Path, pools: dict[str, Place], net: str) -> None:
    """Garbage, wrong tokens, endless lines, doubles and half-open connections are refused; the run goes on."""
    spec = small(factory=net, arguments={"slow": 0.02})
    hello = {"is": "hello", "token": TOKEN, "node": "a", "protocol": protocol.VERSION, "versions": {"torch": "0"}}
    doubles: list[bool] = []

    def disturb(address: tuple[str, int]) -> None:
        half_open = [socket.create_connection(address) for _ in range(5)]
        for line, error in (
            (b"\x00\xff garbage \n", "GroupViolation"),
            (b"[" * 10_000 + b"\n", "GroupViolation"),
            (b"x" * (protocol.HELLO_LIMIT + 2), "GroupViolation"),
            (json.dumps({"is": "beat"}).encode() + b"\n", "GroupViolation"),
            (json.dumps({**hello, "token": "wrong"}).encode() + b"\n", "NotAdmitted"),
            (json.dumps({**hello, "protocol": 0}).encode() + b"\n", "NotAdmitted"),
            (json.dumps({**hello, "node": "z"}).encode() + b"\n", "NotAdmitted"),
        ):
            answer = said_to(address, line)
            assert (answer["is"], answer["error"], answer["again"]) == ("refused", error, False), line[:40]
        doubles.append(bool(said_to(address, json.dumps(hello).encode() + b"\n")["again"]))
        for sock in half_open:
            sock.close()

    cluster = Cluster((Member("a"), Member("b")), (place(pools["public"], "a", "b"),))
    found = led(tmp_path, spec, cluster, meanwhile=disturb)
    assert found.status == 0, found.events
    assert found.one("done")["step"] > 0
    assert doubles == [True]  # a is here: the second is to try again once it is lost
    assert len([event for event in found.events if event["event"] == "refused"]) == 8


def said_to(address: tuple[str, int], line: bytes) -> dict[str, Any]:
    """What the coordinator answers to a line."""
    with socket.create_connection(address) as sock:
        sock.settimeout(30.0)
        sock.sendall(line)
        answer = b""
        while not answer.endswith(b"\n"):
            piece = sock.recv(65536)
            if not piece:
                break
            answer += piece
        found: dict[str, Any] = json.loads(answer)
        return found


@pytest.mark.parametrize("over_host", [False, True])
def test_group_of_ranks(over_host: bool) -> None:
    """Sums and broadcasts over three ranks, then one is waited for in vain: abandoned, the others are told at once."""
    port: list[int] = []
    groups = [GlooGroup(rank, 3, 1, over_host=over_host) for rank in range(3)]
    met = threading.Barrier(3)

    def rank(group: GlooGroup) -> tuple[list[float], float, float]:
        group.form("127.0.0.1", store=lambda: ("127.0.0.1", port[0]) if port else None, announce=port.append)
        sums = [torch.full((1000,), float(group.rank + 1)), torch.full((300_000,), 1.0)]
        for pending in [group.begin(tensor) for tensor in sums]:
            pending.wait()
        given = torch.full((4,), float(group.rank))
        group.broadcast(given, 1)
        met.wait(60.0)
        if group.rank == 2:
            return [float(tensor[-1]) for tensor in sums], float(given[0]), 0.0
        waiting = group.begin(torch.zeros(100_000))
        threading.Timer(0.1, group.abandon, ("node z is gone",)).start()
        begun = time.monotonic()
        with pytest.raises(PeerLost):  # whose text is of whoever left first: all three share this process' sockets
            waiting.wait()
        return [float(tensor[-1]) for tensor in sums], float(given[0]), time.monotonic() - begun

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(rank, groups))
    for sums, given, seconds in found:
        assert (sums, given) == ([6.0, 3.0], 1.0)
        assert seconds < 5.0
    for group in groups:
        group.abandon()
        with pytest.raises(PeerLost):
            group.all_reduce(torch.zeros(1))
        group.close()


# -- what goes wrong before anything is trained: coordinator and workers are threads here


def pair(pools: dict[str, Place], **more: Any) -> Cluster:
    """Two nodes that read one pool."""
    return Cluster((Member("a"), Member("b", **more)), (place(pools["public"], "a", "b"),))


@pytest.fixture
def net(tmp_path: Path) -> str:
    """The network, by a path that holds wherever this process is."""
    (tmp_path / "net.py").write_text(NET)
    return f"{tmp_path / 'net.py'}:make"


def test_factory_raises(tmp_path: Path, pools: dict[str, Place]) -> None:
    """A factory that raises ends the run: with its last line, and where it is in the user's file; no traceback."""
    (tmp_path / "bad.py").write_text("def make(**_):\n    raise KeyError('depth')\n")
    found = led(tmp_path, small(factory=f"{tmp_path / 'bad.py'}:make"), pair(pools))
    failed = found.one("failed")
    assert found.status == 1
    assert failed["error"] == "FactoryFailed"
    assert failed["node"] in ("a", "b")
    assert failed["where"].endswith("bad.py:2")
    assert "depth" in failed["text"]
    assert "Traceback" not in json.dumps(found.events)
    assert set(found.workers.values()) == {1}


def test_one_rank_fails_early(tmp_path: Path, pools: dict[str, Place], net: str) -> None:
    """A factory that raises on one rank alone does not leave the others waiting for it."""
    text = NET.replace("torch.manual_seed(1)", "first = not hasattr(torch, 'seen'); torch.seen = 1")
    text = text.replace("return Net(classes, slow)", "return Net(classes, slow) if not first else 1 / 0")
    (tmp_path / "odd.py").write_text(text)
    try:
        found = led(tmp_path, small(factory=f"{tmp_path / 'odd.py'}:make", batches={}, tune=True), pair(pools))
    finally:
        del torch.seen
    assert found.one("failed")["error"] == "FactoryFailed"
    assert "ZeroDivisionError" in found.one("failed")["text"]


def test_pool_missing(tmp_path: Path, pools: dict[str, Place], net: str) -> None:
    """A pool that isn't where a node was told it is ends the run, or with allow_missing costs that node."""
    gone = Place("own", {"b": str(tmp_path / "gone.npz")}, private=True)
    cluster = Cluster((Member("a"), Member("b")), (place(pools["public"], "a", "b"), gone))
    found = led(tmp_path, small(factory=net), cluster)
    assert (found.one("failed")["error"], found.one("failed")["node"]) == ("ShardMissing", "b")
    found = led(tmp_path, small(factory=net, allow_missing=True), cluster)
    assert found.status == 0
    assert found.one("missing")["node"] == "b"
    assert found.one("plan")["plan"]["shares"][0]["node"] == "a"
    assert found.workers == {"a": 0, "b": 4}


def test_no_copy(tmp_path: Path, pools: dict[str, Place], net: str) -> None:
    """Two places of one public pool that hold different samples are found out before anything is trained."""
    both = Place("public", {"a": pools["public"].at["?"], "b": pools["mine"].at["?"]})
    found = led(tmp_path, small(factory=net), Cluster((Member("a"), Member("b")), (both,)))
    assert found.one("failed")["error"] == "DataFormat"
    assert "is no copy" in found.one("failed")["text"]


def test_does_not_fit(tmp_path: Path, pools: dict[str, Place], net: str) -> None:
    """A model that passes one engine's memory: said which, and how much is missing; the rest trains if allowed."""
    cluster = pair(pools, memory_bytes=50 << 20)
    found = led(tmp_path, small(factory=net, batches={}, tune=True), cluster, "--batches", "2,4")
    failed = found.one("failed")
    assert (failed["error"], failed["node"]) == ("DoesNotFit", "b")
    assert failed["facts"]["missing"] > 1 << 20
    assert "limit is 52428800" in failed["text"]
    found = led(tmp_path, small(factory=net, batches={}, tune=True, allow_missing=True), cluster, "--batches", "2,4")
    assert found.status == 0
    assert [share["node"] for share in found.one("plan")["plan"]["shares"]] == ["a"]
    assert found.one("done")["evaluation"] is None


def test_a_loss_that_is_none(tmp_path: Path, pools: dict[str, Place]) -> None:
    """A model whose loss becomes NaN ends the run at that step, and is told which parameter had it first."""
    text = NET.replace(
        "return self.net(x)", "self.net[4].weight.data[0] = float('nan') if self.training else 0; return self.net(x)"
    )
    (tmp_path / "nan.py").write_text(text)
    found = led(tmp_path, small(factory=f"{tmp_path / 'nan.py'}:make"), pair(pools))
    assert (found.status, found.one("failed")["error"]) == (1, "NonFinite")
    assert "learning rate" in found.one("failed")["text"] or "lr" in found.one("failed")["text"]


HUNGRY = """
    def forward(self, x):
        Net.calls = getattr(Net, "calls", 0) + 1
        if Net.calls > 30 and len(x) > 3 and self.training:
            raise MemoryError
        return self.net(x)
"""


def test_memory_gone_while_training(tmp_path: Path, pools: dict[str, Place]) -> None:
    """A rank whose memory is used up in the middle of training goes on with a smaller batch; no sample is lost."""
    (tmp_path / "hungry.py").write_text(NET[: NET.index("    def forward")] + HUNGRY.lstrip("\n"))
    spec = small(factory=f"{tmp_path / 'hungry.py'}:make", batches={"a": 6, "b": 2}, epochs=3)
    found = led(tmp_path, spec, pair(pools))
    assert found.status == 0, found.events
    plans = [event["plan"] for event in found.events if event["event"] == "plan"]
    assert [plan["shares"][0]["batch"] for plan in plans] == [6, 4, 3]
    assert [event["samples"] for event in found.events if event["event"] == "epoch"] == [60] * 3
    assert not [event for event in found.events if event["event"] == "lost"]


def test_a_node_that_fails(tmp_path: Path, pools: dict[str, Place]) -> None:
    """A rank that fails by itself costs its node: the others take over its samples, and it tries again later."""
    hungry = HUNGRY.replace("len(x) > 3", "len(x) == 1")
    (tmp_path / "hungry.py").write_text(NET[: NET.index("    def forward")] + hungry.lstrip("\n"))
    spec = small(factory=f"{tmp_path / 'hungry.py'}:make", batches={"a": 4, "b": 1}, epochs=3)
    found = led(tmp_path, spec, pair(pools), "--silence", "1")
    assert found.status == 0, found.events
    assert [event["node"] for event in found.events if event["event"] == "lost"] == ["b"]
    assert "memory" in found.one("lost")["why"]
    assert [event["samples"] for event in found.events if event["event"] == "epoch"] == [60] * 3
    assert found.workers == {"a": 0, "b": 3}  # when b came back, the run was over


def test_tuned_once(tmp_path: Path, pools: dict[str, Place], net: str) -> None:
    """Engines of one kind are measured once; a second run of the same finds its tuning kept."""
    cluster = Cluster((Member("a", "csd"), Member("b", "csd")), (place(pools["public"], "a", "b"),))
    spec = small(factory=net, batches={}, tune=True)
    found = led(tmp_path, spec, cluster, "--batches", "2,4", "--dry-run")
    assert {event["node"] for event in found.events if event["event"] == "bench"} == {"a"}
    assert found.one("tuned")["nodes"] == {"csd": ["a", "b"]}
    assert found.one("done")["dry_run"]
    again = led(tmp_path, spec, cluster, "--batches", "2,4", "--dry-run")
    assert again.one("tuned")["cached"]
    assert again.one("tuned")["tuning"] == found.one("tuned")["tuning"]
    assert not [event for event in again.events if event["event"] == "bench"]


def test_versions(tmp_path: Path, pools: dict[str, Place], net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks of different programs are no run: both versions and nodes are named."""
    numbers = iter(("1111", "2222"))
    monkeypatch.setattr(versions, "_program", lambda: next(numbers))
    found = led(tmp_path, small(factory=net), pair(pools))
    text = found.one("failed")["text"]
    assert found.one("failed")["error"] == "VersionMismatch"
    assert all(word in text for word in ("1111", "2222", "a has", "b has"))


def test_stopped_early(tmp_path: Path, pools: dict[str, Place], net: str) -> None:
    """Nobody comes: the run ends and says who is missing."""
    cluster = Cluster((Member("a"), Member("z")), (place(pools["public"], "a"),))
    token = tmp_path / "token"
    token.write_text(TOKEN)
    argv = ["--spec", "s", "--cluster", "c", "--join-seconds", "0.2"]
    said = io.StringIO()
    events, server = Events(said), Server("127.0.0.1", 0, TOKEN, 10.0)
    controller = Controller(small(factory=net), cluster, options.coordinator_parser().parse_args(argv), server, events)
    server.start()
    assert controller.run() == 1
    server.close()
    events.close()
    failed = json.loads(said.getvalue().splitlines()[-1])
    assert (failed["event"], failed["node"]) == ("failed", "a")
    assert "0.2 s" in failed["text"]
