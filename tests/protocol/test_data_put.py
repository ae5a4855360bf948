"""Samples on real drives: put there, private or public, read through the engine's port, damaged, and taken back."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emucsd import Drive
from emucsd.cli.command import DIFFERENT, FAILED, OK
from emucsd.cli.main import main
from emucsd.errors import InvalidNamespace
from emucsd.isp.disk import Disk
from emucsd.isp.diskserver import DiskServer
from emucsd.isp.errors import IspUnreachable
from emucsd.stannis.data.errors import DataFormat, DriveGone, NoRoom, PutFailed, ShardDamaged, ShardMissing
from emucsd.stannis.data.found import check, listing, open_namespace
from emucsd.stannis.data.loader import Loader
from emucsd.stannis.data.put import put
from emucsd.stannis.data.room import ENGINE, HOST
from emucsd.stannis.data.source import Source, digest
from emucsd.stannis.data.source import open as open_source
from emucsd.stannis.data.split import split
from emucsd.stannis.data.take import take
from emucsd.traces.data import find_data
from emucsd_wire.nvme import Io
from tests.unit.stannis_samples import folder

CIFAR = "cifar10-7000.tar"
IMAGE = (3, 32, 32)


class Both:
    """A drive with a client on each port, and its disk for child processes of either."""

    def __init__(self, home: Path) -> None:
        self.host = Drive.start("null", size="32MiB", queues=2)
        self.engine = Drive.open(self.host.folder, port=1, queues=4)
        self.disks = [DiskServer(drive, home / f"disk{port}") for port, drive in enumerate((self.host, self.engine))]

    def close(self) -> None:
        for disk in self.disks:
            disk.close()
        self.engine.close()
        self.host.close()

    def free(self) -> int:
        return self.host.admin.controller().unvmcap

    def clear(self) -> None:
        """As new, but for the size of namespace 1."""
        for nsid in self.engine.admin.allocated_namespaces():
            self.engine.admin.delete_namespace(nsid)
        nsid = self.host.admin.create_namespace(self.free() // 4096)
        self.host.admin.attach(nsid, HOST, ENGINE)


@pytest.fixture(scope="module")
def made() -> Iterator[Both]:
    with tempfile.TemporaryDirectory(prefix="emucsd-test-") as home:
        both = Both(Path(home))
        yield both
        both.close()


@pytest.fixture
def both(made: Both, monkeypatch: pytest.MonkeyPatch) -> Both:
    """A drive as new; this process reads as a job of its engine does."""
    made.clear()
    monkeypatch.setenv("EMUCSD_DISK", made.disks[1].uri())
    monkeypatch.setenv("EMUCSD_DISK_0", made.disks[0].uri())
    return made


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    """A few hundred real images where they are at hand, else made ones."""
    home = find_data(CIFAR)
    location = f"{home / CIFAR}/test" if home else str(folder(tmp_path_factory.mktemp("images"), 120))
    with open_source(location) as source:
        yield source


def payloads(source: Source) -> list[Any]:
    return source.samples(range(source.count))


def test_private(both: Both, images: Source) -> None:
    """Private samples are the engine's: read there by its own port, every byte; for the host they do not exist."""
    place = put(both.host, images, private=True)
    assert (place.location, place.count, place.classes) == ("ns:2", images.count, images.classes)
    with open_source("ns:2", private=True) as source:
        before = both.host.control.stats()["ports"]
        assert payloads(source) == payloads(images)
        assert digest(source) == digest(images)
        order = [[("mine", index) for index in range(first, first + 8)] for first in range(0, 64, 8)]
        with Loader({"mine": source}, order, "none", image=IMAGE) as loader:
            assert sum(len(batch.labels) for batch in loader) == 64
        after = both.host.control.stats()["ports"]
    assert after[1]["reads"] > before[1]["reads"]
    assert after[0]["reads"] == before[0]["reads"]
    assert 2 not in both.host.admin.allocated_namespaces()
    with pytest.raises(InvalidNamespace):
        both.host.namespace(2)
    with pytest.raises(ShardMissing, match="no such namespace"):
        open_source("ns:2@0")
    with pytest.raises(IspUnreachable):
        Disk.open(os.environ["EMUCSD_DISK_0"], nsid=2)
    told = listing(both.host)
    assert [held.nsid for held in told.namespaces] == [1]
    assert told.hidden == place.size
    assert "ns:2" not in json.dumps(told.to_json())


