"""A drive's flash and firmware state in a folder: create, open (with recovery), checkpoint, sync, close.

store = Store.open_or_create(folder, profile)
store.fill(root["ftl"], first_job)      # the data plane works on this record from now on
store.checkpoint()                      # now and then, from the control thread
store.close(clean=True)                 # after the data plane has flushed and ended
"""

from __future__ import annotations

import threading
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from emucsd_firmware.errors import StoreError, StoreGeometry
from emucsd_firmware.ftl import recovery, statistics, superblock
from emucsd_firmware.ftl.audit import audit
from emucsd_firmware.ftl.blocks import release_limbo
from emucsd_firmware.ftl.checkpoint import Checkpointer, load_word, read_chunk_pages
from emucsd_firmware.ftl.files import FLASH, Files
from emucsd_firmware.ftl.recovery import Found
from emucsd_firmware.ftl.state import CHECKPOINTED, PUBLISHED, TRIMS_FOLDED, TRIMS_WRITTEN, WANTED, Ftl, ftl_at
from emucsd_firmware.ftl.superblock import Superblock
from emucsd_firmware.ftl.tables import WORKING_BLOCKS, Tables, capacity_pages
from emucsd_firmware.nand.model import NandModel
from emucsd_firmware.nand.reliability import safe_rate
from emucsd_firmware.profile import Profile, from_dict
from emucsd_wire.words import jit

DURABILITIES = ("process", "machine")
EPOCH_BITS = 36  # of a sequence number: each opening counts from its superblock's generation, times this power of two
PAGES_BETWEEN = 1 << 20  # programmed pages after which a checkpoint is due: bounds what recovery plays back
RESIDENT_BYTES = 1 << 30  # of mapped flash, beyond which a checkpoint gives memory back
DISK_RESERVE = 128 << 20  # bytes: with less left on the file system the drive takes no more writes


@dataclass(frozen=True)
class RecoveryReport:
    """What opening a store did and found."""

    clean: bool  # it had been stopped in order
    rescanned: bool  # the map was rebuilt from the flash alone
    seconds: float
    replayed_blocks: int = 0
    replayed_pages: int = 0
    replayed_trims: int = 0
    torn_pages: int = 0
    lost_entries: int = 0  # map entries that led nowhere: damage
    rebuilt: list[str] = field(default_factory=list)  # files that were missing or short and were made again


@jit
def _release_limbo(address: int) -> None:
    release_limbo(ftl_at(address, 0))


def address_of(record: Any) -> int:
    """Address of a record's memory (an np.void view)."""
    return int(record.__array_interface__["data"][0])


