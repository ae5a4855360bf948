"""Profiles: the built-in ones, strict loading, and errors that say what to do."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from emucsd_firmware.errors import FirmwareError, ProfileError
from emucsd_firmware.profile import KNOBS, PPN_LIMIT, SPARE_BLOCKS, from_dict, load, names

GIB = 1 << 30


def test_built_in_names() -> None:
    """The five profiles that the drive comes with."""
    assert names() == ["cosmosplus", "femu", "newport", "null", "rmssd"]


@pytest.mark.parametrize("name", names())
def test_built_in_holds_its_capacity(name: str) -> None:
    """Each loads, names its source, and has room for its capacity with blocks to spare on each die."""
    profile = load(name)
    g = profile.geometry
    assert profile.name == name
    assert profile.source
    assert g.raw_bytes * (1 - profile.ftl.over_provision) >= profile.capacity_bytes * 0.995
    assert (g.blocks_per_die - SPARE_BLOCKS) * g.die_count * g.block_bytes >= profile.capacity_bytes


@pytest.mark.parametrize("name", names())
def test_built_in_says_where_each_value_is_from(name: str) -> None:
    """Every file states every knob itself: nothing is inherited, so each can carry its source."""
    text = (Path(__file__).parents[2] / f"firmware/emucsd_firmware/profiles/{name}.toml").read_text()
    assert all(f"\n{key.rpartition('.')[2]} = " in text for key in KNOBS)
    assert "\nbase =" not in text


def test_rmssd_is_the_papers() -> None:
    """14 us + 6 us a page of 4 KiB, 4 channels, 200 MHz."""
    rmssd = load("rmssd")
    assert (rmssd.nand.read_ns, rmssd.nand.transfer_ns_per_4k, rmssd.geometry.page_bytes) == (14_000, 6_000, 4096)
    assert (rmssd.geometry.channels, rmssd.lookup.clock_mhz) == (4, 200)


def test_femu_is_femus() -> None:
    """FEMU's geometry of 16 GiB raw, its flat latencies, and what its launcher exposes."""
    femu = load("femu")
    assert femu.geometry.raw_bytes == 16 * GIB
    assert (femu.nand.read_ns, femu.nand.program_ns, femu.nand.erase_ns) == (40_000, 200_000, 2_000_000)
    assert femu.capacity_bytes == 12 * GIB


def test_null_takes_no_time() -> None:
    """No delay anywhere."""
    null = load("null")
    delays = [getattr(null.nand, key) for key in ("read_ns", "program_ns", "erase_ns", "command_ns", "retry_ns")]
    delays += [null.nand.transfer_ns_per_4k, null.link.delay_ns, null.link.bytes_per_us, null.buffer.write_ns]
    delays += [null.front_end.command_ns, null.front_end.per_page_ns, null.ftl.trim_ns, null.lookup.translate_cycles]
    assert delays == [0] * len(delays)
    assert 0.25 <= null.ftl.over_provision <= 0.28


def test_profile_is_frozen() -> None:
    """A profile is a value."""
    with pytest.raises(FrozenInstanceError):
        load("null").name = "other"  # type: ignore[misc]


# ---- addresses ----


def test_addresses_are_bit_fields() -> None:
    """die, block and page come apart by shifts, where blocks are no power of two as well."""
    g = load("femu", **{"geometry.blocks": 300, "geometry.planes": 2, "geometry.dies": 3}).geometry
    assert (g.page_bits, g.block_bits, g.die_bits) == (8, 10, 5)
    ppn = g.ppn(23, 599, 255)
    assert (g.die(ppn), g.block(ppn), ppn & 255, g.channel(23)) == (23, 599, 255, 7)
    assert g.ppn_end == ppn + 1
    assert g.block_end == (ppn >> 8) + 1
    assert g.raw_pages == 24 * 600 * 256 < g.ppn_end


def test_capacity_resizes_the_array() -> None:
    """A capacity alone makes as many blocks as it and the over-provisioning need."""
    for size in (64 << 20, GIB, 1 << 40):
        profile = load("femu", capacity_bytes=size)
        g = profile.geometry
        assert profile.capacity_bytes == size
        assert g.raw_bytes * 0.75 >= size
        assert g.blocks_per_die >= SPARE_BLOCKS + size / g.block_bytes / g.die_count


def test_newport_reaches_its_32_tb() -> None:
    """The product's capacity fits into 32-bit map entries."""
    assert load("newport", capacity_bytes="32T").geometry.ppn_end <= PPN_LIMIT


def test_too_large_says_the_limit() -> None:
    """More pages than a map entry can name: the error has both numbers and a way out."""
    with pytest.raises(ProfileError, match=rf"limit is {PPN_LIMIT}.*page_bytes"):
        load("femu", capacity_bytes=1 << 44)


def test_bad_blocks_are_allowed_for() -> None:
    """A flash with factory bad blocks gets more of them for the same capacity."""
    plain = load("femu", capacity_bytes=GIB).geometry.blocks
    assert load("femu", capacity_bytes=GIB, **{"reliability.factory_bad_ppm": 100_000}).geometry.blocks > plain * 1.05


# ---- overrides ----


