"""A stand-in for FEMU's binary, for tests where nobody has built it: stock QEMU that looks like it from outside.

    python femu_stand_in.py '<stock QEMU: {"command": [...], "environment": {...}}>' QEMU-OPTION...

What only FEMU has and what it does otherwise, as it was observed at its pinned commit, is acted here:

- it says it is version 10.1.0;
- it has ``-device femu``, with the properties of that commit and no others. Behind it is stock QEMU's own ``nvme`` on a
  null device of ``devsz_mb``: an NVMe disk of that size, none of FEMU's timing;
- drives over vfio-user lose their PCI class, and one that is not told ``rombar=0`` is an error.

It says nothing about FEMU itself: whether that runs is known only where it was built.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, NoReturn

VERSION = "QEMU emulator version 10.1.0 (a stand-in for FEMU: stock QEMU behind it)"
# fmt: off
PROPERTIES = {
    "addr", "id", "serial", "devsz_mb", "namespaces", "namespace_sizes", "namespace_modes", "queues", "entries",
    "mdts", "femu_mode", "vid", "did", "secsz", "secs_per_pg", "pgs_per_blk", "blks_per_pl", "pls_per_lun",
    "luns_per_ch", "nchs", "pg_rd_lat", "pg_wr_lat", "blk_er_lat", "ch_xfer_lat", "cmd_addr_lat", "pg_xfer_lat",
    "status_lat", "gc_thres_pcent", "gc_thres_pcent_high", "gc_policy", "mapping", "nand_cell_type", "op_pcent",
    "trim_lat_ns", "err_read_unc_ppm", "err_write_fail_ppm", "pcie_bandwidth_mbps", "pcie_prop_delay_ns",
    "fw_cpu_ns", "nand_bad_blocks", "lba_index", "multipoller_enabled", "poller_ratio",
}
# fmt: on


def refuse(message: str) -> NoReturn:
    print(f"qemu-system-x86_64: {message}", file=sys.stderr)
    sys.exit(1)


def device(value: str) -> list[str]:
    """What stock QEMU is told for one ``-device``."""
    if value.startswith("{"):
        given: dict[str, Any] = json.loads(value)
    else:
        driver, *pairs = value.split(",")
        given = {"driver": driver, **dict(pair.partition("=")[::2] for pair in pairs)}
    if given["driver"] == "vfio-user-pci" and "socket" in given:
        if given.get("rombar") != 0:
            refuse("vfio-user: this base reads a ROM that is not there; rombar=0 is needed")
        return ["-device", json.dumps({**given, "x-pci-class-code": 0})]
    if given["driver"] != "femu":
        return ["-device", value]
    if "help" in given:
        print("femu options:", *sorted(f"  {name}" for name in PROPERTIES), sep="\n")
        sys.exit(0)
    if unknown := given.keys() - PROPERTIES - {"driver"}:
        refuse(f"-device femu: Property 'femu.{min(unknown)}' not found")
    disk = {"driver": "null-co", "node-name": "femu-disk", "size": int(given["devsz_mb"]) << 20, "read-zeroes": True}
    shown = {"driver": "nvme", "drive": "femu-disk", "serial": "stand-in", "addr": given.get("addr", "18")}
    return ["-blockdev", json.dumps(disk), "-device", json.dumps(shown)]


def main(stock: dict[str, Any], words: list[str]) -> None:
    """Becomes stock QEMU."""
    if "--version" in words:
        print(VERSION)
        return
    told: list[str] = []
    waiting = iter(words)
    for word in waiting:
        told += device(next(waiting)) if word == "-device" else [word]
    command = stock["command"]
    os.execve(command[0], [*command, *told], {**os.environ, **stock["environment"]})


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2:])
