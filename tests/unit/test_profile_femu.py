"""FEMU's knob names as overrides."""

from __future__ import annotations

from typing import Any

import pytest

from emucsd_firmware.errors import ProfileError
from emucsd_firmware.femu_knobs import FEMU_NAMES
from emucsd_firmware.profile import Profile, load

GIB = 1 << 30

# FEMU's name, a value, our key, what it becomes
PLAIN: list[tuple[str, Any, str, Any]] = [
    ("pg_rd_lat", 50_000, "nand.read_ns", 50_000),
    ("pg_wr_lat", 300_000, "nand.program_ns", 300_000),
    ("blk_er_lat", 3_000_000, "nand.erase_ns", 3_000_000),
    ("ch_xfer_lat", 25_000, "nand.transfer_ns_per_4k", 25_000),
    ("pg_xfer_lat", 25_000, "nand.transfer_ns_per_4k", 25_000),
    ("cmd_addr_lat", 200, "nand.command_ns", 200),
    ("status_lat", 100, "nand.command_ns", 100),
    ("pe_suspend", 1, "nand.suspend", True),
    ("tsusp_ns", 5_000, "nand.suspend_ns", 5_000),
    ("ecc_step_ns", 10_000, "nand.retry_ns", 10_000),
    ("err_read_unc_ppm", 10, "reliability.read_fail_ppm", 10),
    ("err_write_fail_ppm", 10, "reliability.program_fail_ppm", 10),
    ("nand_bad_blocks", 164, "reliability.factory_bad_ppm", 10_010),
    ("pe_cycles_rated", 3000, "reliability.endurance", 3000),
    ("pcie_bandwidth_mbps", 3200, "link.bytes_per_us", 3200),
    ("pcie_prop_delay_ns", 400, "link.delay_ns", 400),
    ("fw_cpu_ns", 900, "front_end.command_ns", 900),
    ("trim_lat_ns", 800, "ftl.trim_ns", 800),
    ("buffer_size", 1024, "buffer.pages", 1024),
    ("hot_cold_sep", 1, "ftl.streams", 3),
    ("gc_thres_pcent_high", 96, "ftl.gc_low", 0.04),
    ("gc_thres_pcent", 90, "ftl.gc_high", 0.1),
    ("nchs", 16, "geometry.channels", 16),
    ("luns_per_ch", 16, "geometry.dies", 16),
    ("pls_per_lun", 2, "geometry.planes", 2),
    ("blks_per_pl", 512, "geometry.blocks", 512),
    ("pgs_per_blk", 512, "geometry.pages", 512),
    ("secs_per_pg", 32, "geometry.page_bytes", 16384),
    ("secsz", 4096, "lba_bytes", 4096),
    ("devsz_mb", 8192, "capacity_bytes", 8 * GIB),
    ("op_pcent", 25, "ftl.over_provision", 0.2),
]


def value(profile: Profile, key: str) -> Any:
    part, _, name = key.rpartition(".")
    return getattr(getattr(profile, part) if part else profile, name)


@pytest.mark.parametrize(("name", "given", "key", "becomes"), PLAIN)
def test_every_name(name: str, given: Any, key: str, becomes: Any) -> None:
    """Each name that FEMU's black-box drive knows sets its counterpart, from a number or from text."""
    assert value(load("femu", **{name: given}), key) == pytest.approx(becomes, rel=1e-3)
    assert value(load("femu", **{name: str(given)}), key) == pytest.approx(becomes, rel=1e-3)


def test_geometry_stays_as_femu_says() -> None:
    """devsz_mb leaves the flash alone: what it does not use is over-provisioning."""
    profile = load("femu", devsz_mb=1024)
    assert profile.geometry == load("femu").geometry
    assert profile.ftl.over_provision == pytest.approx(15 / 16)


def test_a_femu_command_line() -> None:
    """The example of FEMU's own page on its black-box mode."""
    line = (
        "devsz_mb=12288,secsz=512,secs_per_pg=8,pgs_per_blk=256,blks_per_pl=256,pls_per_lun=1,luns_per_ch=8,nchs=8,"
        "pg_rd_lat=40000,pg_wr_lat=200000,blk_er_lat=2000000,ch_xfer_lat=0,gc_thres_pcent=75,gc_thres_pcent_high=95"
    )
    profile = load("femu", **dict(pair.split("=") for pair in line.split(",")))
    femu = load("femu")
    assert (profile.geometry, profile.nand, profile.capacity_bytes) == (femu.geometry, femu.nand, femu.capacity_bytes)


def test_page_transfer_is_per_page() -> None:
    """FEMU's channel time is for a page, ours for 4 KiB."""
    assert load("femu", secs_per_pg=32, ch_xfer_lat=40_000).nand.transfer_ns_per_4k == 10_000


def test_names_apply_to_any_profile() -> None:
    """Not only to femu."""
    assert load("rmssd", pg_rd_lat=9_000).nand.read_ns == 9_000
    assert load("rmssd", nchs=8).geometry.channels == 8


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"pg_rd_latt": 5}, r"pg_rd_latt: no such setting, did you mean pg_rd_lat"),
        ({"pg_rd_lat": "fast"}, r"pg_rd_lat = 'fast' \(FEMU's\) must be a whole number"),
        ({"pg_rd_lat": -4}, r"nand\.read_ns = -4: must be 0 to"),
        ({"devsz_mb": 16384}, r"devsz_mb = 16384: the geometry has 16384 MiB of flash"),
        ({"femu_mode": 1}, r"femu_mode \(FEMU's\) is no setting of a profile: .*; leave it out"),
        ({"pgs_per_blk": 100}, r"geometry\.pages = 100: must be a power of two"),
    ],
)
def test_bad_values(overrides: dict[str, Any], says: str) -> None:
    """Errors name the knob and the way out."""
    with pytest.raises(ProfileError, match=says):
        load("femu", **overrides)


def test_all_names_are_tried() -> None:
    """The table above has every name that means something here."""
    tried = {row[0] for row in PLAIN}
    rest = set(FEMU_NAMES) - tried
    for name in rest:
        with pytest.raises(ProfileError, match="is no setting of a profile"):
            load("femu", **{name: 1})
