"""Linux's nvme driver and the field's own tools against a drive: nvme-cli, resets under load, power cuts.

One host machine (the image ``host-small``) on one drive with a write buffer, for the whole file: the tests run in order
and every one leaves the machine up. Needs a QEMU that attaches drives and the image; skipped, with the reason, where
they can't be had. No root is needed.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emucsd_femu.errors import QemuMissing, ShellError
from emucsd_femu.single import SingleMachine
from emucsd_images.errors import ImagesError
from tests.drive_process import DriveProcess, until
from tests.system.conftest import require_machines

pytestmark = pytest.mark.vm

WRITER = Path(__file__).with_name("synced_writer.py")
SETTINGS = ("--profile", "null", "--size", "512MiB", "--set", "buffer.pages=256")
CONTROLLER, DISK = "/dev/nvme0", "/dev/nvme0n1"
MIB = 1 << 20
SECONDS = 120.0  # for what takes a few on a quiet machine
FIO = (
    f"fio --name=x --filename={DISK} --size=32m --bs=4k --rw=randrw --verify=crc32c --ioengine=libaio --iodepth=16 "
    "--direct=1 --output-format=json"
)


class Stand:
    """A drive and a machine on it; each can be killed by itself."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.drive = DriveProcess(folder, *SETTINGS)
        assert self.drive.ready["ok"], self.drive.ready
        self.machine = SingleMachine(folder / "vm", [self.drive.port()], memory=512 * MIB)

    def run(self, command: str, seconds: float = SECONDS, *, check: bool = True) -> str:
        return self.machine.run(command, seconds, check=check).out

    def nvme(self, words: str) -> str:
        return self.run(f"nvme {words}")

    def json(self, words: str) -> Any:
        """What a command of nvme-cli tells, as JSON."""
        said = self.nvme(f"{words} -o json")
        return json.loads(said[said.index("{") :])

    def state(self) -> str:
        return self.run("cat /sys/class/nvme/nvme0/state", check=False).strip()

    def live(self) -> None:
        """Wait until the driver has the controller and its disk."""
        until(lambda: self.state() == "live" and not self.run(f"test -b {DISK} || echo missing", check=False), SECONDS)

    def nodes(self) -> list[str]:
        return self.run("ls /dev/nvme* | xargs -n1 basename").split()

    def load(self, seconds: int) -> None:
        """fio, writing and verifying what it reads, in the background."""
        self.run(f"{FIO} --time_based --runtime={seconds} >/tmp/load.json 2>/tmp/load.err & true")
        until(lambda: self.drive.ask("stats")["ports"][0]["writes"] > 0, SECONDS)

    def loaded(self) -> None:
        """Wait for the load's end. It met no error and every block that it verified was right."""
        until(lambda: not self.run("pgrep -x fio", check=False).strip(), SECONDS)
        said = self.run("cat /tmp/load.json")
        job = json.loads(said[said.index("{") :])["jobs"][0]
        assert job["error"] == 0, self.run("cat /tmp/load.err")
        assert job["write"]["total_ios"] > 0
        assert "I/O error" not in self.run("dmesg")

    def put(self, source: Path) -> str:
        """A copy of a small text file in the machine. :returns: its path there"""
        target = f"/root/{source.name}"
        self.run(f"cat >{target} <<'END OF FILE'\n{source.read_text()}END OF FILE\n")
        return target

    def synced(self) -> int:
        """Up to which number the writer has told that blocks are synced."""
        told = re.findall(r"SYNCED (\d+)\r?\n", self.machine.machine.console.read_text(errors="replace"))
        return int(told[-1]) if told else -1

    def write(self, beyond: int) -> None:
        """Start the writer behind what is synced; return when it is well under way."""
        first = self.synced() + 1
        self.run(f"nohup python3 {self.put(WRITER)} write {DISK} {first} >/dev/null 2>&1 & true")
        until(lambda: self.synced() > first + beyond, SECONDS)

    def check(self) -> None:
        """Everything that was ever told to be synced is on the disk."""
        assert self.synced() > 0
        self.run(f"python3 {self.put(WRITER)} check {DISK} {self.synced()}")

    def detached(self) -> None:
        """Wait until the drive knows that its client is gone."""
        until(lambda: self.drive.ask("status")["ports"][0]["client"] is None, SECONDS)

    def close(self) -> None:
        self.machine.cut()
        self.drive.__exit__(None, None, None)


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    require_machines()
    folder = Path(tempfile.mkdtemp(prefix="emucsd-k-"))  # short: sockets lie in it
    try:
        try:
            made = Stand(folder)
        except (QemuMissing, ImagesError) as problem:
            pytest.skip(str(problem))
        try:
            made.machine.start()
            made.live()
            yield made
        finally:
            made.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_identity(stand: Stand) -> None:
    """nvme-cli identifies controller, namespace and subsystem, and they agree."""
    controller = stand.json(f"id-ctrl {CONTROLLER}")
    namespace = stand.json(f"id-ns {DISK}")
    assert stand.json(f"list-ns {CONTROLLER}")["nsid_list"] == [{"nsid": 1}]
    assert namespace["nsze"] * 512 == controller["tnvmcap"] == 512 * MIB
    assert namespace["nmic"] & controller["cmic"] & 1 == 1
    told = stand.nvme(f"ns-descs {DISK}")
    assert all(kind in told for kind in ("eui64", "nguid", "uuid")), told
    listed = stand.nvme("list -v")
    assert controller["sn"].strip() in listed


