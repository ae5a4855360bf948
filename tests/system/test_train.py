"""`emucsd train` end to end: real drives with real engines, engines that are killed, and all that can be wrong."""

from __future__ import annotations

import io
import json
import os
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emucsd.cli.main import main
from emucsd.drive import Drive
from emucsd.embedded import DriveProcess
from emucsd.isp import local
from emucsd.isp.errors import IspUnavailable
from emucsd.stannis.data.put import put
from emucsd.stannis.launch.progress import Lines
from emucsd.stannis.launch.request import Request
from emucsd.stannis.launch.run import Run
from emucsd.stannis.launch.train import How, train
from emucsd.stannis.spec import Spec

pytest.importorskip("torch")
Image = pytest.importorskip("PIL.Image")

SIDE, CLASSES, SAMPLES = 16, 4, 96
FACTORY = "emucsd.stannis.models:small"
SMALL = {"num_classes": CLASSES, "channels": 4}
OPTIONS = ["--image", str(SIDE), "--arg", f"num_classes={CLASSES}", "--arg", "channels=4", "--no-cache", "--no-plot",
           "--silence", "3", "--json"]  # fmt: skip


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tar of JPEGs in class folders; a class is a colour."""
    path = tmp_path_factory.mktemp("images") / "images.tar"
    random = np.random.default_rng(1)
    with tarfile.open(path, "w") as packed:
        for number in range(SAMPLES):
            pixels = random.integers(0, 96, (SIDE, SIDE, 3))
            pixels[..., number % 3] += 60 * (number % CLASSES)
            encoded = io.BytesIO()
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(encoded, "JPEG")
            member = tarfile.TarInfo(f"class{number % CLASSES}/{number:03}.jpg")
            member.size = len(encoded.getvalue())
            packed.addfile(member, io.BytesIO(encoded.getvalue()))
    return path


@pytest.fixture(scope="module")
def drives(shard: Path) -> Iterator[list[str]]:
    """Two running drives: public samples in namespace 2 of both, private ones in 3; 4 of the first has little room."""
    try:
        local.probe()
    except IspUnavailable as problem:
        pytest.skip(str(problem))
    with DriveProcess(profile="null", size="128MiB") as first, DriveProcess(profile="null", size="128MiB") as second:
        for number, process in enumerate((first, second)):
            with Drive.open(process.runtime) as drive:
                half = range(64 + number * 16, 80 + number * 16)
                assert put(drive, str(shard), indices=range(64)).nsid == 2
                assert put(drive, str(shard), indices=half, private=True).nsid == 3
                if number == 0:
                    drive.admin.attach(drive.create_namespace(16).nsid, 2)
        yield [str(first.runtime), str(second.runtime)]


def small(**settings: Any) -> Spec:
    """A run of a tiny network whose batches nobody has to measure."""
    batches = {"host": 16, "isp0": 4, "isp1": 4}
    given = {"arguments": SMALL, "tune": False, "batches": batches, "image": (3, SIDE, SIDE), **settings}
    return Spec(FACTORY, threads=dict.fromkeys(batches, 1), **given)


def run(argv: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any], str]:
    """The command line. :returns: exit code, record, standard error"""
    code = main(["train", *argv, *OPTIONS])
    said = capsys.readouterr()
    return code, json.loads(said.out) if said.out else {}, said.err


class Told(Lines):
    """No display: events go to whoever wants them."""

    def __init__(self, event: Callable[[dict[str, Any]], None] = lambda event: None) -> None:
        self._event = event

    def note(self, text: str) -> None:
        """Nothing."""

    def event(self, event: Any, standing: Any) -> None:
        """Handed on."""
        self._event(dict(event))


def test_one_command_for_a_newcomer(shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Temporary drives, a tar put onto them, a private part, tuning, an epoch, a record with its proof."""
    try:
        local.probe()
    except IspUnavailable as problem:
        pytest.skip(str(problem))
    argv = [FACTORY, "--data", str(shard), "--test", str(shard), "--engines", "2", "--private-share", "0.25"]
    argv += ["--profile", "null", "--cpu-share", "0.5", "--tune-batches", "4,8", "--out", str(tmp_path)]
    code, record, said = run(argv, capsys)
    assert code == 0, said
    assert record["ended"]["how"] == "done"
    (plan,) = record["training"]["plans"]
    taken = {share["node"]: share["quota"] for share in plan["shares"]}
    assert taken["isp0"]["private-isp0"] == taken["isp1"]["private-isp1"] == 12
    assert not any(name.startswith("private") for name in taken["host"])
    assert sum(sum(quota.values()) for quota in taken.values()) == SAMPLES
    assert record["training"]["images"] >= SAMPLES
    assert record["training"]["epochs"][0]["evaluation"]["loss"] > 0
    assert record["privacy"]["verdict"] == "kept"
    assert record["privacy"]["port0_bytes"] == 0
    assert record["privacy"]["port1_bytes"] > 0
    assert record["training"]["energy"]["joules"] > 0
    assert record["environment"]["torch"]
    assert json.loads((tmp_path / "record.json").read_text())["ended"] == record["ended"]
    events = (tmp_path / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in events].count("plan") == 1