class Store:
    """One open store. Made by ``create``, ``open`` or ``open_or_create``; closed by ``close``."""

    def __init__(self, files: Files, profile: Profile, durability: str) -> None:
        self.profile = profile
        self.folder = files.folder
        self.durability = durability
        self.recovered = RecoveryReport(clean=True, rescanned=False, seconds=0.0)
        self._files = files
        self._tables = Tables(profile)
        self._memory = np.zeros(1, Ftl.dtype)
        self._record: Any = self._memory[0]
        self._lock = threading.Lock()
        self._closed = False
        self._tables.fill(self._record)
        self._fill_files(self._record)
        self._checkpointer = Checkpointer(files, self._tables, machine=durability == "machine")

    # ---- making and opening ----

    @classmethod
    def create(cls, folder: Path, profile: Profile, *, durability: str = "process") -> Store:
        """Make a new, empty drive in a folder.

        :raises StoreError: there is one already, or the file system or the flash can't hold it
        """
        _check_durability(durability)
        description = {"uuid": str(uuid.uuid4()), "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        files = Files.create(folder, profile, description)
        try:
            store = cls(files, profile, durability)
            store._mark_factory_bad()
            found = store._load(clean=True, since=0, covered=(0, 0))
            store._finish(int(found["usable"]))
            store._check_spare()
            store._checkpointer.write_superblock(store._record, 0, (0, 0), clean=False)
        except BaseException:
            (folder / "super.json").unlink(missing_ok=True)
            files.close()
            raise
        return store

    @classmethod
    def open(
        cls, folder: Path, profile: Profile | None = None, *, durability: str = "process", rescan: bool = False
    ) -> Store:
        """Open a drive, after whatever recovery that takes; ``recovered`` says what.

        :param profile: times and settings; None: those it was made with. The geometry must be the drive's own
        :param rescan: rebuild the map from the flash although it seems whole
        :raises StoreError: not there, locked, truncated, of another version or geometry, damaged
        """
        _check_durability(durability)
        files = Files.open(folder)
        try:
            made = from_dict(files.description["profile"], str(folder / "super.json"), check=False)
            _check_geometry(folder, made, profile)
            files.open_files(made)
            block = superblock.read(files.fd("checkpoint.ftl"))
            if (rescan or block is None) and "map.ftl" not in files.rebuilt:
                files.remake("map.ftl", made)
            store = cls(files, profile or made, durability)
            store._recover(block)
        except BaseException:
            files.close()
            raise
        return store

    @classmethod
    def open_or_create(cls, folder: Path, profile: Profile, *, durability: str = "process") -> Store:
        """Open the drive in a folder; make it where there is none."""
        if (folder / "super.json").exists():
            return cls.open(folder, profile, durability=durability)
        return cls.create(folder, profile, durability=durability)

    def _fill_files(self, record: Any) -> None:
        names = {"media": "data.nand", "oob": "oob.nand", "headers": "blocks.nand", "journal": "trim.ftl"}
        for name, file in {**names, "map": "map.ftl"}.items():
            record[name] = self._files.address(file)
        for name, file in zip(("data_fd", "oob_fd", "blocks_fd", "trim_fd"), names.values(), strict=True):
            record[name] = self._files.fd(file)
        record["machine_durable"] = int(self.durability == "machine")

    def _mark_factory_bad(self) -> None:
        nand = NandModel(self.profile, 1, 1)
        bad = recovery.mark_factory_bad(self.address, address_of(nand.record))
        g = self.profile.geometry
        self._files.description["usable_blocks"] = g.die_count * g.blocks_per_die - bad
        self._files.write_description()

    def _load(self, *, clean: bool, since: int, covered: tuple[int, int]) -> Any:
        """Block tables, then (unless ``clean``) the map. :returns: what was found

        :param since: seq up to which the map file covers everything
        :param covered: of the trim journal: records, and the seq of the last; -1: none, all that it still has counts
        """
        found = np.zeros(1, Found.dtype)
        trims = covered[0]
        where = found.ctypes.data
        recovery.load_blocks(self.address, where, int(clean))
        if found[0]["corrupt"]:
            block = int(found[0]["corrupt"]) - 1
            raise StoreError(
                f"{self.folder / 'blocks.nand'}: the header of block {block} makes no sense; the file was damaged, "
                "restore it from a copy"
            )
        if not clean:
            exists = self._files.chunks_with_data()
            recovery.replay(self.address, where, since)
            trims = recovery.replay_trims(self.address, where, since, *covered, exists.ctypes.data)
            recovery.recount(self.address, where, exists.ctypes.data)
        self._tables.words[TRIMS_WRITTEN] = trims
        self._tables.words[TRIMS_FOLDED] = trims - found[0]["trims"]
        return found[0]

    def _recover(self, block: Superblock | None) -> None:
        begun = time.perf_counter()
        rescan = block is None or "map.ftl" in self._files.rebuilt
        since, covered, pages = -1, (-1, 0), None
        if block is not None:
            statistics.restore(self._record, block.counters)
            self._record["age_base"], self._record["marked_pages"] = block.age, block.marked_pages
            if not rescan:
                since, covered = block.checkpoint_seq, (block.trims, block.trim_seq)
                if block.clean:
                    pages = read_chunk_pages(self._files, block, len(self._tables.chunk_pages))
        found = self._load(clean=pages is not None, since=since, covered=covered)
        if pages is not None:
            self._tables.chunk_pages[:] = pages
            self._record["mapped"] = int(pages.sum(dtype=np.int64))
        self._record["marked_pages"] += found["marked"]
        self._begin_epoch(block, since)
        self._finish(int(found["usable"]))
        self._tables.words[CHECKPOINTED] = self._record["seq"] - found["pages"]
        if self.durability == "machine":  # what recovery changed, and what an opening before this one never synced
            self._files.sync(*FLASH, "map.ftl")
        self._checkpointer.write_superblock(self._record, since, covered, clean=False)
        self.recovered = RecoveryReport(
            clean=pages is not None,
            rescanned=rescan,
            seconds=time.perf_counter() - begun,
            replayed_blocks=int(found["blocks"]),
            replayed_pages=int(found["pages"]),
            replayed_trims=int(found["trims"]),
            torn_pages=int(found["torn"]),
            lost_entries=int(found["lost"]),
            rebuilt=list(self._files.rebuilt),
        )

    def _begin_epoch(self, block: Superblock | None, since: int) -> None:
        """Number pages from a value on that was never given out.

        What a computer's crash lost had numbers too, and remains of it may still lie on the disk: they must not pass
        for pages of this time.
        """
        newest = max(int(self._record["seq"]), since)
        generation = max(block.generation if block is not None else 0, newest >> EPOCH_BITS)
        self._checkpointer.generation = generation
        self._record["seq"] = max(newest, (generation + 1) << EPOCH_BITS)

    def _finish(self, usable: int) -> None:
        made = int(self._files.description["usable_blocks"])
        self._tables.set_spare(self._record, made)
        self._record["spare_total"] = self._record["spare_blocks"]
        self._tables.set_spare(self._record, usable)
        self._record["retired_blocks"] = made - usable
        self._record["read_only"] = int(self._record["spare_blocks"] < 0)
        self._record["disturb_limit"] = _disturb_limit(self.profile)
        recovery.finish_open(self.address)

    def _check_spare(self) -> None:
        if int(self._record["spare_blocks"]) < 0:
            g = self.profile.geometry
            usable = int(self._files.description["usable_blocks"])
            needed = -(-capacity_pages(self.profile) // g.pages) + WORKING_BLOCKS * g.die_count
            raise StoreGeometry(
                f"{self.folder}: {usable} blocks are good, {needed} are needed for {self.profile.capacity_bytes} bytes "
                "and to work; ask for less capacity, or for fewer factory-bad blocks"
            )

    # ---- running ----

    @property
    def jobs(self) -> int:
        """NAND jobs that the FTL needs, from ``first_job`` on."""
        return self._tables.jobs

    @property
    def address(self) -> int:
        """Address of the Ftl record in force."""
        return address_of(self._record)

    @property
    def description(self) -> dict[str, Any]:
        """What ``super.json`` says: uuid, creation, the profile it was made with."""
        return dict(self._files.description)

    def fill(self, record: Any, first_job: int, now: int = 0) -> None:
        """Move the FTL's state into a record (an np.void view of the drive's), which is in force from then on.

        :param first_job: the FTL's NAND jobs are this one to first_job + jobs - 1; those below are not its own
        :param now: the drive's clock, so that the age of data goes on from where it was
        """
        for name in Ftl.dtype.names or ():
            record[name] = self._record[name]
        self._tables.waits = np.zeros(2 * max(first_job, 1), np.int64)
        record["waits"] = self._tables.waits.ctypes.data
        record["first_job"] = first_job
        record["age_base"] = int(record["age_base"]) - now
        record["last_now"] = now
        self._record = record

    def checkpoint(self) -> int:
        """Bring the map's changes to its file, so that recovery plays back less. The data plane may go on meanwhile.

        Also gives mapped memory back where it has become much, and stops writes when the disk under it is nearly full.

        :returns: chunks written
        :raises StoreError: the disk did not take it; the last checkpoint stays in force
        """
        with self._lock:
            if self._closed:
                return 0
            self.guard()
            if _resident_shared() > RESIDENT_BYTES:
                self._files.forget_resident()
            return self._checkpointer.run(self._record, self.address)

    def checkpoint_due(self) -> bool:
        """Whether a checkpoint is needed now: many pages since the last, or the trim journal fills."""
        words = self._tables.words.ctypes.data
        since = load_word(words, PUBLISHED) - load_word(words, CHECKPOINTED)
        return since > PAGES_BETWEEN or load_word(words, WANTED) != 0

    def guard(self) -> bool:
        """Look at the disk under the store: a sparse file that can't grow would kill us. :returns: all is well"""
        free = self._files.free_bytes()
        if free < DISK_RESERVE:
            self._record["disk_full"] = 1
        elif free > 2 * DISK_RESERVE:
            self._record["disk_full"] = 0
        return not self._record["disk_full"]

    def sync(self) -> None:
        """Bring all that was written to the disk (durability "machine"). Only while the data plane stands still."""
        self._files.sync(*FLASH)
        self._record["barriers"] += 1
        _release_limbo(self.address)

    def snapshot(self) -> dict[str, Any]:
        """Counters and figures as plain values; see ``statistics``."""
        return statistics.snapshot(self._record, self._tables)

    def audit(self) -> None:
        """Check the FTL's tables against each other and against the flash. The data plane must stand still.

        :raises StoreError: an invariant does not hold
        """
        audit(self.address, self._record, self._tables)

    def close(self, *, clean: bool = True) -> None:
        """End. The data plane has ended before, and nothing may use the record afterwards.

        :param clean: write a checkpoint that needs no recovery; what is still in the write buffer is lost, as always
        :raises StoreError: the disk did not take the checkpoint; the store is closed all the same
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            try:
                if clean:
                    if self.durability == "machine":
                        self.sync()
                    recovery.save_counts(self.address)
                    self._checkpointer.run(self._record, self.address, clean=True)
            finally:
                self._files.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(clean=kind is None)


def _check_durability(durability: str) -> None:
    if durability not in DURABILITIES:
        raise StoreError(f"durability {durability!r}: must be one of {', '.join(DURABILITIES)}; choose one")


def _check_geometry(folder: Path, made: Profile, asked: Profile | None) -> None:
    if asked is None:
        return
    have = {**_shape(made), "capacity_bytes": made.capacity_bytes}
    want = {**_shape(asked), "capacity_bytes": asked.capacity_bytes}
    differ = [f"{name} {want[name]} (it has {have[name]})" for name in have if have[name] != want[name]]
    if differ:
        raise StoreGeometry(
            f"{folder / 'super.json'}: asked for {', '.join(differ)}: a drive keeps the geometry it was made with; "
            "open it with that one, or make a new drive in another folder"
        )


def _shape(profile: Profile) -> dict[str, int]:
    g = profile.geometry
    return {name: int(getattr(g, name)) for name in ("channels", "dies", "planes", "blocks", "pages", "page_bytes")}


def _disturb_limit(profile: Profile) -> int:
    """Reads of a block that take half of the bit errors its ECC always corrects; 0: reads do no harm."""
    rel = profile.reliability
    if rel.rber_per_read <= 0:
        return 0
    codewords = max(1, profile.geometry.page_bytes >> 10)
    return max(1, round(safe_rate(rel.ecc_bits, codewords) / 2 / rel.rber_per_read))


def _resident_shared() -> int:
    """Bytes of mapped files that this process holds in memory."""
    return int(Path("/proc/self/statm").read_text().split()[2]) * 4096