def test_logs(stand: Stand) -> None:
    """SMART, error, firmware, effects and supported-pages logs are read; a refused command shows in the error log."""
    before = stand.json(f"smart-log {CONTROLLER}")
    assert before["critical_warning"] == 0
    assert stand.json(f"fw-log {CONTROLLER}")
    assert "Read" in stand.nvme(f"effects-log {CONTROLLER} --csi=0 -H")
    assert stand.nvme(f"supported-log-pages {CONTROLLER}")
    stand.run(f"nvme read {DISK} -s 99999999 -c 0 -z 512 >/dev/null", check=False)  # beyond the end: refused
    after = stand.json(f"smart-log {CONTROLLER}")
    assert int(after["num_err_log_entries"]) > int(before["num_err_log_entries"])
    assert int(stand.json(f"error-log {CONTROLLER} -e 4")["errors"][0]["error_count"]) > 0


def test_features(stand: Stand) -> None:
    """Features are told, set and set back; a reset of the controller brings their defaults."""
    for feature in (1, 2, 4, 6, 7, 8, 9, 0xA, 0xB, 0xF):
        assert "Current value" in stand.nvme(f"get-feature {CONTROLLER} -f {feature} -n 0")
    stand.nvme(f"set-feature {CONTROLLER} -f 8 -V 0x0a05")
    assert "0x00000a05" in stand.nvme(f"get-feature {CONTROLLER} -f 8")
    stand.run(f"dd if={DISK} of=/dev/null bs=4k count=200 iflag=direct")  # interrupts are fewer now, and come
    stand.nvme(f"reset {CONTROLLER}")
    stand.live()
    assert "0x00000a05" not in stand.nvme(f"get-feature {CONTROLLER} -f 8")


def test_namespaces(stand: Stand) -> None:
    """Namespaces are deleted, created, attached, formatted and detached; Linux's disks follow."""
    stand.nvme(f"delete-ns {CONTROLLER} -n 1")
    for nsid, blocks, flbas in ((1, 400 * 2048, 0), (2, 8192, 1)):
        stand.nvme(f"create-ns {CONTROLLER} -s {blocks} -c {blocks} -f {flbas} -m 1")
        stand.nvme(f"attach-ns {CONTROLLER} -n {nsid} -c 1")
    stand.nvme(f"ns-rescan {CONTROLLER}")
    until(lambda: {"nvme0n1", "nvme0n2"} <= set(stand.nodes()), SECONDS)
    assert stand.run("blockdev --getsize64 /dev/nvme0n1 /dev/nvme0n2").split() == [str(400 * MIB), str(32 * MIB)]
    assert stand.run("blockdev --getss /dev/nvme0n1 /dev/nvme0n2").split() == ["512", "4096"]
    stand.run("dd if=/dev/urandom of=/dev/nvme0n2 bs=1M count=8 conv=fsync")
    stand.nvme("format /dev/nvme0n2 -l 0 -f")
    stand.nvme(f"ns-rescan {CONTROLLER}")
    until(lambda: stand.run("blockdev --getss /dev/nvme0n2").strip() == "512", SECONDS)
    stand.run("cmp -n 8388608 /dev/nvme0n2 /dev/zero")
    stand.nvme(f"detach-ns {CONTROLLER} -n 2 -c 1")
    stand.nvme(f"delete-ns {CONTROLLER} -n 2")
    stand.nvme(f"ns-rescan {CONTROLLER}")
    until(lambda: "nvme0n2" not in stand.nodes(), SECONDS)


def test_commands(stand: Stand) -> None:
    """Compare, copy, verify, write zeroes, deallocate and write uncorrectable do what their names say."""
    stand.run("head -c 65536 /dev/urandom >/root/data")
    stand.run(f"nvme write {DISK} -s 0 -c 127 -z 65536 -d /root/data")
    stand.run(f"nvme compare {DISK} -s 0 -c 127 -z 65536 -d /root/data")
    stand.nvme(f"copy {DISK} --sdlba=2048 --slbs=0 --blocks=127")
    stand.run(f"nvme compare {DISK} -s 2048 -c 127 -z 65536 -d /root/data")
    stand.nvme(f"verify {DISK} -s 0 -c 127")
    stand.nvme(f"write-zeroes {DISK} -s 0 -c 7")
    stand.nvme(f"dsm {DISK} -d 1 -s 8 -b 8")
    stand.run(f"cmp -n 8192 {DISK} /dev/zero")
    stand.nvme(f"write-uncor {DISK} -s 64 -c 7")
    assert (
        "error" in stand.run(f"dd if={DISK} of=/dev/null bs=4k skip=8 count=1 iflag=direct 2>&1", check=False).lower()
    )
    stand.run(f"dd if=/dev/zero of={DISK} bs=4k seek=8 count=1 oflag=direct && cmp -n 65536 {DISK} /dev/zero || true")
    stand.nvme(f"flush {DISK} -n 1")


