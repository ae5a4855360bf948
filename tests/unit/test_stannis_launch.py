"""What a launcher decides before anything runs: requests, places, the user's code, and what events add up to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from emucsd.cli.main import main
from emucsd.errors import InvalidArgument
from emucsd.stannis.errors import FactoryFailed
from emucsd.stannis.launch import places
from emucsd.stannis.launch.nodes import ProcessNode
from emucsd.stannis.launch.places import Where
from emucsd.stannis.launch.progress import Lines
from emucsd.stannis.launch.request import Request, as_testbed
from emucsd.stannis.launch.ship import shipped
from emucsd.stannis.launch.standing import Standing
from emucsd.stannis.spec import Spec

SPEC = Spec("emucsd.stannis.models:small")
FLEET = Where(["host", "isp0", "isp1"], {"isp0": 0, "isp1": 1}, called={"a": "isp0", "b": "isp1"})


def same(location: str) -> str:
    """Every drive holds the same."""
    return location.partition("@")[0]


def test_a_request_comes_back_from_its_file() -> None:
    """What is saved for --resume is what was asked for."""
    request = Request(SPEC, data=("x.tar",), engines=2, private_share=0.25, host_cores=(0,))
    assert Request.from_json(request.to_json()) == request


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"data": ("x",)}, "say what to train on"),
        ({"data": ("x",), "engines": 1, "processes": 2}, "say what to train on"),
        ({"engines": 1}, "no samples"),
        ({"data": ("x",), "processes": 2, "private_share": 0.5}, "is for --engines"),
        ({"data": ("x",), "engines": 2, "private_share": 1.0}, "private share"),
    ],
)
def test_requests_that_make_no_run(settings: dict[str, Any], says: str) -> None:
    """Options that don't go together are told before anything starts."""
    with pytest.raises(InvalidArgument, match=says):
        Request(SPEC, **settings)


def test_drives_of_a_testbed() -> None:
    """`lab:0-2`, `lab:0,3` and `0-1` are a testbed's drives; other words are names."""
    assert as_testbed(("lab:0-2",)) == ("lab", (0, 1, 2))
    assert as_testbed(("lab:0", "3")) == ("lab", (0, 3))
    assert as_testbed(("0-1",)) == ("testbed", (0, 1))
    assert as_testbed(("a", "b")) is None
    with pytest.raises(InvalidArgument, match="TESTBED:0-3"):
        as_testbed(("lab:x",))


def test_copies_on_drives_are_one_pool() -> None:
    """The same samples on every drive: each engine reads its own copy, the host the first drive's."""
    (pool,) = places.public(FLEET, ["ns:2"], same)
    assert pool.at == {"host": "ns:2@0", "isp0": "ns:2", "isp1": "ns:2"}


def test_different_drives_are_different_pools() -> None:
    """Drives that hold different samples: each engine reads its own, the host all."""
    pools = places.public(FLEET, ["ns:2"], lambda location: location)
    assert [pool.at for pool in pools] == [
        {"host": "ns:2@0", "isp0": "ns:2"},
        {"host": "ns:2@1", "isp1": "ns:2"},
    ]


def test_paths_are_the_same_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path is made absolute: nodes' working folders differ."""
    monkeypatch.chdir(tmp_path)
    (pool,) = places.public(FLEET, ["images"], same)
    assert set(pool.at.values()) == {str(tmp_path / "images")}


def test_private_pools_have_one_place_each() -> None:
    """Without a node each engine has its own; with one (or its drive's name) it is that one's alone."""
    assert [pool.at for pool in places.private(FLEET, ["ns:3"])] == [{"isp0": "ns:3"}, {"isp1": "ns:3"}]
    two = places.private(FLEET, ["b=ns:3", "isp1=ns:4"])
    assert [(pool.name, pool.at) for pool in two] == [
        ("private-isp1", {"isp1": "ns:3"}),
        ("private-isp1+", {"isp1": "ns:4"}),
    ]
    assert all(pool.private for pool in two)
    with pytest.raises(InvalidArgument, match="no node is called 'c'"):
        places.private(FLEET, ["c=ns:3"])


