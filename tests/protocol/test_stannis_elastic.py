"""Ranks that are lost and come back, a coordinator that dies, and runs that go on from a checkpoint."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from emucsd.stannis.group.cluster import Cluster, Member
from emucsd.stannis.group.controller import Controller
from emucsd.stannis.spec import Spec
from tests.stannis_run import NET, TrainingRun, led, pictures, place

SILENCE = 1.0


def spec(**more: Any) -> Spec:
    """Steps that take a moment, so that something can happen within one."""
    about: dict[str, Any] = {
        "factory": "net.py:make",
        "arguments": {"slow": 0.02},
        "image": (3, 8, 8),
        "tune": False,
        "base_batch": 9,
        "lr": 0.02,
        "transform": "none",
        "batches": {"a": 4, "b": 3, "c": 2},
    }
    return Spec(**{**about, **more})


def counted(events: list[dict[str, Any]]) -> dict[int, int]:
    """Epoch -> samples, over its steps; every step of the run comes once, in order."""
    found: dict[int, int] = {}
    steps = [event for event in events if event["event"] == "step"]
    assert [event["step"] for event in steps] == list(range(steps[0]["step"], steps[0]["step"] + len(steps)))
    for event in steps:
        found[event["epoch"]] = found.get(event["epoch"], 0) + event["total"]
    return found


def test_losses_and_returns(tmp_path: Path) -> None:
    """Killed, suspended, rank 0, two at once: the others go on within a second, who comes back is a rank again, and
    every public sample is trained once an epoch all the same."""
    pools = pictures(tmp_path, {"public": 240, "mine": 12, "test": 10})
    where = place(pools["public"], "a", "b", "c"), place(pools["mine"], "b", private=True)
    test = (place(pools["test"], "a", "c"),)
    with TrainingRun(
        tmp_path / "run", spec(epochs=999), where, "--silence", str(SILENCE), test=test, apart=True
    ) as run:
        run.wait("step", lambda event: event["step"] >= 4)

        run.workers["c"].send(signal.SIGKILL)
        assert run.wait("lost")["node"] == "c"
        assert run.wait("regroup")["nodes"] == ["a", "b"]
        assert run.wait("step")["nodes"] == ["a", "b"]

        run.workers["b"].send(signal.SIGSTOP)  # it holds its connections open and says nothing
        lost = run.wait("lost")
        assert (lost["node"], lost["pools"]) == ("b", ["mine"])
        assert "nothing was heard" in lost["why"]
        assert run.wait("step")["nodes"] == ["a"]
        run.workers["b"].send(signal.SIGCONT)
        assert run.wait("rejoined")["node"] == "b"
        run.start("c")
        run.wait("rejoined", lambda event: event["node"] == "c")
        assert run.wait("step")["nodes"] == ["a", "b", "c"]

        run.workers["a"].send(signal.SIGKILL)  # rank 0: the store that the group was made with goes too
        assert run.wait("step", lambda event: event["nodes"] == ["b", "c"])
        run.start("a")
        run.wait("rejoined", lambda event: event["node"] == "a")
        run.wait("step", lambda event: len(event["nodes"]) == 3)

        for name in ("a", "c"):
            run.workers[name].send(signal.SIGKILL)
        alone = run.wait("step", lambda event: event["nodes"] == ["b"])["epoch"]
        run.wait("step", lambda event: event["epoch"] == alone + 1)
        run.coordinator.send(signal.SIGTERM)
        assert run.finish() == 0, run.told()

        samples = counted(run.events)
        del samples[max(samples)]  # it was stopped in there
        assert all(240 <= count <= 252 for count in samples.values()), samples
        assert samples[alone] == 252  # b was there all the time, so were its own
        assert quickest(run.events) < 1.0
        for epoch in run.all("epoch"):
            assert epoch["samples"] == samples[epoch["epoch"]]


def quickest(events: list[dict[str, Any]]) -> float:
    """Seconds from a loss to the next step, at best: on a busy machine others of them take longer."""
    times: list[float] = []
    lost: float | None = None
    for event in events:
        if event["event"] == "lost" and "connection" in event["why"]:
            lost = event["time"]
        elif event["event"] == "step" and lost is not None:
            times.append(event["time"] - lost)
            lost = None
    return min(times)


def test_all_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All ranks die: the run goes on from its checkpoint. The coordinator dies: the workers keep what they have
    trained, and end. Either way nothing is lost beyond that, and no sample comes twice."""
    pools = pictures(tmp_path, {"public": 90})
    (tmp_path / "net.py").write_text(NET)
    nodes = [Member("a", checkpoint=str(tmp_path / "kept")), Member("b")]
    where = (place(pools["public"], "a", "b"),)
    asked = spec(epochs=3, checkpoint_every=4, factory=f"{tmp_path / 'net.py'}:make")
    with TrainingRun(tmp_path / "run", asked, where, "--silence", str(SILENCE), nodes=nodes) as run:
        run.wait("checkpoint")
        first = run.wait("step", lambda event: event["step"] >= 6)
        for worker in run.workers.values():
            worker.send(signal.SIGKILL)
        assert run.finish() == 1
        assert run.all("failed")[0]["error"] == "NoRanks"
        assert "--resume" in run.all("failed")[0]["text"]
        kept = max(event["step"] for event in run.all("checkpoint"))
        assert first["step"] - kept <= 4

    words = ("--silence", str(SILENCE), "--resume")
    with TrainingRun(tmp_path / "run", asked, where, *words, nodes=nodes, start=()) as run:
        workers = [run.work(name) for name in ("a", "b")]
        assert run.wait("resumed")["step"] == kept
        assert run.wait("step")["step"] == kept + 1
        run.wait("step", lambda event: event["step"] >= kept + 5)
        run.coordinator.send(signal.SIGKILL)
        assert [end() for end in workers] == [3, 3]
        last = run.events[-1]["step"]
    said = capsys.readouterr().err
    assert "is kept in" in said  # by a
    assert "keeps no checkpoints" in said  # by b

    found = led(tmp_path, asked, Cluster(tuple(nodes), where), "--resume")
    assert found.status == 0, found.events
    assert found.one("resumed")["step"] >= last
    samples = counted(found.events)
    plan = found.one("plan")["plan"]
    assert samples[2] == 90
    if plan["rest"] is not None:
        spent = sum(end - begin for begin, end in plan["rest"]["spent"]["public"])
        assert samples[plan["rest"]["epoch"]] == 90 - spent
    assert found.one("done")["kept"] == {"a": found.one("done")["step"]}