def test_sanitize(stand: Stand) -> None:
    """A sanitize ends, says so in its log, and nothing is left."""
    stand.run(f"dd if=/dev/urandom of={DISK} bs=1M count=8 conv=fsync")
    stand.nvme(f"sanitize {CONTROLLER} -a 2")
    until(lambda: stand.json(f"sanitize-log {CONTROLLER}")[CONTROLLER.split("/")[-1]]["sprog"] == 65535, SECONDS)
    stand.run(f"echo 3 >/proc/sys/vm/drop_caches; cmp -n 8388608 {DISK} /dev/zero")


def test_subsystem_reset(stand: Stand) -> None:
    """After an NVM subsystem reset, which Linux leaves to hot plug, a controller reset brings the disk back."""
    stand.nvme(f"subsystem-reset {CONTROLLER}")
    stand.nvme(f"reset {CONTROLLER}")
    stand.live()
    stand.run(f"dd if={DISK} of=/dev/null bs=4k count=16 iflag=direct")


def test_resets_under_load(stand: Stand) -> None:
    """Controller resets, function level resets and rescans under fio lose nothing, and fio sees no error."""
    stand.load(12)
    for _ in range(2):
        stand.nvme(f"reset {CONTROLLER}")
        stand.nvme(f"ns-rescan {CONTROLLER}")
        stand.live()
        stand.run("echo 1 >/sys/class/nvme/nvme0/device/reset")
        stand.live()
    stand.loaded()


def test_suspended_under_load(stand: Stand) -> None:
    """The machine's processors stand still in the middle of it for longer than any patience in the drive."""
    stand.load(6)
    asked = stand.drive.ask("stats")["ports"][0]
    stand.machine.machine.suspend()
    begun = stand.drive.ask("stats")["now_ns"]
    until(lambda: bool(stand.drive.ask("stats")["now_ns"] - begun > 7_000_000_000), SECONDS)
    stand.machine.machine.resume()
    stand.loaded()
    assert stand.drive.ask("stats")["ports"][0]["writes"] > asked["writes"]


def test_unbind_and_remove(stand: Stand) -> None:
    """The driver is unbound and bound, the device removed and found again; the data stay."""
    stand.run(f"head -c 1048576 /dev/urandom >/root/data; dd if=/root/data of={DISK} bs=64k conv=fsync")
    address = stand.run("basename $(readlink -f /sys/class/nvme/nvme0/device)").strip()
    for command in (
        f"echo {address} >/sys/bus/pci/drivers/nvme/unbind; echo {address} >/sys/bus/pci/drivers/nvme/bind",
        f"echo 1 >/sys/bus/pci/devices/{address}/remove; echo 1 >/sys/bus/pci/rescan",
    ):
        stand.run(command)
        stand.live()
        stand.run(f"cmp -n 1048576 {DISK} /root/data")


def test_power_cut_of_the_machine(stand: Stand) -> None:
    """QEMU is killed while a program writes and syncs: at the next boot everything that was synced is there."""
    stand.write(400)
    stand.machine.cut()
    stand.detached()
    stand.machine.start()
    stand.live()
    stand.check()


def test_kill_of_the_drive(stand: Stand) -> None:
    """The drive is killed with -9 in the middle of it and started again on its store: everything synced is there."""
    stand.write(400)
    stand.drive.process.kill()
    stand.drive.process.wait()
    stand.machine.cut()
    stand.drive.__exit__(None, None, None)
    stand.drive = DriveProcess(stand.folder, *SETTINGS)
    assert stand.drive.ready["ok"], stand.drive.ready
    stand.machine.start()
    stand.live()
    stand.check()


def test_reboot(stand: Stand) -> None:
    """The guest's own reboot keeps the drive attached, and its data."""
    attached = stand.drive.ask("status")["ports"][0]["connections"]
    stand.machine.reboot()
    stand.live()
    stand.check()
    assert stand.drive.ask("status")["ports"][0]["connections"] == attached
    log = stand.drive.log()
    assert "internal error" not in log
    assert "Traceback" not in log


def test_nothing_timed_out(stand: Stand) -> None:
    """No command of this machine's driver ran into its time limit."""
    with pytest.raises(ShellError):
        stand.run("dmesg | grep -E 'nvme.*(timeout|timed out)'")
