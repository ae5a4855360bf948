"""A testbed's machines before they run: command lines, what runs in them, keys, the trial's program, what is swept."""

from __future__ import annotations

import fcntl
import json
import platform
import shlex
import struct
import subprocess
import sys
from pathlib import Path

import paramiko
import pytest

from emucsd_femu import accelerator, plans, qemu, sweep
from emucsd_femu.accelerator import Accelerator
from emucsd_femu.description import parse
from emucsd_femu.errors import SettingsError
from emucsd_femu.keys import KeyPair
from emucsd_femu.machine import LinuxMachine
from emucsd_femu.qemu_root import Qemu
from emucsd_images.image import Image

FAKE = Qemu(("qemu",), {}, (10, 1, 1), "a test")
TCG = Accelerator("tcg", "a test")
TWO = parse({"drive": [{}, {}], "tunnel": {"mtu": 9000}})


def words_of(name: str, architecture: str, emulator: Qemu = FAKE, accelerated: Accelerator = TCG) -> list[str]:
    """A machine's command line."""
    key = KeyPair.make()
    image = Image(name, architecture, Path("/k"), Path("/i"), Path("/d"), "console=x", Path("/f"))
    plan = plans.plan(TWO, name, image, key, key, "secret", emulator)
    machine = LinuxMachine(plan, Path("/m"), Path("/o,k.qcow2"), emulator, accelerated, ["qemu-img"])
    return machine.words(7)


def devices(words: list[str]) -> list[dict[str, object]]:
    """The drives among them."""
    found = [words[n + 1] for n, word in enumerate(words) if word == "-device"]
    return [json.loads(word) for word in found if word.startswith("{")]


def test_the_host_machine() -> None:
    """One processor, its own disk, SSH by a port of 127.0.0.1 that QEMU chooses, every drive's port 0 in its slot."""
    words = words_of("host", "x86_64")
    line = shlex.join(words)
    assert "q35,memory-backend=mem" in words
    assert "-no-reboot" not in words
    assert words[words.index("-smp") + 1] == "1"
    assert "hostfwd=tcp:127.0.0.1:0-:22" in line
    assert "file=/o,,k.qcow2" in line
    assert "socket,id=qmp,fd=7,server=on,wait=off" in words
    drives = devices(words)
    assert [drive["addr"] for drive in drives] == ["10", "11"]
    assert ["port0" in json.dumps(drive["socket"]) for drive in drives] == [True, True]


def test_the_machine_in_a_drive() -> None:
    """Four A53 behind a GICv3, no network card, its own drive's port 1 alone."""
    words = words_of("isp1", "aarch64")
    assert "virt,gic-version=3,memory-backend=mem" in words
    assert words[words.index("-cpu") + 1] == "cortex-a53"
    assert words[words.index("-smp") + 1] == "4"
    assert "-netdev" not in words
    (drive,) = devices(words)
    assert "csd1/port1" in json.dumps(drive["socket"])
    assert words_of("isp0", "aarch64", accelerated=Accelerator("kvm", ""))[words.index("-cpu") + 1] == "host"


def test_an_old_qemu_reads_no_rom() -> None:
    """FEMU's binary: no option ROM is looked for, and the guest binds the driver by id."""
    old = FAKE._replace(version=(10, 1, 0))
    assert all(drive["rombar"] == 0 for drive in devices(words_of("host", "x86_64", old)))
    assert not any("rombar" in drive for drive in devices(words_of("host", "x86_64")))
    assert "new_id" in plans.services(TWO, None, bind=True)[0]
    assert "new_id" not in plans.services(TWO, None)[0]


def test_services_find_drives_by_slot(tmp_path: Path) -> None:
    """The shell line is a sound one, and takes drives in their order, whichever was probed first."""
    host, *_ = plans.services(TWO, None)
    assert "--network 10.77.0.0/24 --mtu 9000" in host
    assert host.index("00:10.0/nvme)") < host.index("00:11.0/nvme)")
    isp, *_ = plans.services(TWO, 1)
    assert "emucsd_agent --token-file /etc/emucsd/token" in isp
    assert isp.count("--drive") == 1
    for line in (host, isp):
        subprocess.run(["sh", "-n"], input=line, text=True, check=True)
    assert plans.services(parse({"tunnel": {"enabled": False}}), None) == []


def test_shared_namespaces_are_mounted_on_both_sides() -> None:
    """One folder for one drive, one of its name for each of several; nothing where nobody shares."""
    one = parse({})
    assert plans.services(one, None)[1:] == [": ocfs2; exec emucsd-ocfs2 keep 0000:00:10.0 /shared"]
    assert plans.services(one, 0)[1:] == [": ocfs2; exec emucsd-ocfs2 keep 0000:00:10.0 /shared"]
    drives = [{"name": "a", "isp": {"engine": "none"}}, {"name": "b"}, {"name": "c"}]
    three = parse({"drive": drives, "cluster": {"mount": "/mnt"}})
    assert [line.split(" keep ")[1] for line in plans.mounts(three, None)] == [
        "0000:00:11.0 /mnt/b",
        "0000:00:12.0 /mnt/c",
    ]
    assert plans.mounts(three, 2) == [": ocfs2; exec emucsd-ocfs2 keep 0000:00:10.0 /mnt"]
    for off in ({"mount": ""}, {"ocfs2": False}):
        assert plans.mounts(parse({"cluster": off}), None) == []
    assert plans.mounts(parse({"host": {"engine": "none"}}), 0) == []


