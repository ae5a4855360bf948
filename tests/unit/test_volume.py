"""The volume: names, extents, and a directory that survives a crash at any write."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from emucsd.errors import InvalidArgument
from emucsd.volume import (
    UNIT,
    Extent,
    NameTaken,
    NameUnknown,
    Volume,
    VolumeDamaged,
    VolumeFull,
    VolumeMissing,
)


class PowerCut(Exception):
    """The namespace stops taking writes."""


class ArraySpace:
    """A namespace in memory, whose power fails after ``writes`` blocks have been written."""

    def __init__(self, size: int = 1 << 20, lba_bytes: int = 512) -> None:
        self.data = np.zeros(size, np.uint8)
        self.lba_bytes = lba_bytes
        self.blocks = size // lba_bytes
        self.left = -1

    def read(self, slba: int, blocks: int) -> NDArray[np.uint8]:
        return self.data[slba * self.lba_bytes : (slba + blocks) * self.lba_bytes].copy()

    def write(self, slba: int, data: NDArray[np.uint8]) -> None:
        for block, content in enumerate(data.reshape(-1, self.lba_bytes)):
            if self.left == 0:
                raise PowerCut
            self.left -= 1
            at = (slba + block) * self.lba_bytes
            self.data[at : at + self.lba_bytes] = content

    def flush(self) -> None:
        if self.left == 0:
            raise PowerCut


@pytest.mark.parametrize("lba_bytes", [512, 4096])
def test_survives_reopening(lba_bytes: int) -> None:
    """Names, sizes, extents and attributes are found again by another client."""
    space = ArraySpace(lba_bytes=lba_bytes)
    made = Volume.open(space, create=True).create("träger", 100_000, {"dim": 32})
    found = Volume.open(space)["träger"]
    assert found == made
    assert found.size == 100_000
    assert sum(e.blocks for e in found.extents) * lba_bytes == 4 * UNIT
    assert all(e.slba * lba_bytes % UNIT == 0 for e in found.extents)
    assert found.attributes == {"dim": 32}


def test_blank_foreign_and_damaged() -> None:
    """A volume is made only where nothing is; foreign data and broken directories are named as such."""
    space = ArraySpace()
    with pytest.raises(VolumeMissing):
        Volume.open(space)
    space.data[5] = 1
    with pytest.raises(VolumeMissing, match="overwrites"):
        Volume.open(space, create=True)
    Volume.format(space)
    Volume.open(space)
    space.data[UNIT:] = 0
    with pytest.raises(VolumeDamaged, match="both copies"):
        Volume.open(space)
    space.data[20] ^= 1
    with pytest.raises(VolumeDamaged, match="CRC"):
        Volume.open(space)


def test_smaller_namespace() -> None:
    """A volume that says it is larger than its namespace is refused; so is a namespace too small for any."""
    space = ArraySpace()
    Volume.format(space)
    space.blocks //= 2
    with pytest.raises(VolumeDamaged, match="blocks"):
        Volume.open(space)
    with pytest.raises(VolumeFull):
        Volume.format(ArraySpace(4 * UNIT))


def test_first_fit_and_fragments() -> None:
    """The first hole that holds everything is taken; without one, the first holes are, in order."""
    space = ArraySpace(2 << 20)
    volume = Volume.open(space, create=True)
    free = volume.free_bytes
    entries = [volume.create(name, 4 * UNIT) for name in "abc"]
    volume.remove("a")
    volume.remove("c")
    assert volume.create("small", 1).extents[0].slba == entries[0].extents[0].slba
    assert volume.create("large", 8 * UNIT).extents[0].slba == entries[2].extents[0].slba
    rest = volume.create("rest", volume.free_bytes)
    assert len(rest.extents) == 2
    assert volume.free_bytes == 0
    with pytest.raises(VolumeFull, match="0 of"):
        volume.create("more", 1)
    for entry in volume.list():
        volume.remove(entry.name)
    assert volume.free_bytes == free == volume.size


def test_extent_limit() -> None:
    """Reservations may be cut into extents of a given length."""
    volume = Volume.open(ArraySpace(), create=True)
    extents = volume.reserve(5 * UNIT - 1, extent_bytes=2 * UNIT)
    assert [e.blocks * 512 for e in extents] == [2 * UNIT, 2 * UNIT, UNIT]
    with pytest.raises(InvalidArgument):
        volume.reserve(UNIT, extent_bytes=UNIT + 512)
    with pytest.raises(InvalidArgument):
        volume.reserve(0)


def test_names() -> None:
    """Taken, unknown and impossible names are three typed errors."""
    volume = Volume.open(ArraySpace(), create=True)
    volume.create("a", 1)
    with pytest.raises(NameTaken, match="'a'"):
        volume.create("a", 1)
    with pytest.raises(NameTaken):
        volume.publish("a", 1, volume.reserve(1), {})
    with pytest.raises(NameUnknown, match="it has: a"):
        volume.remove("b")
    assert "a" in volume
    assert "b" not in volume
    for name in ("", "x" * 256, "a\nb"):
        with pytest.raises(InvalidArgument):
            volume.create(name, 1)


def test_two_clients() -> None:
    """A change looks first: names and space that another client took are not given out again."""
    space = ArraySpace()
    one, two = Volume.open(space, create=True), Volume.open(space)
    mine = one.reserve(UNIT)
    theirs = two.reserve(UNIT)
    assert mine == theirs
    one.publish("one", UNIT, mine, {})
    with pytest.raises(VolumeFull, match="meanwhile"):
        two.publish("two", UNIT, theirs, {})
    two.create("two", UNIT)
    one.reload()
    assert [entry.name for entry in one.list()] == ["one", "two"]


def test_directory_full() -> None:
    """A directory that would not fit is refused, and what was there stays."""
    volume = Volume.open(ArraySpace(), create=True)
    with pytest.raises(VolumeFull, match="directory"):
        volume.create("a", 1, {"text": "x" * (4 * UNIT)})
    assert volume.list() == []


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 6 * UNIT)), min_size=1, max_size=8), st.data())
def test_crash_at_any_write(steps: list[tuple[str, int]], data: st.DataObject) -> None:
    """Cut off after any number of blocks, the volume holds the names of before or of after the change, whole."""
    space = ArraySpace()
    volume = Volume.open(space, create=True)
    model: dict[str, tuple[int, tuple[Extent, ...]]] = {}
    for name, size in steps:
        before = dict(model)
        space.left = data.draw(st.one_of(st.just(-1), st.integers(0, 12)))
        try:
            if name in model:
                after = {other: value for other, value in model.items() if other != name}
                volume.remove(name)
            else:
                extents = volume.reserve(size)
                after = {**model, name: (size, extents)}
                volume.publish(name, size, extents, {})
        except PowerCut:
            pass
        except VolumeFull:
            after = before
        space.left = -1
        volume = Volume.open(space)
        model = {entry.name: (entry.size, entry.extents) for entry in volume.list()}
        assert model in (before, after)
        spans = sorted((e.slba, e.slba + e.blocks) for _, extents in model.values() for e in extents)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


def test_exchange_is_atomic() -> None:
    """Two names change what they stand for, but for what stays; cut at any write, both have or neither has."""
    space = ArraySpace()
    volume = Volume.open(space, create=True)
    before = [volume.create(name, 1000 * n, {"seed": n, "uid": n}) for n, name in ((1, "a"), (2, "b"))]
    with pytest.raises(NameUnknown):
        volume.exchange("a", "c")
    seen = set()
    for cut in itertools.count():
        trial = ArraySpace()
        trial.data[:] = space.data
        trial.left = cut
        try:
            Volume.open(trial).exchange("a", "b", keep=["uid"])
            done = True
        except PowerCut:
            done = False
        trial.left = -1
        found = Volume.open(trial)
        moved = found["a"].extents == before[1].extents
        seen.add(moved)
        assert moved or not done
        for name, other, mine in (("a", "b", 0), ("b", "a", 1)):
            entry, which = found[name], 1 - mine if moved else mine
            assert (entry.size, entry.extents) == (before[which].size, before[which].extents)
            assert entry.attributes == {"seed": which + 1, "uid": mine + 1}, (name, other)
        if done:
            break
    assert seen == {False, True}