def test_public(both: Both, images: Source) -> None:
    """Public samples are read by both: by the host at port 0, by the engine at port 1, as copies of one pool."""
    place = put(both.host, images, indices=range(50))
    with open_source("ns:2") as near, open_source("ns:2@0") as far, open_namespace(both.host, 2) as direct:
        assert payloads(near) == payloads(far) == payloads(direct) == images.samples(range(50))
        assert digest(near) == digest(far)
        assert near.checked  # type: ignore[attr-defined]
    held = listing(both.host).namespaces
    assert [(one.nsid, one.what, one.count) for one in held] == [(1, "nothing", 0), (2, "samples", 50)]
    assert held[1].owners == (HOST, ENGINE)
    assert place.size >= place.bytes > held[1].bytes


def test_disks_are_this_user_s(both: Both) -> None:
    """The socket that a disk is served on lets nobody else connect, and lists what its port has and no more."""
    for server in both.disks:
        assert server.path.stat().st_mode & 0o077 == 0
    hidden = both.engine
    hidden.admin.delete_namespace(1)
    space = hidden.create_namespace(16)
    with Disk.open(both.disks[1].uri()) as disk:
        assert disk.size == space.size
    with pytest.raises(IspUnreachable):
        Disk.open(both.disks[0].uri())


def test_from_within(both: Both, images: Source) -> None:
    """The engine itself can put private samples, and what it puts never crosses port 0."""
    before = both.host.control.stats()["ports"][0]
    place = put(both.engine, images, private=True, indices=range(20))
    after = both.host.control.stats()["ports"][0]
    assert (after["writes"], after["reads"]) == (before["writes"], before["reads"])
    assert both.engine.admin.owners(place.nsid) == (ENGINE,)
    with open_source(place.location) as source:
        assert payloads(source) == images.samples(range(20))


def test_room(both: Both, images: Source) -> None:
    """A blank first namespace makes way, and leaves room for more; one with data does not, and nothing is changed."""
    assert both.free() < 4096 * 16
    first = put(both.host, images, indices=range(30))
    assert "blank" in first.room
    assert both.host.namespace(1).size > 4 << 20
    assert put(both.host, images, indices=range(30, 60)).room == ""
    both.clear()
    space = both.host.namespace(1)
    space.write(space.blocks - 1, b"x" * 4096)
    with pytest.raises(NoRoom, match=r"namespace 1 takes \d+ and holds data"):
        put(both.host, images, indices=range(30))
    assert both.host.admin.allocated_namespaces() == [1]
    assert space.read(space.blocks - 1, 1).tobytes() == b"x" * 4096


def test_too_large(both: Both, tmp_path: Path) -> None:
    """A set that is larger than the drive is refused with what is needed and what there is; the drive is as it was."""
    folder(tmp_path / "images", 3)
    with open(tmp_path / "images" / "ant" / "huge.jpg", "wb") as file:
        file.truncate(40 << 20)
    with pytest.raises(NoRoom, match="larger drive"):
        put(both.host, f"{tmp_path}/images")
    assert both.host.admin.allocated_namespaces() == [1]


def test_tensors(both: Both, tmp_path: Path) -> None:
    """Tensors of pixels are put as PNG: the engine reads the very pixels."""
    rows = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "x.npz", images=rows, labels=np.arange(9) % 3)
    put(both.host, f"{tmp_path}/x.npz", private=True)
    order = [[("p", index) for index in range(9)]]
    found = []
    for location in ("ns:2", f"{tmp_path}/x.npz"):
        with open_source(location) as source, Loader({"p": source}, order, "none", image=IMAGE) as loader:
            found.append(next(loader).images)
    assert np.array_equal(found[0], found[1])
    np.savez(tmp_path / "f.npz", images=rows.transpose(0, 3, 1, 2).astype(np.float32), labels=np.arange(9) % 3)
    with pytest.raises(DataFormat, match="no pictures"):
        put(both.host, f"{tmp_path}/f.npz")


def test_a_source_that_fails(both: Both, tmp_path: Path) -> None:
    """A sample that can't be read while it is put leaves no namespace behind, public or private."""
    root = folder(tmp_path / "images", 60)
    with open_source(str(root)) as source:
        put(both.host, source, indices=range(5))
        free = both.free()
        Path(source.where(40)).unlink()
        for private in (False, True):
            with pytest.raises(ShardMissing):
                put(both.host, source, private=private)
    assert both.free() == free
    assert both.engine.admin.allocated_namespaces() == [1, 2]