def test_stop_and_resume(tmp_path: Path) -> None:
    """A run that is asked to stop does so after a whole step, keeps it, and goes on from there: every sample once."""
    pools = pictures(tmp_path, {"public": 90})
    (tmp_path / "net.py").write_text(NET)
    asked = spec(epochs=1, factory=f"{tmp_path / 'net.py'}:make", batches={"a": 3})
    cluster = Cluster((Member("a", checkpoint=str(tmp_path / "kept")),), (place(pools["public"], "a"),))

    def stop(controller: Controller) -> None:
        controller.stops += 1

    found = led(tmp_path, asked, cluster, watch=stop)
    stopped = found.one("stopped")
    assert found.status == 0
    assert stopped["kept"] == {"a": stopped["step"]}
    before = counted(found.events)[0]
    assert 0 < before < 90
    found = led(tmp_path, asked, cluster, "--resume")
    assert found.one("resumed")["step"] == stopped["step"]
    assert counted(found.events)[0] == 90 - before
    assert found.workers == {"a": 0}


def test_nothing_to_resume(tmp_path: Path) -> None:
    """--resume without any checkpoint is an error that says so, not a run from the begin."""
    pools = pictures(tmp_path, {"public": 9})
    (tmp_path / "net.py").write_text(NET)
    cluster = Cluster((Member("a", checkpoint=str(tmp_path / "kept")),), (place(pools["public"], "a"),))
    begun = time.monotonic()
    found = led(tmp_path, spec(factory=f"{tmp_path / 'net.py'}:make", batches={"a": 3}), cluster, "--resume")
    assert found.status == 1
    assert found.one("failed")["error"] == "CheckpointMissing"
    assert time.monotonic() - begun < 30.0