def test_the_cluster_knows_every_machine() -> None:
    """Node names are host names, numbers are all different."""
    text = plans.cluster({"host": "10.77.0.1", "isp0": "10.77.0.2"})
    assert "node_count = 2" in text
    assert text.count("\nnode:\n") == 2
    assert "\tip_address = 10.77.0.2\n\tnumber = 1\n\tname = isp0\n" in text


def test_machines_get_our_packages() -> None:
    """The library on the host machine, the agent as well in the drive; nothing of the firmware in either."""
    assert [path.name for path in plans.sources("host")] == ["emucsd_wire", "emucsd"]
    assert [path.name for path in plans.sources("isp")] == ["emucsd_wire", "emucsd", "emucsd_agent"]


def test_keys_are_their_owners_alone(tmp_path: Path) -> None:
    """The private half is readable by its owner only, and paramiko reads it as the same key."""
    pair = KeyPair.make()
    path = pair.write(tmp_path / "key")
    assert path.stat().st_mode & 0o777 == 0o600
    read = paramiko.Ed25519Key.from_private_key_file(str(path))
    assert pair.public == f"{read.get_name()} {read.get_base64()}"
    assert KeyPair.make() != pair
    with pytest.raises(FileExistsError):
        pair.write(path)


def test_the_trials_program_is_one() -> None:
    """An ELF file for its architecture, its word last."""
    for architecture, machine in (("x86_64", 62), ("aarch64", 183)):
        content = accelerator.program(architecture)
        assert content[:4] == b"\x7fELF"
        assert struct.unpack_from("<H", content, 18) == (machine,)
        assert content.endswith(b"EMUCSD-PROBE\n")


def test_the_accelerator_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """EMUCSD_ACCEL is taken as it is, or refused; a foreign architecture is always emulated."""
    monkeypatch.setenv("EMUCSD_ACCEL", "kvm")
    assert accelerator.choose(FAKE, "x86_64", None).name == "kvm"
    monkeypatch.setenv("EMUCSD_ACCEL", "xen")
    with pytest.raises(SettingsError, match="use kvm or tcg"):
        accelerator.choose(FAKE, "x86_64", None)
    monkeypatch.delenv("EMUCSD_ACCEL")
    foreign = "aarch64" if platform.machine() == "x86_64" else "x86_64"
    assert accelerator.choose(FAKE, foreign, None) == Accelerator(
        "tcg", f"{foreign} is emulated on {platform.machine()}"
    )


def test_a_verdict_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a trial showed holds for this boot of the machine and this QEMU."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = Accelerator("kvm", "a guest booted under it in 0.5 s")
    accelerator._remember(FAKE, found)
    assert accelerator._remembered(FAKE) == found
    assert accelerator._remembered(FAKE._replace(command=("other",))) is None
    path = tmp_path / "emucsd" / "accelerator.json"
    path.write_text(path.read_text().replace('"key": ["', '"key": ["another boot '))
    assert accelerator._remembered(FAKE) is None


def left_behind(root: Path, pid: int | None, disk: Path) -> Path:
    """What a testbed leaves whose supervisor was killed."""
    (root / "bed" / "host").mkdir(parents=True)
    (root / "csd").mkdir()
    content = {
        "machines": {"host": {"pid": pid, "disk": str(disk)}},
        "drives": [{"name": "csd", "runtime": str(root / "csd")}],
    }
    (root / "bed" / "testbed.json").write_text(json.dumps(content))
    return root / "bed"


def test_a_dead_testbed_is_swept(tmp_path: Path) -> None:
    """Folders, disks and a machine that lived on are gone; a process that only has its number is left alone."""
    disk = tmp_path / "store" / "host.qcow2"
    disk.parent.mkdir()
    disk.touch()
    root = tmp_path / "run"
    bed = left_behind(root, None, disk)
    lived_on = [sys.executable, "-c", "import time; time.sleep(60)", f"{bed}/host/console"]
    with subprocess.Popen(lived_on) as process, subprocess.Popen(lived_on[:3]) as other:
        record = bed / "testbed.json"
        record.write_text(record.read_text().replace("null", str(process.pid)))
        try:
            assert sweep.sweep(root) == ["bed"]
            assert process.wait(10) == -9
            left_behind(root, other.pid, disk)
            assert sweep.sweep(root) == ["bed"]
            assert other.poll() is None
        finally:
            process.kill()
            other.kill()
    assert list(root.iterdir()) == []
    assert not disk.parent.exists()


def test_a_live_testbed_is_not_swept(tmp_path: Path) -> None:
    """Its supervisor holds its lock."""
    bed = left_behind(tmp_path, None, tmp_path / "disk")
    with open(bed / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert sweep.sweep(tmp_path) == []
    assert bed.is_dir()
    assert sweep.sweep(tmp_path) == ["bed"]


def test_folders_of_options_are_quoted() -> None:
    """A comma in a path is not the end of an option's value."""
    assert qemu.console(Path("/a,b/c"))[1] == "file,id=console,path=/a,,b/c,append=on"
