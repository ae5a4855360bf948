"""FEMU beside our drives: its binary as the host machine's QEMU, and its own black-box SSD of a profile's geometry.

FEMU is a fork of QEMU 10.1.0 with an SSD inside (``-device femu``). Its binary takes our drives as well, over
vfio-user, with two peculiarities of that base: it loses their PCI class, so the guest's driver is told their ids, and
it must not look for an option ROM (``emucsd_femu.qemu`` and ``emucsd_femu.plans`` see to both, from the version alone).

What FEMU's SSD does not have is said, not dropped in silence: ``translated`` returns it with the knobs.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from emucsd_femu.description import DriveOf
from emucsd_femu.drives import command
from emucsd_femu.errors import QemuMissing, SettingsError
from emucsd_femu.qemu_root import OLDEST_CHOSEN, Qemu, probe
from emucsd_femu.settings import parse
from emucsd_firmware.errors import ProfileError
from emucsd_firmware.profile import Profile, load
from emucsd_wire.paths import cache_root

REPOSITORY = "https://github.com/MoatLab/FEMU.git"
PIN = "99ce4fb2b"  # 2026-08-22; what the knobs' meanings here were read at
CHOSEN = "EMUCSD_FEMU"  # the user's own binary
BINARY = "qemu-system-x86_64"
MARK = "built.json"  # in a build's folder once it is whole
SLOT = 0x18  # where its SSD is on the guest's root bus, after our drives
BLACK_BOX = 1  # femu_mode
BUILD = "python -m emucsd_femu femu build"
_SECTOR = 512
_MOST_SECTORS = (1 << 31) - 1  # its FTL counts them in a signed 32-bit int
_MOST_MARK = 99  # percent: where forced collection begins at the latest
_SPARE_MEMORY = 1 << 30  # for the machine and everybody else


class Translated(NamedTuple):
    """A profile in FEMU's words."""

    knobs: dict[str, int]
    notes: tuple[str, ...]  # what FEMU's SSD does otherwise


def folder(pin: str = PIN) -> Path:
    """Where a build is, or will be."""
    return cache_root() / f"femu-{pin}"


def binary() -> Path:
    """$EMUCSD_FEMU, else the build in the cache.

    :raises QemuMissing: neither is there; says what to do
    """
    if chosen := os.environ.get(CHOSEN):
        if not os.access(chosen, os.X_OK):
            raise QemuMissing(f"{CHOSEN} is {chosen}, which is no program; name FEMU's {BINARY}")
        return Path(chosen)
    if not (folder() / MARK).is_file():
        raise QemuMissing(f"there is no FEMU build in {folder()}: {BUILD} makes one, or {CHOSEN} names your own binary")
    return folder() / "build" / BINARY


def find() -> Qemu:
    """FEMU's binary as a QEMU that attaches drives.

    :raises QemuMissing: there is none, or it is no FEMU
    """
    path = binary()
    version = probe_femu(path)
    told = f"FEMU, {path}" + (f", chosen by {CHOSEN}" if os.environ.get(CHOSEN) else "")
    return Qemu((str(path),), {}, version, told)


def probe_femu(path: Path) -> tuple[int, int, int]:
    """Its version. :raises QemuMissing: it does not run, or has no ``-device femu``, or no ``vfio-user-pci``"""
    version = probe((str(path),), {}, OLDEST_CHOSEN)
    words = [str(path), "-device", "femu,help"]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise QemuMissing(f"{path} is a QEMU without FEMU's SSD: {done.stderr.strip()[:200]}")
    return version


def device(profile: Profile, *, slot: int = SLOT, memory: int | None = None) -> list[str]:
    """The words that give a machine FEMU's SSD of this profile's geometry and times.

    :param memory: bytes that this computer has free; asked where not given
    :raises SettingsError: FEMU can't have such an SSD, or this computer can't hold it: all of it lies in memory
    """
    knobs = translated(profile).knobs
    wanted = (knobs["devsz_mb"] << 20) + _SPARE_MEMORY
    free = _free() if memory is None else memory
    if wanted > free:
        raise SettingsError(
            f"FEMU keeps its SSD in memory: {profile.name}'s {knobs['devsz_mb']} MiB and {_SPARE_MEMORY >> 20} MiB to "
            f"spare are more than the {free >> 20} MiB that are free; give the drive a smaller size"
        )
    return ["-device", json.dumps({"driver": "femu", "id": "femu", "addr": f"{slot:x}", **knobs})]


def beside(drive: DriveOf, progress: Callable[[str], None]) -> list[str]:
    """The words for FEMU's SSD beside a testbed's drive, of that drive's profile; what it lacks is told.

    :raises SettingsError: the profile is wrong, or see ``device``
    """
    settings = parse(command(drive)[4:])  # as the drive's own process takes it
    size = {} if settings.size is None else {"capacity_bytes": settings.size}
    try:
        profile = load(settings.profile, **size, **settings.overrides)
    except ProfileError as problem:
        raise SettingsError(str(problem)) from problem
    progress(f"FEMU's SSD beside {drive.name}: {'; '.join(translated(profile).notes)}")
    return device(profile)


