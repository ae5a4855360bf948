"""``python -m emucsd_femu bench-vm``: this drive against QEMU's own NVMe device, in one guest, in turns.

One machine, one virtual processor. Three disks in it: our drive (``null`` profile, real clock: nothing is delayed on
purpose), QEMU's ``-device nvme`` on a raw file in memory, and the same device on ``null-co``, which holds no data and
copies none. QEMU's devices have the settings that they have when nobody gives any. Each round runs fio's 4 KiB random
reads on every disk and depth; the ratios are of medians over rounds, so a machine that others use as well disturbs all
of them alike.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from emucsd_femu.description import DriveOf
from emucsd_femu.drives import DriveChild, await_all
from emucsd_femu.errors import FemuError
from emucsd_femu.single import SingleMachine
from emucsd_images.errors import ImagesError
from emucsd_wire import paths

OURS, RIVAL, EMPTY = "emucsd", "qemu-nvme", "qemu-nvme-null"
DISKS = (OURS, RIVAL, EMPTY)
DEPTHS = (32, 1)
SIZE = 256 << 20  # of the part that is read; written first, so that nothing is read as unwritten
_CAPACITY = 1 << 30
_RAMP = 0.5  # s
_SLACK = 120.0  # s, on top of fio's own time
_MEMORY_DISK = Path("/dev/shm")
Result = dict[str, Any]
Progress = Callable[[str], None]


@contextmanager
def folder_in_memory() -> Iterator[Path]:
    """A temporary folder for the store and the rival's file, on a memory disk where there is one with room."""
    fits = os.access(_MEMORY_DISK, os.W_OK) and shutil.disk_usage(_MEMORY_DISK).free > 4 * SIZE
    with tempfile.TemporaryDirectory(prefix="emucsd-vm-", dir=_MEMORY_DISK if fits else None) as name:
        yield Path(name)


def rivals(folder: Path) -> list[str]:
    """QEMU's words for its own devices. Their serial numbers tell the guest which is which."""
    raw = folder / "raw"
    with open(raw, "wb") as file:
        file.truncate(_CAPACITY)
    return [
        "-drive", f"file={raw},format=raw,if=none,id=raw", "-device", f"nvme,drive=raw,serial={RIVAL}",
        "-drive", f"driver=null-co,size={_CAPACITY},if=none,id=empty", "-device", f"nvme,drive=empty,serial={EMPTY}",
    ]  # fmt: skip