def test_given_namespace(both: Both, images: Source) -> None:
    """A namespace of the user's own is written to when it is blank, or with ``force``; a part fits or is refused."""
    small = both.host.admin
    small.delete_namespace(1)
    space = both.host.create_namespace(64)
    with pytest.raises(NoRoom, match="it has 262144"):
        put(both.host, images, namespace=space.nsid)
    put(both.host, images, indices=range(20), namespace=space.nsid)
    with pytest.raises(PutFailed, match="holds data"):
        put(both.host, images, indices=range(30), namespace=space.nsid)
    place = put(both.host, images, indices=range(30), namespace=space.nsid, private=True, force=True)
    assert place.count == 30
    with open_source(place.location) as source:
        assert check(source).damaged == 0
        assert source.count == 30
    assert both.host.admin.active_namespaces() == []


def test_damage(both: Both, images: Source) -> None:
    """Overwritten and unreadable blocks cost the samples in them and no others; a lost header costs the shard."""
    put(both.host, images, indices=range(60))
    space = both.host.namespace(2)
    with open_source("ns:2") as source:
        middle = int(source._offsets[30]) // 4096  # type: ignore[attr-defined]
        space.write(middle, np.full(4096, 7, np.uint8))
        both.host.passthrough("io", Io.WRITE_UNCORRECTABLE, 2, cdw10=middle + 8, cdw12=0)
        found = payloads(source)
        bad = [index for index, one in enumerate(found) if isinstance(one, ShardDamaged)]
        assert 4 <= len(bad) <= 14
        assert all(one == images.sample(index)[0] for index, one in enumerate(found) if index not in bad)
        assert "ns:2, offset" in str(found[bad[0]])
        order = [[("p", index) for index in range(60)]]
        with Loader({"p": source}, order, image=IMAGE, policy="skip") as loader:
            assert next(loader).skipped == len(bad)
        with (
            Loader({"p": source}, order, image=IMAGE) as strict,
            pytest.raises(ShardDamaged, match=f"sample {bad[0]}:"),
        ):
            next(strict)
    with pytest.raises(ShardDamaged, match="ns:2, offset"):
        open_source("ns:2")
    assert "ns:2, offset" in listing(both.host).namespaces[1].what


def test_taking_back(both: Both, images: Source) -> None:
    """The engine gives a private namespace to the host, whole, or deletes it; the host can do neither."""
    first, second = (put(both.host, images, private=True, indices=range(20)).nsid for _ in range(2))
    with pytest.raises(DataFormat, match="port 0"):
        take(both.host, first)
    take(both.engine, first)
    with open_namespace(both.host, first) as source:
        assert payloads(source) == images.samples(range(20))
    free = both.free()
    take(both.engine, second, delete=True)
    assert both.free() > free
    with pytest.raises(DataFormat, match=f"it has: 1, {first}"):
        take(both.engine, second)


