"""A flash drive without a controller, for tests: the FTL's entry points over a real store and a real NAND model."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from emucsd_firmware import profile as profiles
from emucsd_firmware.ftl.gc import background, on_job
from emucsd_firmware.ftl.mapping import bad_mask, location, read_page, submit_read
from emucsd_firmware.ftl.state import Ftl
from emucsd_firmware.ftl.store import Store
from emucsd_firmware.ftl.trim import deallocate
from emucsd_firmware.ftl.write import commit_write, flush, mark_bad, prepare_write, set_write_cache
from emucsd_firmware.nand.jobs import close_job, job_finish, open_job, pop_done
from emucsd_firmware.nand.model import NandModel
from emucsd_firmware.nand.state import BLOCK, Nand
from emucsd_firmware.nand.timing import advance, next_event
from emucsd_firmware.profile import Profile
from emucsd_wire.layout import I64, State
from emucsd_wire.words import copy, equal, fill, get_i64, jit, pointer, put_i64

COMMANDS = 8  # jobs that stand for commands
NEVER = 1 << 62


class Root(State):
    """What a drive's root record is, as far as the FTL cares."""

    now: I64
    ended: I64  # address of COMMANDS int64: when each job ended, -1 while it runs
    nand: Nand
    ftl: Ftl


root_at = pointer(Root)


@jit
def write_page(address: int, job: int, lpn: int, offset: int, source: int, count: int, fua: int, mark: int) -> int:
    """One page write as the controller does it. :returns: the time of its end, -1: with its job, or -status"""
    root = root_at(address, 0)
    whole = 1 if count == root.ftl.page_bytes else 0
    open_job(root.nand, job)
    put_i64(root.ended, job, -1)
    image = prepare_write(root.ftl, root.nand, root.now, job, lpn, whole)
    if image < 0:
        close_job(root.nand, job, root.now)
        return image
    copy(image + offset, source, count)
    if mark != 0:
        mark_bad(root.ftl, lpn, offset >> 9, count >> 9, 1)
    elif root.ftl.image_bad != 0:
        mark_bad(root.ftl, lpn, offset >> 9, count >> 9, 0)
    early = commit_write(root.ftl, root.nand, root.now, job, lpn, fua)
    finish = close_job(root.nand, job, root.now)
    if finish >= 0:
        put_i64(root.ended, job, finish)
    if early < -1 or finish < 0:
        return early if early < -1 else -1
    return max(early, finish)


@jit
def flush_all(address: int, job: int) -> int:
    """:returns: the time of its end, -1: with its job, or -status"""
    root = root_at(address, 0)
    open_job(root.nand, job)
    put_i64(root.ended, job, -1)
    status = flush(root.ftl, root.nand, root.now, job)
    finish = close_job(root.nand, job, root.now)
    if finish >= 0:
        put_i64(root.ended, job, finish)
    return -status if status != 0 else finish


@jit
def read_into(address: int, job: int, lpn: int, target: int, count: int) -> int:
    """:returns: the time of its end, -1: with its job, or -status"""
    root = root_at(address, 0)
    open_job(root.nand, job)
    put_i64(root.ended, job, -1)
    status = submit_read(root.ftl, root.nand, root.now, BLOCK, lpn, count, job)
    page = read_page(root.ftl, lpn)
    if page == 0:
        fill(target, 0, count)
    else:
        copy(target, page, count)
    finish = close_job(root.nand, job, root.now)
    if finish >= 0:
        put_i64(root.ended, job, finish)
    return -status if status != 0 else finish


@jit
def run_until(address: int, until: int) -> None:
    """Advance the model and hand ended jobs to whom they belong."""
    root = root_at(address, 0)
    while True:
        when = next_event(root.nand)
        if when > until or when == NEVER:
            break
        advance(root.nand, when)
        root.now = max(root.now, when)
        while True:
            job = pop_done(root.nand)
            if job < 0:
                break
            if job >= root.ftl.first_job:
                on_job(root.ftl, root.nand, job, job_finish(root.nand, job))
            else:
                put_i64(root.ended, job, job_finish(root.nand, job))
    if until < NEVER:
        root.now = max(root.now, until)


@jit
def run_job(address: int, job: int) -> int:
    """Advance the model until a command's job has ended. :returns: when it did, -1 if it never will"""
    root = root_at(address, 0)
    while get_i64(root.ended, job) < 0 and next_event(root.nand) != NEVER:
        run_until(address, next_event(root.nand))
    return get_i64(root.ended, job)


@jit
def trim_pages(address: int, lpn: int, count: int) -> int:
    return deallocate(root_at(address, 0).ftl, lpn, count)


@jit
def work(address: int, slices: int) -> int:
    """Up to so many background slices. :returns: how many did something"""
    root = root_at(address, 0)
    done = 0
    for _ in range(slices):
        if background(root.ftl, root.nand, root.now) == 0:
            break
        done += 1
    return done


@jit
def cache_on(address: int, on: int) -> int:
    root = root_at(address, 0)
    return set_write_cache(root.ftl, root.nand, root.now, on)


@jit
def place_of(address: int, lpn: int) -> int:
    return location(root_at(address, 0).ftl, lpn)