def test_overrides_take_numbers_and_text() -> None:
    """From Python or from a command line; sizes with units."""
    profile = load("femu", **{"nand.read_ns": 50_000, "nand.cache_read": "true", "ftl.over_provision": "0.3"})
    assert (profile.nand.read_ns, profile.nand.cache_read, profile.ftl.over_provision) == (50_000, True, 0.3)
    sizes = {"2147483648": 2 * GIB, "2GiB": 2 * GIB, "2Gi": 2 * GIB, "2G": 2 * 10**9, "2.5GB": 25 * 10**8}
    assert {text: load("femu", capacity_bytes=text).capacity_bytes for text in sizes} == sizes


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"nand.raed_ns": 5}, r"override: nand\.raed_ns: no such setting, did you mean nand\.read_ns"),
        ({"read_ns": 5}, r"read_ns.*did you mean nand\.read_ns"),
        ({"nand.read_ns": -1}, r"nand\.read_ns = -1: must be 0 to 1000000000 \(array to page register\)"),
        ({"nand.read_ns": 2.5}, r"nand\.read_ns = 2\.5 is float, must be int"),
        ({"nand.read_ns": "fast"}, r"nand\.read_ns = 'fast' can't be read as int"),
        ({"nand.suspend": 1}, r"nand\.suspend = 1 is int, must be bool.*true or false"),
        ({"geometry.pages": 100}, r"geometry\.pages = 100: must be a power of two.*64 and 128"),
        ({"lba_bytes": 1024}, r"lba_bytes = 1024: must be 512 or 4096"),
        ({"ftl.gc_high": 0.5}, r"ftl\.gc_high = 0\.5.*must rise in this order"),
        ({"ftl.gc_low": 0.2}, r"ftl\.gc_low = 0\.2.*must rise"),
        ({"geometry.blocks": 100}, r"capacity_bytes = 12884901888: this geometry holds at most"),
        ({"mlp.fpga": "XC7"}, r"mlp\.fpga = 'XC7': must be XCVU9P or XC7A200T .*choose one of these"),
        ({"mlp.fpga": 7}, r"mlp\.fpga = 7 is int, must be str.*text in quotes"),
        ({"capacity_bytes": "1XB"}, r"capacity_bytes = '1XB' can't be read as int"),
    ],
)
def test_bad_overrides(overrides: dict[str, Any], says: str) -> None:
    """Each error names the key, the value, the limit and what to do."""
    with pytest.raises(ProfileError, match=says):
        load("femu", **overrides)


# ---- files ----


def file(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def test_own_file_on_a_base(tmp_path: Path) -> None:
    """A file needs to say only what differs from a built-in profile."""
    mine = load(file(tmp_path, 'base = "rmssd"\ncapacity_bytes = 1073741824\n[nand]\nread_ns = 9000\n'))
    assert (mine.name, mine.nand.read_ns, mine.nand.transfer_ns_per_4k) == ("mine", 9_000, 6_000)
    assert mine.capacity_bytes == GIB
    assert mine.geometry.blocks < load("rmssd").geometry.blocks


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[nand]\nread_ns = 5\n", r"mine\.toml: geometry\.channels, .* missing; state them.*base = "),
        ('base = "rmsd"\n', r"base = 'rmsd': must be a built-in profile: one of cosmosplus"),
        ('base = "rmssd"\n[nand]\nraed_ns = 5\n', r"nand\.raed_ns: no such setting, did you mean nand\.read_ns"),
        ('base = "rmssd"\n[nand]\nread_ns = "5"\n', r"nand\.read_ns = '5' is str, must be int.*without quotes"),
        ('base = "rmssd"\n[nand]\nsuspend = 1\n', r"nand\.suspend = 1 is int, must be bool"),
        ("[nand\n", r"mine\.toml: not TOML: .*line 1"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, says: str) -> None:
    """Each error begins with the file."""
    with pytest.raises(ProfileError, match=says):
        load(file(tmp_path, text))


def test_no_such_profile(tmp_path: Path) -> None:
    """A name that is none suggests those that are; a path that is none says so."""
    with pytest.raises(ProfileError, match="'rmsd': no such built-in profile, did you mean rmssd"):
        load("rmsd")
    with pytest.raises(ProfileError, match=r"gone\.toml: No such file"):
        load(tmp_path / "gone.toml")
    assert issubclass(ProfileError, FirmwareError)


def test_dict_round_trip() -> None:
    """What a store keeps of its profile gives the same profile back."""
    for name in names():
        profile = load(name)
        assert from_dict(profile.to_dict(), "store") == profile


def test_engines_may_be_absent() -> None:
    """A store of before the MLP engine, the hot cache and the page register were described still loads."""
    old = load("rmssd").to_dict()
    del old["mlp"]
    for name in ("cache_rows", "cache_ways", "cache_cycles", "page_register"):
        del old["lookup"][name]
    found = from_dict(old, "store")
    assert found == load("rmssd")
    assert (found.mlp.fpga, found.lookup.cache_rows, found.lookup.page_register) == ("XCVU9P", 0, False)


def test_a_name_is_a_setting_too() -> None:
    """From Python or from a command line."""
    assert load("rmssd", **{"mlp.fpga": "XC7A200T"}).mlp.fpga == "XC7A200T"


def test_isp_may_be_absent() -> None:
    """A store or a file of before the ISP engine was described still loads, with Newport's cores and no throttle."""
    old = load("rmssd").to_dict()
    del old["isp"]
    isp = from_dict(old, "store").isp
    assert (isp.cores, isp.memory_bytes, isp.cpu_share) == (4, 6_000_000_000, 1.0)