def test_a_drive_that_is_pulled(images: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A drive that goes away in the middle of an epoch is DriveGone under either policy, at once."""
    both = Both(tmp_path)
    try:
        monkeypatch.setenv("EMUCSD_DISK", both.disks[1].uri())
        put(both.host, images, indices=range(20), private=True)
        with open_source("ns:2", private=True) as source:

            def order() -> Iterator[list[tuple[str, int]]]:
                yield [("p", 0)]
                assert both.host.process is not None
                os.kill(both.host.process._process.pid, signal.SIGKILL)
                yield [("p", 1)]

            with Loader({"p": source}, order(), image=IMAGE, policy="skip") as loader:
                assert len(next(loader).labels) == 1
                with pytest.raises(DriveGone, match="ns:2"):
                    next(loader)
    finally:
        both.close()


# -- the command line --------------------------------------------------------------------------------------------------


Capture = pytest.CaptureFixture[str]
DRIVES = ("d0", "d1")


@pytest.fixture(scope="module")
def drives() -> Iterator[str]:
    """Two small drives, started by `emucsd up`."""
    patch = pytest.MonkeyPatch()
    with tempfile.TemporaryDirectory(prefix="emucsd-test-") as home:
        patch.setenv("EMUCSD_RUNTIME", f"{home}/run")
        patch.setenv("EMUCSD_STORE", f"{home}/store")
        for name in DRIVES:
            assert main(["up", name, "--drive-only", "--profile", "null", "--size", "32MiB", "--json"]) == OK
        yield ",".join(DRIVES)
        main(["down", "--all", "--force"])
        patch.undo()


def told(capsys: Capture, *argv: str, code: int = OK) -> dict[str, Any]:
    """What a command's --json says."""
    capsys.readouterr()
    assert main([*argv, "--json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_one_command(drives: str, tmp_path: Path, capsys: Capture) -> None:
    """`data put` deals a set with train/ and test/ out to drives as its dry run says, and tells what lies where."""
    for part, count in (("train", 60), ("test", 6)):
        folder(tmp_path / "set" / part, count)
    words = ("data", "put", drives, str(tmp_path / "set"), "--private-share", "0.2")
    plan = told(capsys, *words, "--dry-run")
    assert [key for key in plan if key.startswith("put on")] == [
        f"put on {name}, {kind}" for name in DRIVES for kind in ("private", "public")
    ]
    assert [held["what"] for held in told(capsys, "data", "list", "d0")["namespaces"]] == ["nothing"]
    found = told(capsys, *words, "--out", str(tmp_path / "pools.json"))
    assert [(part["drive"], part["private"], part["count"]) for part in found["parts"]] == [
        (name, private, count) for name in DRIVES for private, count in ((True, 6), (False, 24))
    ]
    assert json.loads((tmp_path / "pools.json").read_text())["pools"] == found["pools"]
    assert found["pools"][0] == {
        "name": "private-d0", "private": True, "count": 6, "at": {"d0": "ns:2"},
        "sample_bytes": found["parts"][0]["sample_bytes"],
    }  # fmt: skip
    assert found["pools"][3]["at"] == {"host": "ns:3@1", "d1": "ns:3"}
    with open_source(str(tmp_path / "set" / "train")) as source:
        parts = split(source, 2, 0.2)
        for dealt, drive in ((parts[0], "d0"), (parts[2], "d1")):
            with Drive.open(drive, port=1) as engine, open_namespace(engine, 2) as held:
                assert payloads(held) == source.samples(dealt.indices.tolist())
    assert main(["data", "put", drives, str(tmp_path / "set" / "test")]) == OK
    assert f"next: emucsd train FACTORY --drives {drives} --data ns:4" in capsys.readouterr().out


def test_list_check_take(drives: str, tmp_path: Path, capsys: Capture) -> None:
    """What the host may know is listed, samples are checked, a private namespace is taken back."""
    place = told(capsys, "data", "put", "d1", str(folder(tmp_path / "set", 9)), "--private")["parts"][0]
    nsid = str(place["nsid"])
    assert told(capsys, "data", "list", "d1")["hidden"] >= place["size"]
    assert main(["data", "list", "d1"]) == OK
    assert "of which this port may know nothing else" in capsys.readouterr().out
    assert told(capsys, "data", "check", "d1", "--port", "1", "--namespace", nsid)["checked"][0]["count"] == 9
    assert main(["data", "check", "d1", "--namespace", nsid]) == FAILED
    assert told(capsys, "data", "take", "d1", nsid, "--dry-run")["attach_to_the_host"]
    told(capsys, "data", "take", "d1", nsid)
    with Drive.open("d1") as drive:
        drive.namespace(int(nsid)).write(0, drive.namespace(int(nsid)).read(0, 1) ^ (np.arange(4096) == 700))
    assert told(capsys, "data", "check", "d1", "--namespace", nsid, code=DIFFERENT)["checked"][0]["damaged"] == 1
    assert main(["data", "check", "d1", "--namespace", nsid]) == DIFFERENT
    assert "CRC-32" in capsys.readouterr().out
    told(capsys, "data", "take", "d1", nsid, "--delete")
    assert main(["data", "check", str(tmp_path / "set")]) == OK
    assert "all whole" in capsys.readouterr().out


def test_mistakes(drives: str, tmp_path: Path, capsys: Capture) -> None:
    """Wrong usage is one line with a next step, and no drive is touched."""
    home = str(folder(tmp_path / "set", 6))
    for words, text in (
        ((drives, home, "--shares", "1:2:3"), "one each: 2:1:1"),
        ((drives, home, "--private", "--private-share", "0.5"), "leave one of them out"),
        (("d0", home, "--private-share", "0.5", "--namespace", "1"), "leave --private-share out"),
        (("d0", str(tmp_path / "none")), "no such folder"),
        (("d0", f"{home}.tar.gz"), "gunzip"),
    ):
        assert main(["data", "put", *words]) != OK
        assert text in capsys.readouterr().err
    for words in (("d0,d0", home), ("d0", home, "--private-share", "2"), ("d0", home, "--shares", "x")):
        with pytest.raises(SystemExit):
            main(["data", "put", *words])
