"""What the subsystem remembers without power: nvram.json, strictly loaded and atomically replaced."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emucsd_firmware import nvram
from emucsd_firmware.errors import StoreError, StoreGeometry, StoreTruncated, StoreVersion
from emucsd_firmware.profile import load
from emucsd_wire.identify import IDENTIFY_CONTROLLER, Cns
from emucsd_wire.logs import SMART_LOG, LogId
from emucsd_wire.nvme import Admin, Register
from tests.unit.nvme_host import ENABLE, IDENTITY, MIB, Bench

Edit = Callable[[dict[str, Any]], None]


def shut_down(bench: Bench, number: int) -> None:
    bench.hosts[number].write(Register.CC, ENABLE.replace(shn=1))


def cycles(bench: Bench) -> tuple[int, int]:
    """Power cycles and unsafe shutdowns, as a host reads them."""
    page = SMART_LOG.unpack(bench.hosts[0].enable().log(LogId.SMART, 512))
    return page.power_cycles, page.unsafe_shutdowns


def test_a_new_drive(bench: Bench) -> None:
    """A new drive has one shared namespace over all of it, and the file says so."""
    stored = json.loads((bench.folder / nvram.NAME).read_text())
    (space,) = stored["namespaces"]
    assert space == {"nsid": 1, "size": 64 * MIB, "lba_shift": 9, "shared": True, "attached": [1, 2], "made": 1}
    assert (stored["drive"], stored["version"]) == (str(IDENTITY), nvram.VERSION)
    assert not list(bench.folder.glob("*.new"))


def test_drives_differ(folder: Path) -> None:
    """Two drives have different serial numbers, NQNs and namespace identifiers: the kernel drops duplicates."""
    found = []
    for name in "ab":
        (folder / name).mkdir()
        bench = Bench(folder / name, identity=None)
        host = bench.hosts[0].enable()
        page = IDENTIFY_CONTROLLER.unpack(host.identify(Cns.CONTROLLER))
        found.append({page.sn, page.subnqn, host.identify(Cns.NAMESPACE_DESCRIPTORS, 1)})
        bench.close()
    assert found[0].isdisjoint(found[1])


def test_safe_and_unsafe_shutdowns(folder: Path) -> None:
    """Power cycles count openings; one is unsafe when a host that enabled a controller did not shut it down."""
    first = Bench(folder)
    assert cycles(first) == (1, 0)
    shut_down(first, 0)
    second = Bench(folder)
    assert cycles(second) == (2, 0)
    second.hosts[1].enable()
    shut_down(second, 0)
    third = Bench(folder)
    assert cycles(third) == (3, 1)
    shut_down(third, 0)
    third.hosts[0].disable()
    third.hosts[0].enable()
    fourth = Bench(folder)
    assert cycles(fourth) == (4, 2)
    fourth.hosts[0].disable()
    fifth = Bench(folder)
    assert cycles(fifth) == (5, 3)
    sixth = Bench(folder)
    shut_down(fifth, 0)
    assert sixth.subsystem.totals().power_cycles == 6
    for bench in (first, second, third, fourth, fifth, sixth):
        bench.close()


def test_counters_add_up_over_power_cycles(folder: Path) -> None:
    """A checkpoint adds this run's counters to the drive's life, once."""
    first = Bench(folder)
    first.records[0]["counters"]["blocks_read"] = 5000
    first.wall.ns += 3600_000_000_000
    first.subsystem.checkpoint()
    first.subsystem.checkpoint()
    first.records[1]["counters"]["blocks_read"] = 1000
    assert first.subsystem.totals().blocks_read == 6000
    first.subsystem.checkpoint()
    second = Bench(folder)
    totals = second.subsystem.totals()
    assert (totals.blocks_read, totals.powered_ns) == (6000, 3600_000_000_000)
    first.close()
    second.close()


def test_counters_are_kept_now_and_then(bench: Bench) -> None:
    """A drive in use saves its counters every ten minutes: one that is killed loses no more than that."""
    host = bench.hosts[0].enable()
    bench.records[0]["counters"]["reads"] = 7
    for seconds, kept in ((1, 0), (600, 7)):
        bench.wall.ns += seconds * 1_000_000_000
        host.ok(Admin.KEEP_ALIVE)
        stored = nvram.load(bench.folder)
        assert stored is not None
        assert (stored.totals.reads, stored.clean) == (kept, False)


def test_shutdown_saves_counters(bench: Bench) -> None:
    """The last host's shutdown is a checkpoint of the counters too."""
    bench.hosts[0].enable()
    bench.records[0]["counters"]["writes"] = 9
    shut_down(bench, 0)
    stored = nvram.load(bench.folder)
    assert stored is not None
    assert (stored.totals.writes, stored.clean) == (9, True)


