"""The FTL against a plain dict of pages, whatever order of writes, trims, flushes, crashes and bad blocks comes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.unit.ftl_drive import FlashDrive, memory_folder, tiny

PAGES = 256  # the tiny drive's whole capacity
LPN = st.integers(0, PAGES - 1)
ZEROS = bytes(4096)

CONFIGS: dict[str, dict[str, Any]] = {
    "through": {},
    "buffered": {"buffer.pages": 6},
    "streams": {"ftl.streams": 3, "geometry.planes": 2, "geometry.blocks": 8, "buffer.pages": 3},
    "timed": {"name": "femu", "buffer.pages": 6, "buffer.write_ns": 1000},
    "one stream": {"ftl.streams": 1, "ftl.wear_gap": 2},
    "machine": {"durability": "machine", "buffer.pages": 4, "geometry.blocks": 16},
    "failing": {"reliability.program_fail_ppm": 2000, "reliability.erase_fail_ppm": 1000, "geometry.blocks": 30},
}


class FtlModel(RuleBasedStateMachine):
    """``kept[lpn]`` is what the page may hold after a crash, oldest first; its last is what it holds now."""

    config = "through"

    def __init__(self) -> None:
        super().__init__()
        self._files = ExitStack()
        self.folder = self._files.enter_context(memory_folder())
        self.kept: dict[int, list[bytes]] = {}
        self.marked: dict[int, int] = {}
        self.tag = 0
        settings = dict(CONFIGS[self.config])
        name = str(settings.pop("name", "null"))
        self.options = {"durability": settings.pop("durability", "process")}
        self.profile = tiny(name, **settings)
        self.drive = FlashDrive.create(self.folder / "drive", self.profile, **self.options)

    def teardown(self) -> None:
        self.check_all()
        self.drive.crash()
        self._files.close()

    # ---- what may happen ----

    @initialize(count=st.integers(0, PAGES))
    def fill(self, count: int) -> None:
        """Begin with a drive that is full to some degree."""
        for lpn in range(count):
            self.put(lpn, 0, self.pattern(4096))

    def pattern(self, count: int) -> bytes:
        self.tag += 1
        return np.full(count // 8, self.tag, np.int64).tobytes()

    def put(self, lpn: int, offset: int, data: bytes, *, fua: bool = False) -> None:
        before = self.now(lpn)
        status = self.drive.write(lpn, data, offset, fua=fua)
        assert status >= -1, f"write: {-status:#x}"
        if status == -1:
            self.drive.wait()
        content = before[:offset] + data + before[offset + len(data) :]
        durable = fua or not self.drive.ftl["write_cache"]
        self.kept[lpn] = [content] if durable else [*self.kept.get(lpn, [ZEROS]), content]

    def now(self, lpn: int) -> bytes:
        return self.kept[lpn][-1] if lpn in self.kept else ZEROS

    @rule(lpn=LPN, fua=st.booleans())
    def write(self, lpn: int, fua: bool) -> None:
        self.put(lpn, 0, self.pattern(4096), fua=fua)

    @rule(lpn=LPN, first=st.integers(0, 7), data=st.data())
    def write_part(self, lpn: int, first: int, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, 8 - first), "count")
        self.put(lpn, 512 * first, self.pattern(512 * count))

    @rule(seed=st.integers(0, 1 << 30), count=st.integers(1, 300))
    def overwrite(self, seed: int, count: int) -> None:
        """Random overwrites: garbage collection is never far."""
        for lpn in np.random.default_rng(seed).integers(0, PAGES, count):
            self.put(int(lpn), 0, self.pattern(4096))

    @rule(lpn=LPN, count=st.integers(1, 64))
    def trim(self, lpn: int, count: int) -> None:
        count = min(count, PAGES - lpn)
        assert self.drive.trim(lpn, count) == 0
        for page in range(lpn, lpn + count):
            self.kept.pop(page, None)

    @rule()
    def flush(self) -> None:
        assert self.drive.flush() >= -1
        self.drive.settle()
        assert self.drive.ended[1] >= 0, "the flush never ended"
        for lpn, contents in self.kept.items():
            self.kept[lpn] = contents[-1:]

    @rule(slices=st.integers(1, 40))
    def idle(self, slices: int) -> None:
        self.drive.background(slices)

    @rule(ns=st.integers(0, 5_000_000))
    def time_goes_on(self, ns: int) -> None:
        self.drive.run_until(self.drive.now + ns)

    @rule()
    def checkpoint(self) -> None:
        self.drive.store.checkpoint()

    @precondition(lambda self: self.drive.ftl["buffer_pages"] > 0)
    @rule(on=st.booleans())
    def write_cache(self, on: bool) -> None:
        assert self.drive.set_write_cache(on) == 0
        if not on:
            for lpn, contents in self.kept.items():
                self.kept[lpn] = contents[-1:]

    @rule(lpn=LPN)
    def read(self, lpn: int) -> None:
        assert self.drive.read(lpn) == self.now(lpn)

    @rule()
    def stop_and_open(self) -> None:
        self.drive.close()
        self.drive = FlashDrive.open(self.folder / "drive", self.profile, **self.options)
        assert self.drive.store.recovered.clean
        for lpn, contents in self.kept.items():
            self.kept[lpn] = contents[-1:]
        self.check_all()

    @rule(rescan=st.sampled_from([False, False, False, True]))
    def crash_and_open(self, rescan: bool) -> None:
        self.drive.crash()
        self.drive = FlashDrive.open(self.folder / "drive", self.profile, rescan=rescan, **self.options)
        assert not self.drive.store.recovered.clean
        assert self.drive.store.recovered.lost_entries == 0
        for lpn, contents in list(self.kept.items()):
            found = self.drive.read(lpn)
            assert found in contents, f"page {lpn} came back as none of its {len(contents)} versions"
            self.kept[lpn] = [found]
        self.check_all()

    # ---- what must hold ----

    @invariant()
    def sound(self) -> None:
        self.drive.store.audit()

    def check_all(self) -> None:
        for lpn in range(PAGES):
            assert self.drive.read(lpn) == self.now(lpn), f"page {lpn}"


def model(config: str) -> Callable[[], None]:
    machine: Any = type("FtlModel", (FtlModel,), {"config": config})
    case = machine.TestCase
    case.settings = settings(max_examples=12, stateful_step_count=30)
    return lambda: case("runTest").runTest()


@pytest.mark.parametrize("config", CONFIGS)
def test_model(config: str) -> None:
    """Every read returns what was last written; after a crash every page holds a version that it may."""
    model(config)()