def test_the_users_code_goes_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file and what it imports from beside it, a module and a package from here; nothing of what is installed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    Path("nets").mkdir()
    Path("nets/my_net.py").write_text("from my_layers import block\ndef make(): ...\n")
    Path("nets/my_layers.py").write_text("")
    Path("nets/unrelated.py").write_text("")
    called, files = shipped(["nets/my_net.py:make", "sgd", "emucsd.stannis.models:small"])
    assert called["nets/my_net.py:make"] == "my_net.py:make"
    assert called["sgd"] == "sgd"
    assert sorted(files) == ["my_layers.py", "my_net.py"]
    Path("my_package_of_nets/inner").mkdir(parents=True)
    Path("my_package_of_nets/__init__.py").write_text("")
    Path("my_package_of_nets/inner/one.py").write_text("")
    _, files = shipped(["my_package_of_nets.inner.one:make"])
    assert sorted(files) == ["my_package_of_nets/__init__.py", "my_package_of_nets/inner/one.py"]
    for name in ("none.py:make", "no_such_module_anywhere:make"):
        with pytest.raises(FactoryFailed):
            shipped([name])


def test_a_process_node_runs_commands_with_files(tmp_path: Path) -> None:
    """A command finds its files and variables, is stopped when asked, and leaves nothing."""
    node = ProcessNode("one", tmp_path, variables={"WORD": "said"})
    done = node.start(["sh", "-c", "cat a/file; echo $WORD $OTHER"], {"OTHER": "too"}, {"a/file": b"content\n"})
    assert list(done.lines()) == ["content", "said too"]
    assert done.wait().ok
    running = node.start(["sh", "-c", "echo up; exec sleep 60"], {}, {})
    lines = running.lines()
    assert next(lines) == "up"
    running.stop()
    assert list(lines) == []
    assert running.wait().status == -15
    node.close()
    assert not list(tmp_path.iterdir())


def step(number: int, *, at: float, **parts: tuple[int, float, float]) -> dict[str, Any]:
    """A step event as the coordinator prints it. :param parts: node -> images, seconds computing, seconds waiting"""
    images, compute, wait = (list(column) for column in zip(*parts.values(), strict=True))
    return {
        "event": "step", "time": at, "steps": 1, "generation": 0, "step": number, "epoch": 0,
        "loss": 2.0 - number / 10, "accuracy": 0.25, "lr": 0.1, "skipped": False, "total": sum(images),
        "nodes": list(parts), "images": images, "compute": compute, "wait": wait,
        "load": [0.0] * len(images), "transfer": [0.0] * len(images), "left_out": [0] * len(images),
    }  # fmt: skip


def test_what_events_add_up_to() -> None:
    """Rates, waiting shares, losses and energy are what the steps say; a lost node stops counting."""
    standing = Standing({"host": "host-local", "isp0": "local"}, {"host": "host", "isp0": "csd"})
    for number in range(1, 5):
        standing.take(step(number, at=10.0 + number, host=(10, 1.0, 0.0), isp0=(2, 0.75, 0.25)))
    standing.take({"event": "lost", "time": 14.0, "node": "isp0", "why": "gone"})
    record = standing.record()
    assert record["images"] == 48
    assert record["losses"] == [(1, 1.9), (2, 1.8), (3, 1.7), (4, 1.6)]
    assert record["seconds"] == pytest.approx(4.0)
    assert record["nodes"]["host"]["images_per_second"] == pytest.approx(10.0)
    assert record["nodes"]["isp0"]["waiting_share"] == pytest.approx(0.25)
    assert record["nodes"]["isp0"]["times_lost"] == 1
    assert standing.rate == pytest.approx(12.0)
    energy = record["energy"]
    assert energy["joules"] == pytest.approx(sum(energy["nodes"].values()))
    assert energy["nodes"]["host"] > energy["nodes"]["isp0"] > 0


def test_plain_lines_tell_what_changes(capsys: pytest.CaptureFixture[str]) -> None:
    """Where nobody looks at a terminal, losses and steps are lines."""
    standing = Standing({"host": "process"}, {"host": "host"})
    lines = Lines(Console(width=200), SPEC)
    for event in (step(1, at=1.0, host=(4, 1.0, 0.0)), {"event": "lost", "time": 2.0, "node": "host", "why": "gone"}):
        standing.take(event)
        lines.event(event, standing)
    said = capsys.readouterr().out
    assert "loss 1.9000" in said
    assert "host is lost: gone" in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["m:f", "--data", "x"], "say what to train on"),
        (["--engines", "1", "--data", "x"], "no network is named"),
        (["--resume"], "which run"),
        (["m:f", "--data", "x", "--engines", "1", "--image", "3x4"], "no image size"),
        (["m:f", "--data", "x", "--engines", "1", "--epochs", "0"], "no count"),
        (["no_such_module_anywhere:f", "--data", "x.npz", "--processes", "1"], "no module"),
    ],
)
def test_the_command_line_says_what_is_wrong(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong usage ends with a sentence and an exit code other than 0."""
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["train", *words])
    except SystemExit as problem:
        code = int(problem.code or 0)
    assert code
    assert says in " ".join(capsys.readouterr().err.split())
