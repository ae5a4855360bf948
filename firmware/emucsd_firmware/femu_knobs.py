"""FEMU's names for a profile's settings, so that a FEMU command line describes the same drive here.

The meanings are those of FEMU's black-box mode (``femu_mode=1``) as its property reference gives them. What FEMU names
but this drive keeps elsewhere, or does not model, is an error that says which.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from emucsd_firmware.errors import ProfileError

_PLAIN = {
    "pgs_per_blk": "geometry.pages",
    "blks_per_pl": "geometry.blocks",
    "pls_per_lun": "geometry.planes",
    "luns_per_ch": "geometry.dies",
    "nchs": "geometry.channels",
    "pg_rd_lat": "nand.read_ns",
    "pg_wr_lat": "nand.program_ns",
    "blk_er_lat": "nand.erase_ns",
    "cmd_addr_lat": "nand.command_ns",
    "tsusp_ns": "nand.suspend_ns",
    "ecc_step_ns": "nand.retry_ns",
    "err_read_unc_ppm": "reliability.read_fail_ppm",
    "err_write_fail_ppm": "reliability.program_fail_ppm",
    "pe_cycles_rated": "reliability.endurance",
    "trim_lat_ns": "ftl.trim_ns",
    "pcie_bandwidth_mbps": "link.bytes_per_us",  # MB/s of 10^6 bytes, which is bytes/us
    "pcie_prop_delay_ns": "link.delay_ns",
    "fw_cpu_ns": "front_end.command_ns",
    "buffer_size": "buffer.pages",
}
_SHAPES = ("devsz_mb", "op_pcent", "secsz", "secs_per_pg", "pgs_per_blk", "blks_per_pl", "pls_per_lun", "luns_per_ch")
_DERIVED = (
    *("secsz", "secs_per_pg", "devsz_mb", "op_pcent", "ch_xfer_lat", "pg_xfer_lat", "status_lat", "pe_suspend"),
    *("nand_bad_blocks", "gc_thres_pcent", "gc_thres_pcent_high", "hot_cold_sep"),
)
_ELSEWHERE = {
    "femu_mode": "a drive here always has its FTL and its NAND; the null profile takes no time (FEMU's NoSSD)",
    "namespaces": "create namespaces with Namespace Management",
    "namespace_sizes": "create namespaces with Namespace Management",
    "queues": "64 queue pairs are there; the host takes as many as it wants",
    "entries": "queues are up to 1024 deep; the host chooses",
    "mdts": "it is 1 MiB",
    "serial": "it is drawn when the drive is made",
    "vwc": "a write buffer (buffer.pages > 0) is a volatile write cache",
    "gc_policy": "victims are chosen by the firmware's gc_score policy",
    "mapping": "the map is page-grained and all in memory",
    "nand_cell_type": "state nand.read_ns, nand.program_ns and nand.erase_ns",
    "multipoller_enabled": "one data-plane thread serves all queues",
    "poller_ratio": "one data-plane thread serves all queues",
    "buffer_thres_pcent": "the buffer is emptied whenever dies are free",
    "lba_index": "set lba_bytes, or format the namespace",
}
FEMU_NAMES = sorted({*_PLAIN, *_DERIVED, *_ELSEWHERE})


def translate(given: Mapping[str, Any], flat: Mapping[str, Any]) -> dict[str, Any]:
    """Our dotted keys for FEMU's names, their values not yet checked.

    :param given: names out of ``FEMU_NAMES`` and values (numbers, or text from a command line)
    :param flat: the profile so far by dotted keys: what FEMU's units are relative to
    :raises ProfileError: a name that has no meaning here, a value that is no number, or no room beside the data
    """
    numbers = {name: _number(name, value) for name, value in given.items()}
    ours: dict[str, Any] = {_PLAIN[name]: value for name, value in numbers.items() if name in _PLAIN}
    now = {**flat, **ours}
    _geometry(numbers, now, ours)
    _capacity(numbers, {**now, **ours}, ours)
    _times(numbers, {**now, **ours}, ours)
    _garbage(numbers, {**now, **ours}, ours)
    if "pls_per_lun" in numbers:
        ours["nand.multi_plane"] = numbers["pls_per_lun"] > 1
    if "pe_suspend" in numbers:
        ours["nand.suspend"] = numbers["pe_suspend"] != 0
    if "hot_cold_sep" in numbers:
        ours["ftl.streams"] = 3 if numbers["hot_cold_sep"] else 2
    return ours


def _number(name: str, value: Any) -> int:
    if name in _ELSEWHERE:
        raise ProfileError(f"override: {name} (FEMU's) is no setting of a profile: {_ELSEWHERE[name]}; leave it out")
    try:
        return int(value, 0) if isinstance(value, str) else int(value)
    except (TypeError, ValueError):
        raise ProfileError(f"override: {name} = {value!r} (FEMU's) must be a whole number; give one") from None


def _geometry(given: Mapping[str, int], now: Mapping[str, Any], ours: dict[str, Any]) -> None:
    if "secsz" in given or "secs_per_pg" in given:
        sector = given.get("secsz", 512)
        ours["geometry.page_bytes"] = sector * given.get("secs_per_pg", now["geometry.page_bytes"] // sector)
        if sector in (512, 4096):
            ours["lba_bytes"] = sector


def _capacity(given: Mapping[str, int], now: Mapping[str, Any], ours: dict[str, Any]) -> None:
    """FEMU leaves the flash as its geometry says: the over-provisioning is what ``devsz_mb`` does not use."""
    if not {*_SHAPES, "nchs"} & given.keys():
        return
    shape = (f"geometry.{part}" for part in ("channels", "dies", "planes", "blocks", "pages", "page_bytes"))
    raw = math.prod(now[key] for key in shape)
    if "op_pcent" in given and given["op_pcent"] > 0:
        capacity = int(raw / (1 + given["op_pcent"] / 100))
    elif "devsz_mb" in given:
        capacity = given["devsz_mb"] << 20
    else:
        capacity = min(now["capacity_bytes"], int(raw * (1 - now["ftl.over_provision"])))
    if not 0 < capacity < raw:
        raise ProfileError(
            f"override: devsz_mb = {capacity >> 20}: the geometry has {raw >> 20} MiB of flash and garbage collection "
            "needs some of it; ask for less, or set op_pcent or capacity_bytes instead"
        )
    ours["capacity_bytes"] = capacity & -4096
    ours["geometry.blocks"] = now["geometry.blocks"]
    ours["ftl.over_provision"] = 1 - capacity / raw


def _times(given: Mapping[str, int], now: Mapping[str, Any], ours: dict[str, Any]) -> None:
    page = now["geometry.page_bytes"]
    per_page = given.get("pg_xfer_lat") or given.get("ch_xfer_lat")
    if per_page is not None or "ch_xfer_lat" in given:
        ours["nand.transfer_ns_per_4k"] = math.ceil((per_page or 0) * 4096 / page)
    if "status_lat" in given:  # one more phase on the bus for each operation, which is what command_ns charges
        ours["nand.command_ns"] = now["nand.command_ns"] + given["status_lat"]
    if "nand_bad_blocks" in given:
        shape = (f"geometry.{part}" for part in ("channels", "dies", "planes", "blocks"))
        ours["reliability.factory_bad_ppm"] = round(given["nand_bad_blocks"] * 1e6 / math.prod(now[k] for k in shape))


def _garbage(given: Mapping[str, int], now: Mapping[str, Any], ours: dict[str, Any]) -> None:
    """FEMU counts blocks in use where we count free ones: forced from ``_high`` on, in the background from the other.

    The marks stay below the over-provisioning: a full drive never has more than that free, and would collect for ever.
    """
    most = now["ftl.over_provision"]
    marks = {*given} & {"gc_thres_pcent", "gc_thres_pcent_high", "devsz_mb", "op_pcent", *_SHAPES}
    if not marks:
        return
    high = 1 - given["gc_thres_pcent"] / 100 if "gc_thres_pcent" in given else now["ftl.gc_high"]
    low = 1 - given["gc_thres_pcent_high"] / 100 if "gc_thres_pcent_high" in given else now["ftl.gc_low"]
    ours["ftl.gc_high"] = max(0.0, min(high, most / 2))
    ours["ftl.gc_low"] = max(0.0, min(low, ours["ftl.gc_high"] / 2))
