"""The tunnel: throughput both ways, round trips, and what its ends cost while nothing comes.

A drive of the bench's own, its two ends as processes in network namespaces of their own, iperf3 between them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from emucsd.bench.environment import environment
from emucsd.embedded import DriveProcess
from emucsd.errors import StartFailed
from emucsd.tunnel import network

PROFILE = "null"
SIZE = "256MiB"
ECHOES, GAP = 1000, 0.001
IDLE_SECONDS = 3.0
_START_SECONDS = 60.0


class EndProcess:
    """One end in a namespace of its own. Leaving its ``with`` ends it."""

    def __init__(self, which: str, runtime: Path, *words: str) -> None:
        ready, theirs = os.pipe()
        self._log = open(runtime / f"tunnel-{which}", "w+")  # noqa: SIM115 - closed with the process
        self.process = subprocess.Popen(
            [sys.executable, "-m", "emucsd.tunnel", which, "--drive", str(runtime), "--private",
             "--ready-fd", str(theirs), *words],
            pass_fds=[theirs], stderr=self._log,
        )  # fmt: skip
        os.close(theirs)
        self._ready = open(ready, "rb")  # noqa: SIM115 - closed when it has told

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait(self) -> dict[str, Any]:
        """Until the tunnel is open. :raises StartFailed: the end has failed, with what it said"""
        with self._ready:
            line = self._ready.readline()
        if not line:
            self._log.seek(0)
            raise StartFailed(f"the tunnel's end did not start: {self._log.read().strip()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def words(self, *words: str) -> list[str]:
        """A command inside of its namespace."""
        own = Path("/proc/self/ns/user").stat().st_ino == Path(f"/proc/{self.pid}/ns/user").stat().st_ino
        user = [] if own else ["-U", "--preserve-credentials"]
        return ["nsenter", *user, "-n", "-t", str(self.pid), *words]

    def run(self, *words: str, timeout: float = 60.0) -> Any:
        """The JSON that a command prints, None when it fails."""
        done = subprocess.run(self.words(*words), capture_output=True, text=True, timeout=timeout)
        return json.loads(done.stdout) if done.returncode == 0 else None

    def __enter__(self) -> EndProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(5.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()


def ticks(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def idle_percent(pids: dict[str, int]) -> dict[str, float]:
    """Percent of a core that each process uses while nothing happens."""
    time.sleep(1.0)
    before, begun = {name: ticks(pid) for name, pid in pids.items()}, time.monotonic()
    time.sleep(IDLE_SECONDS)
    took = time.monotonic() - begun
    return {name: 100 * (ticks(pid) - before[name]) / took for name, pid in pids.items()}


@contextmanager
def server(isp: EndProcess) -> Iterator[None]:
    """iperf3's server beside the ISP engine's end."""
    process = subprocess.Popen(isp.words("iperf3", "-s"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def throughput(host: EndProcess, address: str, seconds: float, *words: str) -> float | None:
    """Mbit/s of one TCP connection as its receiver counts them."""
    for _ in range(50):  # the server may not listen yet
        found = host.run("iperf3", "-c", address, "-t", f"{seconds:g}", "-J", *words, timeout=seconds + 30)
        if found is not None and "end" in found and "sum_received" in found["end"]:
            return float(found["end"]["sum_received"]["bits_per_second"]) / 1e6
        time.sleep(0.1)
    return None


def run_tunnel_bench(*, seconds: float = 3.0, mtu: int = network.DEFAULT_MTU, profile: str = PROFILE) -> dict[str, Any]:
    """All figures; None for what can't be measured here (``skipped`` says why).

    :param seconds: of each direction
    :raises EmucsdError: no namespaces, or no drive
    """
    figures: dict[str, Any] = {"environment": environment(), "mtu": mtu, "profile": profile}
    with contextlib.ExitStack() as stack:
        drive = stack.enter_context(DriveProcess(profile=profile, size=SIZE))
        isp = stack.enter_context(EndProcess("isp", drive.runtime))
        host = stack.enter_context(EndProcess("host", drive.runtime, "--mtu", str(mtu)))
        host.wait()
        address = str(isp.wait()["address"])
        echo = host.run(sys.executable, "-m", "emucsd.bench.echo", address, str(ECHOES), str(GAP)) or {}
        figures |= {"tunnel_ping_median_us": echo.get("median_us"), "tunnel_ping_p99_us": echo.get("p99_us")}
        if shutil.which("iperf3") is None:
            figures |= {"tunnel_to_isp_mbit": None, "tunnel_to_host_mbit": None, "skipped": "iperf3 is not installed"}
        else:
            with server(isp):
                figures["tunnel_to_isp_mbit"] = throughput(host, address, seconds)
                figures["tunnel_to_host_mbit"] = throughput(host, address, seconds, "-R")
        idle = idle_percent({"host": host.pid, "isp": isp.pid, "drive": drive.pid})
        figures |= {f"tunnel_idle_{name}_percent": used for name, used in idle.items()}
    return figures
