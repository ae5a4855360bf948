"""Runs in a guest: writes numbered blocks to a disk and says, on the console, up to which number they are synced.

synced_writer.py write DISK FIRST   blocks FIRST, FIRST + 1, ... until it is killed, in groups, each group synced
synced_writer.py check DISK LAST    all blocks up to LAST are what was written

Block n lies at a place that looks random; no place is used twice.
"""

from __future__ import annotations

import os
import sys

BLOCK = 4096
BLOCKS = 60_000
STRIDE = 7919  # prime to BLOCKS: every number has a place of its own
GROUP = 8


def place(number: int) -> int:
    return number * STRIDE % BLOCKS * BLOCK


def content(number: int) -> bytes:
    return b"%015d\n" % number * (BLOCK // 16)


def write(disk: str, first: int) -> None:
    device = os.open(disk, os.O_RDWR)
    console = os.open("/dev/console", os.O_WRONLY)
    for start in range(first, BLOCKS - GROUP, GROUP):
        for number in range(start, start + GROUP):
            os.pwrite(device, content(number), place(number))
        os.fdatasync(device)
        os.write(console, b"SYNCED %d\n" % (start + GROUP - 1))


def check(disk: str, last: int) -> int:
    device = os.open(disk, os.O_RDONLY)
    for number in range(last + 1):
        if os.pread(device, BLOCK, place(number)) != content(number):
            print(f"block {number} of {last} is not what was synced")
            return 1
    print(f"all {last + 1} blocks are there")
    return 0


if __name__ == "__main__":
    action, target, position = sys.argv[1:]
    if action == "check":
        sys.exit(check(target, int(position)))
    write(target, int(position))