@jit
def mask_of(address: int, lpn: int) -> int:
    return bad_mask(root_at(address, 0).ftl, lpn)


@jit
def differing(address: int, versions: int, count: int, stamp: int) -> int:
    """First page of ``count`` whose content isn't ``(lpn, version)`` repeated (version 0: zeros), or -1."""
    root = root_at(address, 0)
    for lpn in range(count):
        version = get_i64(versions, lpn)
        page = read_page(root.ftl, lpn)
        if version == 0:
            if page != 0 and not equal(page, root.ftl.zero_page, root.ftl.page_bytes):
                return lpn
            continue
        if page == 0:
            return lpn
        stamp_page(stamp, lpn, version, root.ftl.page_bytes)
        if not equal(page, stamp, root.ftl.page_bytes):
            return lpn
    return -1


@jit
def stamp_page(target: int, lpn: int, version: int, page_bytes: int) -> None:
    """A page's content that tells whose and which it is, all through."""
    for index in range(0, page_bytes >> 3, 2):
        put_i64(target, index, lpn)
        put_i64(target, index + 1, version)


@contextmanager
def memory_folder() -> Iterator[Path]:
    """A temporary folder in memory where there is one: these tests are no tests of the disk."""
    shared = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(prefix="emucsd-ftl-", dir=shared if shared.is_dir() else None))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def tiny(name: str = "null", /, **overrides: Any) -> Profile:
    """A profile small enough that garbage collection is never far: 2 x 2 dies, 14 blocks of 8 pages, 1 MiB."""
    shape = {"channels": 2, "dies": 2, "planes": 1, "blocks": 14, "pages": 8, "page_bytes": 4096}
    small = {f"geometry.{key}": value for key, value in shape.items()} | {"capacity_bytes": 1 << 20}
    return profiles.load(name, **{**small, **overrides})


class FlashDrive:
    """A store and a NAND model under one root record, driven page by page."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.page_bytes = store.profile.geometry.page_bytes
        self.root = np.zeros(1, Root.dtype)
        self.ended = np.full(COMMANDS, -1, np.int64)
        self.address = int(self.root.ctypes.data)
        self.root[0]["ended"] = self.ended.ctypes.data
        self.nand = NandModel(store.profile, COMMANDS + store.jobs)
        self.nand.fill(self.root[0]["nand"])
        store.fill(self.root[0]["ftl"], COMMANDS)
        self._page = np.zeros(self.page_bytes, np.uint8)

    @classmethod
    def create(cls, folder: Path, profile: Profile, **options: Any) -> FlashDrive:
        return cls(Store.create(folder, profile, **options))

    @classmethod
    def open(cls, folder: Path, profile: Profile | None = None, **options: Any) -> FlashDrive:
        return cls(Store.open(folder, profile, **options))

    @property
    def ftl(self) -> Any:
        return self.root[0]["ftl"]

    @property
    def now(self) -> int:
        return int(self.root[0]["now"])

    def write(
        self, lpn: int, data: bytes, offset: int = 0, *, job: int = 0, fua: bool = False, mark: bool = False
    ) -> int:
        """:returns: as ``write_page``"""
        source = np.frombuffer(data, np.uint8)
        return int(write_page(self.address, job, lpn, offset, source.ctypes.data, len(data), int(fua), int(mark)))

    def read(self, lpn: int, *, job: int = 0) -> bytes:
        """The page's bytes. :raises AssertionError: it can't be read"""
        status = int(read_into(self.address, job, lpn, self._page.ctypes.data, self.page_bytes))
        assert status >= -1, f"reading page {lpn}: status {-status:#x}"
        return self._page.tobytes()

    def read_status(self, lpn: int, *, job: int = 0) -> int:
        """:returns: as ``read_into``"""
        return int(read_into(self.address, job, lpn, self._page.ctypes.data, self.page_bytes))

    def trim(self, lpn: int, count: int = 1) -> int:
        return int(trim_pages(self.address, lpn, count))

    def flush(self, *, job: int = 1) -> int:
        return int(flush_all(self.address, job))

    def settle(self) -> None:
        """Let modelled time run until nothing is under way."""
        run_until(self.address, NEVER)

    def run_until(self, until: int) -> None:
        run_until(self.address, until)

    def wait(self, job: int = 0) -> int:
        """Let time run until the job has ended. :returns: when that was"""
        ended = int(run_job(self.address, job))
        assert ended >= 0, f"job {job} never ends"
        return ended

    def background(self, slices: int = 1) -> int:
        return int(work(self.address, slices))

    def set_write_cache(self, on: bool) -> int:
        return int(cache_on(self.address, int(on)))

    def location(self, lpn: int) -> int:
        return int(place_of(self.address, lpn))

    def bad_mask(self, lpn: int) -> int:
        return int(mask_of(self.address, lpn))

    def snapshot(self) -> dict[str, Any]:
        return self.store.snapshot()

    def crash(self) -> None:
        """Everything in DRAM is gone; what the flash holds stays."""
        self.store.close(clean=False)

    def close(self) -> None:
        self.flush()
        self.settle()
        self.store.close(clean=True)


def page(drive: FlashDrive, tag: int) -> bytes:
    """A whole page of one number."""
    return np.full(drive.page_bytes // 8, tag, np.int64).tobytes()