def edit(folder: Path, change: Edit) -> None:
    path = folder / nvram.NAME
    stored = json.loads(path.read_text())
    change(stored)
    path.write_text(json.dumps(stored))


def space(**fields: Any) -> Edit:
    return lambda stored: stored["namespaces"][0].update(fields)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda s: s.update(version=2), StoreVersion, "has version 2, this firmware reads 1"),
        (lambda s: s.pop("version"), StoreVersion, "has version none"),
        (lambda s: s.update(colour="red"), StoreError, "colour"),
        (lambda s: s.pop("namespaces"), StoreError, "namespaces"),
        (lambda s: s.update(drive="me"), StoreError, "UUID"),
        (lambda s: s["totals"].update(reads=-1), StoreError, ">= 0"),
        (lambda s: s["totals"].update(reads="1"), StoreError, "Expected `int`"),
        (lambda s: s["sanitize"].update(status=9), StoreError, "Invalid enum value 9"),
        (space(nsid=33), StoreError, "namespace 33 is outside 1..32"),
        (space(nsid=0), StoreError, "namespace 0 is outside"),
        (space(lba_shift=10), StoreError, "lba_shift 10"),
        (space(size=100), StoreError, "less than one block"),
        (space(attached=[3]), StoreError, "attached to"),
        (space(attached=[1, 1]), StoreError, "attached to"),
        (space(shared=False), StoreError, "is private and attached to 2"),
        (space(made=7), StoreError, "made as number 7, 1 were made"),
        (lambda s: s["namespaces"].append(dict(s["namespaces"][0])), StoreError, "there twice"),
    ],
)
def test_strict_loading(bench: Bench, change: Edit, error: type[StoreError], words: str) -> None:
    """A file that says what can't be is refused, with its name, the value and what to do next."""
    edit(bench.folder, change)
    with pytest.raises(error, match=words) as caught:
        Bench(bench.folder)
    assert str(bench.folder / nvram.NAME) in str(caught.value)
    assert "restore it" in str(caught.value)


@pytest.mark.parametrize("keep", [0, 1, 60])
def test_a_truncated_file(bench: Bench, keep: int) -> None:
    """A file that was cut off is Truncated, not an empty drive."""
    path = bench.folder / nvram.NAME
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(StoreTruncated, match=r"no whole JSON object"):
        Bench(bench.folder)


@pytest.mark.parametrize("text", [b"[]", b"null", b'{"version": 1}', b"\xff\xfe\x00", b'"x"'])
def test_other_files(bench: Bench, text: bytes) -> None:
    """A file of another kind is a StoreError too."""
    (bench.folder / nvram.NAME).write_bytes(text)
    with pytest.raises(StoreError, match=nvram.NAME):
        Bench(bench.folder)


def test_a_smaller_drive(bench: Bench) -> None:
    """Namespaces that do not fit the capacity asked for are refused: the store is another drive's."""
    with pytest.raises(StoreGeometry, match="more than the drive's 33554432"):
        Bench(bench.folder, load("null", capacity_bytes=32 * MIB))


def test_a_larger_drive(bench: Bench) -> None:
    """A larger drive opens, with room for more namespaces."""
    again = Bench(bench.folder, load("null", capacity_bytes=128 * MIB))
    assert again.subsystem.namespaces.unallocated == 64 * MIB
    again.close()


def test_a_disk_that_is_full(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the file can't be written the command fails inside, the drive goes on, and the old file stays whole."""
    host = bench.hosts[0].enable()
    before = (bench.folder / nvram.NAME).read_bytes()
    (bench.folder / f"{nvram.NAME}.new").mkdir()
    done = host.command(Admin.SET_FEATURES, cdw10=1 << 31 | 1, cdw11=3)
    assert done.status == 0x006
    assert (bench.folder / nvram.NAME).read_bytes() == before
    (bench.folder / f"{nvram.NAME}.new").rmdir()
    host.ok(Admin.SET_FEATURES, cdw10=1 << 31 | 1, cdw11=3)


def test_enabling_with_a_full_disk_is_fatal(bench: Bench) -> None:
    """A controller that can't note that a host came does not pretend to be ready."""
    (bench.folder / f"{nvram.NAME}.new").mkdir()
    host = bench.hosts[0]
    host.enable()
    assert (host.csts.rdy, host.csts.cfs) == (0, 1)
    assert host.port.service() is False