def test_an_engine_that_is_killed_comes_back(drives: list[str], tmp_path: Path) -> None:
    """Killed in mid-run it is dropped, its private samples wait, the others go on; then it is a rank again."""
    there: dict[str, Any] = {}
    worlds: list[list[str]] = []

    def event(event: dict[str, Any]) -> None:
        if event["event"] != "step":
            return
        if not worlds or worlds[-1] != event["nodes"]:
            worlds.append(event["nodes"])
        if event["step"] == 3:
            threading.Thread(target=there["fleet"].embedded.engines[1].kill).start()
        if len(worlds) == 3:
            there["run"].stop()

    spec = small(epochs=100_000, allow_missing=True)
    request = Request(
        spec, data=("ns:2",), private=("ns:3",), drives=tuple(drives), cpu_share=1.0, heartbeat_seconds=2.0
    )
    record = train(request, tmp_path / "run", Told(event), watch=lambda fleet, run: there.update(fleet=fleet, run=run))
    assert record["ended"]["how"] == "stopped"
    assert worlds == [["host", "isp0", "isp1"], ["host", "isp0"], ["host", "isp0", "isp1"]]
    assert record["training"]["nodes"]["isp1"]["times_lost"] == 1
    assert record["starts"] == {"host": 1, "isp0": 1, "isp1": 2}
    quotas = [sum(sum(share["quota"].values()) for share in plan["shares"]) for plan in record["training"]["plans"]]
    assert max(quotas) == 64 + 32
    assert record["privacy"]["port0_bytes"] == 0
    assert record["privacy"]["port1_bytes"] > 0
    assert os.listdir(tmp_path / "run" / "checkpoints")


def test_a_checkpoint_without_room(drives: list[str], tmp_path: Path) -> None:
    """The run goes on and says so; nothing else changes."""
    spec = small(steps=3, arguments={"num_classes": CLASSES, "channels": 16})
    request = Request(spec, data=("ns:2",), drives=(drives[0],), cpu_share=1.0, checkpoint="ns:4")
    record = train(request, tmp_path / "run", Told())
    assert record["ended"]["how"] == "done"
    assert record["training"]["checkpoints"]
    assert all("give it a namespace of" in kept["error"] for kept in record["training"]["checkpoints"])
    assert record["training"]["steps"] == 3


def test_a_network_too_large_for_an_engine(drives: list[str], tmp_path: Path) -> None:
    """The run says which engine, and what its limit is; the others train, where that is allowed."""
    large = {"num_classes": CLASSES, "channels": 512}
    batches = {"host": 4, "isp0": 4}
    spec = Spec(FACTORY, large, image=(3, SIDE, SIDE), tune=False, batches=batches, steps=2, allow_missing=True)
    request = Request(spec, data=("ns:2",), drives=(drives[0],), cpu_share=1.0, engine_memory=350 << 20)
    record = train(request, tmp_path / "run", Told())
    assert record["ended"]["how"] == "done"
    assert [share["node"] for share in record["training"]["plans"][0]["shares"]] == ["host"]
    missing = next(change for change in record["training"]["changes"] if change["event"] == "missing")
    assert missing["node"] == "isp0"
    assert "the limit is 367001600 bytes" in missing["why"]


def test_what_is_wrong_is_said(shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A factory that raises: its last line and place; a shard that is missing: which pool."""
    (tmp_path / "broken.py").write_text("def make(**_):\n    raise ValueError('no such layer')\n")
    argv = ["--processes", "1", "--batches", "process0=8"]
    code, _, said = run([f"{tmp_path}/broken.py:make", "--data", str(shard), *argv, "--out", f"{tmp_path}/1"], capsys)
    assert code == 1
    assert "no such layer" in said
    assert "broken.py:2" in said
    code, _, said = run([FACTORY, "--data", f"{tmp_path}/none.tar", *argv, "--out", f"{tmp_path}/2"], capsys)
    assert code == 1
    assert "none.tar" in said
    assert "Traceback" not in said


def test_stopped_and_gone_on_with(shard: Path, tmp_path: Path) -> None:
    """Plain processes: asked to stop they keep a checkpoint; resumed, they end where they would have."""
    there: dict[str, Run] = {}

    def event(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 2:
            there["run"].stop()

    spec = Spec(FACTORY, SMALL, image=(3, SIDE, SIDE), tune=False, batches={"process0": 2, "process1": 4}, epochs=4,
                threads={"process0": 1, "process1": 1})  # fmt: skip
    request = Request(spec, data=(str(shard),), processes=2)
    record = train(request, tmp_path / "run", Told(event), watch=lambda fleet, run: there.update(run=run))
    assert record["ended"]["how"] == "stopped"
    assert 2 <= record["training"]["steps"] < 64
    record = train(request, tmp_path / "run", Told(), How(resume=True))
    assert record["ended"]["how"] == "done"
    assert record["training"]["steps"] == 64