def translated(profile: Profile) -> Translated:
    """FEMU's knobs for a profile (``emucsd_firmware.femu_knobs`` is the other direction).

    :raises SettingsError: more flash than FEMU can address
    """
    flash = profile.geometry
    knobs = {
        "femu_mode": BLACK_BOX,
        "devsz_mb": profile.capacity_bytes >> 20,
        "namespaces": 1,
        "secsz": _SECTOR,
        "secs_per_pg": flash.page_bytes // _SECTOR,
        "pgs_per_blk": flash.pages,
        "blks_per_pl": flash.blocks_per_die,
        "pls_per_lun": 1,
        "luns_per_ch": flash.dies,
        "nchs": flash.channels,
        "pg_rd_lat": profile.nand.read_ns,
        "pg_wr_lat": profile.nand.program_ns,
        "blk_er_lat": profile.nand.erase_ns,
        "ch_xfer_lat": math.ceil(profile.nand.transfer_ns_per_4k * flash.page_bytes / 4096),
        "op_pcent": 0,  # the rest of the flash beside devsz_mb
        "trim_lat_ns": profile.ftl.trim_ns,
        "err_read_unc_ppm": profile.reliability.read_fail_ppm,
        "err_write_fail_ppm": profile.reliability.program_fail_ppm,
        "pcie_bandwidth_mbps": profile.link.bytes_per_us,
        "pcie_prop_delay_ns": profile.link.delay_ns,
        "fw_cpu_ns": profile.front_end.command_ns,
        "nand_bad_blocks": round(profile.reliability.factory_bad_ppm * flash.die_count * flash.blocks_per_die / 1e6),
        "lba_index": (profile.lba_bytes // 512).bit_length() - 1,  # 512 bytes, and double with each
    }
    notes = _notes(profile)
    notes += _garbage(profile, knobs)
    sectors = flash.die_count * knobs["blks_per_pl"] * flash.pages * knobs["secs_per_pg"]
    if sectors > _MOST_SECTORS:
        raise SettingsError(
            f"{profile.name} has {sectors * _SECTOR >> 20} MiB of flash and FEMU addresses {_MOST_SECTORS} sectors, "
            f"{_MOST_SECTORS * _SECTOR >> 20} MiB; give the drive a smaller size"
        )
    return Translated(knobs, tuple(notes))


def _garbage(profile: Profile, knobs: dict[str, int]) -> list[str]:
    """When collection begins, in FEMU's percent of lines in use, and lines enough that it can.

    A line is one block of every die; what lies beyond the mark, and one to write to, must be left by the data.
    """
    flash = profile.geometry
    line = flash.die_count * flash.block_bytes
    data = math.ceil(profile.capacity_bytes / line)
    knobs["gc_thres_pcent"] = min(_MOST_MARK, round(100 * (1 - profile.ftl.gc_high)))
    knobs["gc_thres_pcent_high"] = min(_MOST_MARK, max(knobs["gc_thres_pcent"], round(100 * (1 - profile.ftl.gc_low))))
    lines = knobs["blks_per_pl"]
    while lines - math.floor((100 - knobs["gc_thres_pcent_high"]) * lines / 100) - 1 < data:
        if knobs["gc_thres_pcent_high"] < _MOST_MARK:
            knobs["gc_thres_pcent_high"] += 1
        else:
            lines += 1
    if lines == knobs["blks_per_pl"]:
        return []
    knobs["blks_per_pl"], added = lines, lines - knobs["blks_per_pl"]
    return [f"FEMU's collection needs {added} more blocks a die than the profile has"]


def _notes(profile: Profile) -> list[str]:
    """What FEMU's black-box SSD has not got, or does not heed, at the pinned commit."""
    flash, nand = profile.geometry, profile.nand
    apart = {
        "planes are not modelled: each die is one plane with all its blocks": flash.planes > 1,
        "ch_xfer_lat is not heeded: channels never hold anything up": nand.transfer_ns_per_4k > 0,
        "commands take no time on a channel": nand.command_ns > 0,
        "reads do not overlap with transfers (cache_read)": nand.cache_read,
        "reads do not suspend programs or erases": nand.suspend,
        "there is no write buffer: a write takes its program's time": profile.buffer.pages > 0,
        "bit errors and read retries are not modelled": profile.reliability.rber_base > 0,
        "erases do not fail": profile.reliability.erase_fail_ppm > 0,
        "the front end takes no time for each page": profile.front_end.per_page_ns > 0,
        "a firmware's own policies are not heeded: collection is greedy": profile.ftl.streams > 2,
    }
    always = ["nothing outlives QEMU: the SSD is memory", "two cores are busy as long as the machine runs"]
    return [note for note, holds in apart.items() if holds] + always


def _free() -> int:
    found = re.search(r"^MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found[1]) << 10 if found else 0