def processor_seconds(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Bench:
    """A machine with its disks, and what is measured on it."""

    def __init__(self, machine: SingleMachine, drive: DriveChild) -> None:
        self._machine = machine
        self._drive = drive
        self.disks = self._find()

    def _find(self) -> dict[str, str]:
        listed = self._machine.run('for n in /sys/class/nvme/nvme*; do echo "${n##*/} $(cat $n/serial)"; done').out
        found = {}
        for line in listed.splitlines():
            name, _, serial = line.partition(" ")
            found[serial.strip() if serial.strip() in DISKS else OURS] = f"/dev/{name}n1"
        if set(found) != set(DISKS):
            raise FemuError(f"the guest shows {found} instead of one disk each of {', '.join(DISKS)}")
        return found

    def fill(self) -> None:
        """Write what is going to be read."""
        for path in self.disks.values():
            self._fio(path, 0.0, "--rw=write", "--bs=1m", "--iodepth=4")

    def measure(self, disk: str, depth: int, seconds: float) -> Result:
        """One run of fio, with the processor time that QEMU and the drive spent meanwhile (fractions of a core)."""
        pids = {"qemu": self._machine.pid, "drive": self._drive.pid or 0}
        timed = (f"--runtime={seconds:g}", "--time_based", f"--ramp_time={_RAMP}", "--randrepeat=0", "--norandommap")
        before, begun = {key: processor_seconds(pid) for key, pid in pids.items()}, time.monotonic()
        job = self._fio(self.disks[disk], seconds, "--rw=randread", "--bs=4k", f"--iodepth={depth}", *timed)
        passed = time.monotonic() - begun
        spent = {key: round((processor_seconds(pid) - before[key]) / passed, 3) for key, pid in pids.items()}
        read = job["read"]
        return {
            "disk": disk,
            "queue_depth": depth,
            "iops": round(read["iops"], 1),
            "submission_us": round(read["slat_ns"]["mean"] / 1e3, 1),
            "completion_us": round(read["clat_ns"]["mean"] / 1e3, 1),
            "completion_p50_us": round(read["clat_ns"]["percentile"]["50.000000"] / 1e3, 1),
            "completion_p99_us": round(read["clat_ns"]["percentile"]["99.000000"] / 1e3, 1),
            "cpu": spent,
        }

    def _fio(self, path: str, seconds: float, *words: str) -> Result:
        common = f"--name=x --filename={path} --size={SIZE} --ioengine=libaio --direct=1 --output-format=json"
        said = self._machine.run(f"fio {common} {' '.join(words)} 2>/dev/null", seconds + _SLACK).out
        job: Result = json.loads(said[said.index("{") :])["jobs"][0]
        if job["error"]:
            raise FemuError(f"fio on {path} ended with error {job['error']}")
        return job

    def idle(self, seconds: float) -> Result:
        """What the drive and QEMU cost while the guest has nothing to do, as fractions of a core."""
        pids = {"qemu": self._machine.pid, "drive": self._drive.pid or 0}
        before = {key: processor_seconds(pid) for key, pid in pids.items()}
        time.sleep(seconds)
        spent = {key: round((processor_seconds(pid) - before[key]) / seconds, 4) for key, pid in pids.items()}
        return {"idle_cpu": spent["drive"], "idle_qemu_cpu": spent["qemu"], "idle_seconds": seconds}

    def counters(self) -> Result:
        """What the drive has counted on its port 0."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(_SLACK)
            client.connect(str(paths.control_socket(self._drive.runtime)))
            client.sendall(b'{"do": "stats"}\n')
            with client.makefile("rb") as answers:
                port: Result = json.loads(answers.readline())["ports"][0]
        return {name: port[name] for name in ("reads", "interrupts")}


def ratios(runs: Sequence[Result]) -> Result:
    """Medians by disk and depth, and ours against QEMU's."""
    found_iops: dict[tuple[str, int], list[float]] = {}
    for one in runs:
        found_iops.setdefault((one["disk"], one["queue_depth"]), []).append(one["iops"])
    median = {key: statistics.median(values) for key, values in found_iops.items()}
    found: Result = {f"qd{depth}_ratio": round(median[OURS, depth] / median[RIVAL, depth], 3) for depth in DEPTHS}
    found |= {f"qd{depth}_null_ratio": round(median[OURS, depth] / median[EMPTY, depth], 3) for depth in DEPTHS}
    found["iops"] = {disk: {f"qd{depth}": round(median[disk, depth]) for depth in DEPTHS} for disk in DISKS}
    return found


def run(rounds: int, seconds: float, idle_seconds: float, progress: Progress) -> Result:
    """The whole benchmark. :raises FemuError, ImagesError: it can't be run here"""
    with ExitStack() as stack:
        folder = stack.enter_context(folder_in_memory())
        lifeline, ours = os.pipe()
        stack.callback(os.close, lifeline)
        stack.callback(os.close, ours)
        name = f"bench-vm-{os.getpid()}"
        drive = DriveChild(DriveOf(name, profile="null", size=str(_CAPACITY), store=str(folder / "store")), lifeline)
        drive.start()
        stack.callback(drive.stop)
        progress("starting the drive (its firmware is compiled first where it is new)")
        await_all([drive], cancelled=threading.Event(), progress=lambda _: None)
        sockets = [paths.port_socket(drive.runtime, 0)]
        machine = SingleMachine(folder / "vm", sockets, more=rivals(folder), progress=progress)
        progress("booting the guest")
        bench = Bench(stack.enter_context(machine), drive)
        bench.fill()
        before, runs = bench.counters(), []
        for number in range(rounds):
            for disk in DISKS:
                for depth in DEPTHS:
                    runs.append(one := bench.measure(disk, depth, seconds))
                    progress(f"round {number + 1} of {rounds}: {disk}, depth {depth}: {one['iops']:.0f} IOPS")
        after = bench.counters()
        added = {key: after[key] - before[key] for key in after}
        return {
            **ratios(runs),
            "interrupts_per_read": round(added["interrupts"] / max(added["reads"], 1), 3),
            **bench.idle(idle_seconds),
            "runs": runs,
            "guest": {
                "qemu": ".".join(map(str, machine.emulator.version)),
                "accelerator": machine.accelerator.name,
                "kernel": machine.run("uname -r").out.strip(),
                "fio": machine.run("fio --version").out.strip(),
                "rival": "-device nvme on a raw file in memory, settings as QEMU has them",
            },
        }  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """Measure; the result is one JSON object on standard output, progress goes to standard error."""
    parser = argparse.ArgumentParser(prog="python -m emucsd_femu bench-vm", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each run")
    parser.add_argument("--idle-seconds", type=float, default=5.0)
    options = parser.parse_args(arguments)
    try:
        result = run(
            options.rounds, options.seconds, options.idle_seconds, lambda text: print(text, file=sys.stderr, flush=True)
        )
    except (FemuError, ImagesError, OSError) as problem:
        print(problem, file=sys.stderr)
        return 1
    print(json.dumps(result))
    return 0
