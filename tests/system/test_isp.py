"""Jobs in the drive's own machine: over the tunnel, on an aarch64 Linux, beside the flash.

1. The agent has joined by itself: its report. 2. Files there and back, the log as it comes. 3. What the host wrote is
read by a job, and the other way round. 4. Limits by the kernel's control groups; cancel. 5. The command line. 6. The
agent is killed and comes back.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from emucsd.cli.main import main
from emucsd.isp.client import Isp
from emucsd.isp.errors import IspError, JobCancelled, LimitExceeded
from emucsd.isp.protocol import Limits
from emucsd.isp.testbed import engine_of
from emucsd.testbed import Testbed
from tests.drive_process import until

pytestmark = pytest.mark.vm
SECONDS = 120.0
DISK = """
import hashlib, sys
from emucsd.isp.disk import Disk
with Disk.open() as disk:
    print(hashlib.sha256(disk.read(int(sys.argv[1]), int(sys.argv[2]))).hexdigest())
    disk.write(int(sys.argv[3]), open("data", "rb").read())
    disk.flush()
"""
SHARE = """
import os, subprocess, sys
from pathlib import Path
from emucsd.isp.client import Isp
words = ["--listen", "unix:agent", "--work", "work", "--cpu-share", "0.25"]
agent = subprocess.Popen([sys.executable, "-m", "emucsd_agent", *words], stderr=subprocess.DEVNULL)
isp = Isp(socket=Path("agent"))
print(isp.wait_ready(60)["throttle"])
spin = "import time; end = time.monotonic() + 2\\nwhile time.monotonic() < end: pass"
result = isp.run([sys.executable, "-c", spin]).wait()
print(result.cpu_seconds / result.seconds)
agent.terminate()
agent.wait()
print(os.listdir("work"))
"""
FIRST, SECOND = 1 << 20, 4 << 20  # places on the disk: any test here may write there
SIZE = 300_000 // 4096 * 4096


@pytest.fixture(scope="module")
def isp(testbed: Testbed) -> Iterator[Isp]:
    with engine_of(testbed.status()) as made:
        made.wait_ready(SECONDS)
        yield made


def test_report(isp: Isp) -> None:
    """Four cores of an A53, its drive attached through Linux, the tunnel up."""
    report = isp.report()
    assert (report["machine"], report["cores"], report["throttle"]) == ("aarch64", 4, "none")
    assert report["drive"]["attached"]
    assert report["drive"]["where"].startswith("/dev/nvme")
    assert report["drive"]["tunnel"]["up"]
    assert 0 < report["memory"]["available_bytes"] < report["memory"]["total_bytes"]


def test_files_and_log(isp: Isp) -> None:
    """Inputs arrive, the log is there while the job runs, outputs come back equal; nothing stays."""
    data = os.urandom(1_000_001)
    job = isp.run(["sh", "-c", "echo $(uname -m) $(wc -c <in); cp in out; sleep 1; echo done"], inputs={"in": data},
                  outputs=["out"])  # fmt: skip
    lines = iter(job)
    assert next(lines) == "aarch64 1000001"
    assert job.state == "running"
    assert list(lines) == ["done"]
    assert job.outputs["out"] == data
    assert job.id not in {one["job"] for one in isp.jobs()}


def test_flash_from_both_sides(testbed: Testbed, isp: Isp) -> None:
    """A job reads what the host machine wrote, and the host what the job wrote: one disk, two ports."""
    put = f"dd if=/dev/urandom of=/root/block bs={SIZE} count=1 iflag=fullblock 2>&1 && sha256sum </root/block && " \
          f"dd if=/root/block of=/dev/nvme0n1 bs=4096 seek={FIRST // 4096} oflag=direct conv=fsync 2>&1"  # fmt: skip
    written = testbed.host.run(put, check=True).out
    data = os.urandom(SIZE)
    job = isp.run(["python3", "job.py", str(FIRST), str(SIZE), str(SECOND)], inputs={"job.py": DISK, "data": data})
    assert next(iter(job)) in written
    job.wait()
    get = f"dd if=/dev/nvme0n1 of=/root/back bs=4096 skip={SECOND // 4096} count={SIZE // 4096} iflag=direct"
    testbed.host.run(get, check=True)
    assert testbed.host.get("/root/back") == data


def test_memory_limit_by_the_kernel(isp: Isp) -> None:
    """A job that grows too large is ended by its control group, the machine lives on."""
    grow = "x = []\nwhile True: x.append(bytearray(b'1' * (1 << 22)))"
    with pytest.raises(LimitExceeded) as caught:
        isp.run(["python3", "-c", grow], limits=Limits(memory_bytes=64 << 20)).wait()
    assert caught.value.result.reason == "memory"


def test_processor_share_by_the_kernel(isp: Isp) -> None:
    """Another agent, whose cores are worth a quarter, holds its jobs to that by a control group, and leaves none."""
    throttle, share, left = list(isp.run(["python3", "share.py"], inputs={"share.py": SHARE}))
    assert throttle == "cgroup"
    assert float(share) < 0.25 * 1.25
    assert left == "['lock']"


def test_time_limit_and_cancel(isp: Isp) -> None:
    """A job that takes too long, or that is not wanted any more, ends with all that it started."""
    with pytest.raises(LimitExceeded, match="1 s, its limit"):
        isp.run(["sh", "-c", "setsid sleep 999 & sleep 999"], limits=Limits(seconds=1)).wait()
    job = isp.run(["sh", "-c", "echo on; setsid sleep 999 & sleep 999"])
    assert next(iter(job)) == "on"
    job.cancel()
    with pytest.raises(JobCancelled):
        job.wait()
    assert list(isp.run(["sh", "-c", "ps -e | grep -c '[s]leep 999' || true"])) == ["0"]


def test_command_line(testbed: Testbed, capfd: pytest.CaptureFixture[str], tmp_path: Path,
                      monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """`emucsd isp run` finds the engine by the testbed's folder, prints the log, brings the output."""
    monkeypatch.chdir(tmp_path)
    words = [
        "isp",
        "run",
        "--output",
        f"out:{tmp_path / 'out'}",
        str(testbed.runtime),
        "sh",
        "-c",
        "uname -m | tee out",
    ]
    assert main(words) == 0
    assert capfd.readouterr().out == "aarch64\n"
    assert (tmp_path / "out").read_text() == "aarch64\n"
    assert main(["isp", "status", str(testbed.runtime)]) == 0
    assert "aarch64" in capfd.readouterr().out


def test_agent_killed(isp: Isp) -> None:
    """kill -9 of the agent, by a job of its own: the machine starts it again, and it joins the same tunnel."""
    before = isp.report()["agent_seconds"]
    job = isp.run(["sh", "-c", "pkill -9 -f 'python3 -m emucsd_agent'; sleep 999"])
    with pytest.raises(IspError):
        job.wait()

    def back() -> bool:
        with contextlib.suppress(IspError):
            return bool(isp.report()["agent_seconds"] < before)
        return False

    until(back, SECONDS)
    assert list(isp.run(["echo", "again"])) == ["again"]
