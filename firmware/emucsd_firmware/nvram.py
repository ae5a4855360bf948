"""What the subsystem remembers without power: ``nvram.json`` in the store, replaced atomically, loaded strictly."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Annotated

import msgspec

from emucsd_firmware.errors import StoreError, StoreTruncated, StoreVersion
from emucsd_firmware.nvme.namespaces import LBA_SHIFTS, Namespace
from emucsd_firmware.nvme.queues import NAMESPACES
from emucsd_wire.logs import SanitizeStatus

NAME = "nvram.json"
VERSION = 1

Count = Annotated[int, msgspec.Meta(ge=0)]


class Totals(msgspec.Struct, forbid_unknown_fields=True):
    """Counters over the drive's life, up to when they were last saved."""

    reads: Count = 0
    writes: Count = 0
    blocks_read: Count = 0  # in units of 512 bytes
    blocks_written: Count = 0
    busy_ns: Count = 0
    media_errors: Count = 0
    powered_ns: Count = 0
    power_cycles: Count = 0
    unsafe_shutdowns: Count = 0


class SavedFeature(msgspec.Struct, forbid_unknown_fields=True):
    """A feature's saved value; ``index`` is a namespace, a vector or a threshold where there are several."""

    controller: Count
    feature: Count
    index: Count
    value: Count


class SanitizeRecord(msgspec.Struct, forbid_unknown_fields=True):
    """The last sanitize operation; one that was cut off is begun anew."""

    status: SanitizeStatus = SanitizeStatus.NEVER
    cdw10: Count = 0
    pattern: Count = 0
    passes: Count = 0
    erased: bool = True  # nothing was written since the last one, or since the drive was made
    written: Count = 0  # blocks_written when it ended


class Nvram(msgspec.Struct, forbid_unknown_fields=True):
    """The whole file. ``clean``: every host that enabled a controller has shut it down."""

    version: int
    drive: uuid.UUID
    namespaces: list[Namespace]
    made: Count  # namespaces that were ever created
    clean: bool = True
    features: list[SavedFeature] = msgspec.field(default_factory=list)
    errors: dict[str, Count] = msgspec.field(default_factory=dict)  # controller id -> error log entries so far
    sanitize: SanitizeRecord = msgspec.field(default_factory=SanitizeRecord)
    totals: Totals = msgspec.field(default_factory=Totals)


def load(folder: Path) -> Nvram | None:
    """None where there is no file yet.

    :raises StoreTruncated: it is empty or cut off
    :raises StoreVersion: another version wrote it
    :raises StoreError: it is no such file, or says what can't be
    """
    path = folder / NAME
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    repair = "restore it from a copy of the store, or remove it to start with one namespace over the whole drive"
    try:
        version = msgspec.json.decode(data, type=dict[str, msgspec.Raw]).get("version", msgspec.Raw(b"none"))
        if bytes(version) != str(VERSION).encode():
            raise StoreVersion(f"{path} has version {bytes(version).decode()}, this firmware reads {VERSION}; {repair}")
        nvram = msgspec.json.decode(data, type=Nvram, strict=True)
    except msgspec.ValidationError as problem:
        raise StoreError(f"{path}: {problem}; {repair}") from problem
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        raise StoreTruncated(f"{path} ({len(data)} bytes) is no whole JSON object: {problem}; {repair}") from problem
    for trouble in _contradictions(nvram):
        raise StoreError(f"{path}: {trouble}; {repair}")
    return nvram


def save(folder: Path, nvram: Nvram) -> None:
    """Replace the file: whoever reads it sees the old one or the new one, also after a crash of the computer.

    :raises StoreError: the disk does not take it
    """
    path, new = folder / NAME, folder / f"{NAME}.new"
    text = msgspec.json.format(msgspec.json.encode(nvram), indent=1)
    try:
        with open(new, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as problem:
        raise StoreError(
            f"{path} can't be written: {problem}; free some space or check its folder's rights"
        ) from problem


def _contradictions(nvram: Nvram) -> list[str]:
    found = []
    seen: set[int] = set()
    for ns in nvram.namespaces:
        name = f"namespace {ns.nsid}"
        if not 1 <= ns.nsid <= NAMESPACES:
            found.append(f"{name} is outside 1..{NAMESPACES}")
        if ns.nsid in seen:
            found.append(f"{name} is there twice")
        if ns.lba_shift not in LBA_SHIFTS:
            found.append(f"{name} has lba_shift {ns.lba_shift}, known are {LBA_SHIFTS}")
        elif ns.size <= 0 or ns.blocks == 0:
            found.append(f"{name} has size {ns.size}, less than one block")
        if not set(ns.attached) <= {1, 2} or len(set(ns.attached)) != len(ns.attached):
            found.append(f"{name} is attached to {ns.attached}, controllers are 1 and 2")
        if not ns.shared and len(ns.attached) > 1:
            found.append(f"{name} is private and attached to {len(ns.attached)} controllers")
        if not 0 < ns.made <= nvram.made:
            found.append(f"{name} was made as number {ns.made}, {nvram.made} were made")
        seen.add(ns.nsid)
    return found
