"""The agent as a real process on loopback, and jobs on it: files, log, limits, cancel, clients that go away."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from emucsd.isp.client import Isp
from emucsd.isp.errors import IspLost, IspRefused, IspUnreachable, JobCancelled, JobFailed, LimitExceeded
from emucsd.isp.protocol import Limits, Violation
from tests.drive_process import until
from tests.protocol.agent_process import AgentProcess

PYTHON = sys.executable
SECONDS = 30.0


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    with AgentProcess(tmp_path_factory.mktemp("agent")) as made:
        yield made


@pytest.fixture
def isp(agent: AgentProcess) -> Isp:
    return agent.client()


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def first_number(job: Iterator[str]) -> int:
    return int(next(job))


# -- jobs --------------------------------------------------------------------------------------------------------------


def test_files_there_and_back(isp: Isp, tmp_path: Path) -> None:
    """Inputs of any size arrive whole, outputs come back equal: as bytes, and as files; others stay."""
    data = os.urandom(3_000_001)
    (tmp_path / "in.bin").write_bytes(data)
    job = isp.run(
        ["sh", "-c", "cat a/in.bin >copy; mkdir b; wc -c <copy >b/size; touch other empty"],
        inputs={"a/in.bin": tmp_path / "in.bin", "nothing": b""},
        outputs={"copy": tmp_path / "new" / "copy", "b/size": None, "empty": None, "absent": None},
    )
    result = job.wait()
    assert (result.ok, result.reason, result.status) == (True, "exited", 0)
    assert (tmp_path / "new" / "copy").read_bytes() == data
    assert job.outputs["b/size"] == b"3000001\n"
    assert job.outputs["empty"] == b""
    assert job.missing == ["absent"]
    assert not [p for p in (tmp_path / "new").iterdir() if p.name != "copy"]


def test_executable_input(isp: Isp, tmp_path: Path) -> None:
    """A script that is executable here is so there."""
    script = tmp_path / "run.sh"
    script.write_text("#!/bin/sh\necho it ran $1\n")
    script.chmod(0o755)
    assert list(isp.run(["./run.sh", "well"], inputs={"run.sh": script})) == ["it ran well"]


def test_log_is_live(isp: Isp) -> None:
    """A line is here while the job still runs: it goes on only when told by what we do after reading it."""
    fifo_job = "import sys,time\nprint('one', flush=True)\nprint('two', file=sys.stderr)\ntime.sleep(60)"
    job = isp.run([PYTHON, "-c", fifo_job])
    lines = iter(job)
    assert [next(lines), next(lines)] == ["one", "two"]
    assert job.state == "running"
    job.cancel()
    assert list(lines) == []
    assert job.wait(check=False).reason == "cancelled"


def test_log_comes_whole(isp: Isp) -> None:
    """Megabytes of log come in order, without a byte lost, to a reader that is slow."""
    job = isp.run([PYTHON, "-c", "for n in range(200000): print(n)"])
    lines = iter(job)
    assert next(lines) == "0"
    assert sum(1 for at, line in enumerate(lines, 1) if int(line) == at) == 199_999


def test_environment(isp: Isp) -> None:
    """A job has its variables, its id, an empty standard input, and a folder of its own as home and here."""
    lines = list(isp.run(["sh", "-c", "echo $MINE $EMUCSD_JOB; cat; pwd; echo $HOME"], env={"MINE": "so"}))
    assert lines[0].startswith("so job-")
    assert lines[1] == lines[2]
    assert lines[0].endswith(Path(lines[1]).name)


@pytest.mark.parametrize(
    ("argv", "reason", "status", "text"),
    [
        (["false"], "exited", 1, "ended with status 1"),
        (["sh", "-c", "echo oops; exit 7"], "exited", 7, "oops"),
        (["sh", "-c", "kill -SEGV $$"], "signal", -signal.SIGSEGV, "SIGSEGV"),
        (["no-such-program"], "failed", None, "No such file"),
        (["/"], "failed", None, "Permission denied"),
    ],
)
def test_bad_ends(isp: Isp, argv: list[str], reason: str, status: int | None, text: str) -> None:
    """A job that fails raises an error that says how, with the end of its log."""
    with pytest.raises(JobFailed, match=text) as caught:
        isp.run(argv).wait()
    assert (caught.value.result.reason, caught.value.result.status) == (reason, status)


# -- limits and cancel -------------------------------------------------------------------------------------------------


def test_time_limit(isp: Isp) -> None:
    """A job that takes too long is ended with all that it started, deaf to SIGTERM or not."""
    job = isp.run(["sh", "-c", "trap '' TERM; sleep 60 & echo $!; wait; sleep 60"], limits=Limits(seconds=0.3))
    child = first_number(iter(job))
    with pytest.raises(LimitExceeded, match=r"0\.3 s, its limit") as caught:
        job.wait()
    assert caught.value.result.seconds < SECONDS
    assert not alive(child)


def test_memory_limit(isp: Isp) -> None:
    """A job that grows beyond its limit is ended; what it held is told."""
    grow = "x = []\nwhile True: x.append(bytearray(b'1' * (1 << 22)))"
    with pytest.raises(LimitExceeded) as caught:
        isp.run([PYTHON, "-c", grow], limits=Limits(memory_bytes=96 << 20)).wait()
    assert caught.value.result.reason == "memory"
    assert caught.value.result.peak_bytes > 64 << 20  # by the kernel it ends before it has all of them


def test_memory_of_all_processes(isp: Isp) -> None:
    """The limit is on the sum: processes that each keep below it are ended when together they do not."""
    one = "import time; x = bytearray(b'1' * (40 << 20)); time.sleep(60)"
    argv = ["sh", "-c", f'for n in 1 2 3; do {PYTHON} -c "{one}" & done; wait']
    with pytest.raises(LimitExceeded) as caught:
        isp.run(argv, limits=Limits(memory_bytes=100 << 20)).wait()
    assert caught.value.result.reason == "memory"


@pytest.mark.parametrize("command", ["yes", "head -c 1000000 /dev/zero >big"])
def test_output_limit(isp: Isp, command: str) -> None:
    """Neither the log nor a file grows beyond the limit."""
    job = isp.run(["sh", "-c", f"exec {command}"], limits=Limits(output_bytes=100_000), outputs=["big"])
    if command == "yes":
        with pytest.raises(LimitExceeded) as caught:
            job.wait()
        assert caught.value.result.reason == "output"
    else:
        assert not job.wait(check=False).ok
        assert job.outputs["big"] == bytes(100_000)
    assert job.log_offset <= 100_000


def test_cores_and_niceness(isp: Isp) -> None:
    """A job runs on the cores and with the priority that it was given."""
    code = "import os; print(len(os.sched_getaffinity(0)), os.nice(0))"
    before = os.nice(0)
    assert list(isp.run([PYTHON, "-c", code], limits=Limits(cpus=1, nice=7))) == [f"1 {min(before + 7, 19)}"]


def test_cancel_ends_everything(isp: Isp) -> None:
    """Cancel reaches what the job has abandoned in a session of its own, too."""
    job = isp.run(["sh", "-c", "setsid sh -c 'setsid sleep 60 & echo $!' & wait; sleep 60"])
    child = first_number(iter(job))
    assert alive(child)
    assert isp.cancel(job.id)["job"] == job.id
    with pytest.raises(JobCancelled):
        job.wait()
    assert not alive(child)


def test_background_ends_with_its_job(isp: Isp) -> None:
    """What a job leaves behind does not outlive it."""
    job = isp.run(["sh", "-c", "setsid sleep 60 & echo $!"])
    child = first_number(iter(job))
    assert job.wait().ok
    assert not alive(child)


# -- clients that go away ----------------------------------------------------------------------------------------------


def test_kill_on_disconnect(isp: Isp, agent: AgentProcess) -> None:
    """A job goes with its client unless told otherwise; nothing of it stays."""
    job = isp.run(["sh", "-c", "echo $$; sleep 60"])
    child = first_number(iter(job))
    job.close()
    until(lambda: not alive(child), SECONDS)
    until(lambda: job.id not in {one["job"] for one in isp.jobs()}, SECONDS)
    assert not (agent.work / job.id).exists()


def test_detach_and_attach(isp: Isp, tmp_path: Path) -> None:
    """A detached job goes on; whoever attaches gets the log from where they want it, and its outputs, once."""
    go = tmp_path / "go"
    script = f"echo begun; while [ ! -e {go} ]; do sleep 0.01; done; echo done; echo out >out"
    first = isp.run(["sh", "-c", script], outputs=["out"], on_disconnect="detach")
    lines = iter(first)
    assert next(lines) == "begun"
    first.close()
    assert {one["job"]: one["state"] for one in isp.jobs()}[first.id] == "running"
    go.touch()
    again = isp.attach(first.id, log_offset=first.log_offset)
    assert list(again) == ["done"]
    assert again.outputs == {"out": b"out\n"}
    until(lambda: first.id not in {one["job"] for one in isp.jobs()}, SECONDS)
    with pytest.raises(IspRefused, match=first.id) as caught:
        isp.attach(first.id)
    assert caught.value.kind == "NoJob"


def test_forget(isp: Isp) -> None:
    """What nobody wants can be let go of, but not while it runs."""
    job = isp.run(["sleep", "60"], on_disconnect="detach")
    job.close()
    until(lambda: isp.jobs()[-1]["state"] == "running", SECONDS)
    with pytest.raises(IspRefused, match="cancel it first"):
        isp.forget(job.id)
    isp.cancel(job.id)
    until(lambda: isp.jobs()[-1]["state"] == "ended", SECONDS)
    isp.forget(job.id)
    assert job.id not in {one["job"] for one in isp.jobs()}


def test_client_killed_while_sending(agent: AgentProcess, isp: Isp, tmp_path: Path) -> None:
    """A client that dies in the middle of its inputs leaves no job behind."""
    before = {one["job"] for one in isp.jobs()}
    request = {"do": "run", "argv": ["true"], "inputs": [{"name": "x", "size": 100}]}
    stream = isp._open(request)
    until(lambda: len(isp.jobs()) > len(before), SECONDS)
    stream.close()
    until(lambda: {one["job"] for one in isp.jobs()} == before, SECONDS)


def test_a_client_that_does_not_read(isp: Isp) -> None:
    """A client that leaves its log unread holds up nobody: the job ends, others are served."""
    job = isp.run([PYTHON, "-c", "print('x' * (32 << 20))"], on_disconnect="detach")
    until(lambda: next(one for one in isp.jobs() if one["job"] == job.id)["state"] == "ended", SECONDS)
    assert list(isp.run(["echo", "hello"])) == ["hello"]
    assert sum(len(line) for line in job) == 32 << 20


def test_many_at_once(isp: Isp) -> None:
    """Jobs run beside each other, each with its own folder and log."""
    found: dict[int, list[str]] = {}

    def one(number: int) -> None:
        found[number] = list(isp.run(["sh", "-c", "cat in; sleep 0.2; ls"], inputs={"in": f"{number}\n"}))

    threads = [threading.Thread(target=one, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert found == {n: [str(n), "in"] for n in range(12)}


# -- the agent itself --------------------------------------------------------------------------------------------------


def test_report(isp: Isp) -> None:
    """Cores, memory, load, disk, uptime and jobs, as they are."""
    report = isp.report()
    assert report["cores"] == len(os.sched_getaffinity(0))
    assert report["memory"]["total_bytes"] == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < report["memory"]["available_bytes"] <= report["memory"]["total_bytes"]
    assert len(report["load"]) == 3
    assert report["disk"]["free_bytes"] > 0
    assert report["throttle"] == "none"


def test_nobody_there() -> None:
    """A port without an agent is told with what to look at."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(IspUnreachable, match="is the ISP engine up"):
        Isp("127.0.0.1", port=port).report()


def test_wrong_peer() -> None:
    """Something else that answers there is no agent."""
    with socket.create_server(("127.0.0.1", 0)) as other:

        def speak() -> None:
            connection, _ = other.accept()
            with connection:
                connection.sendall(b"SSH-2.0-OpenSSH_10.0\r\n")
                connection.recv(1000)

        threading.Thread(target=speak).start()
        with pytest.raises(IspLost, match="not an agent's"):
            Isp("127.0.0.1", port=other.getsockname()[1]).report()


def test_own_mistakes_are_found_here(isp: Isp, tmp_path: Path) -> None:
    """What the protocol can't carry is refused before anything is sent."""
    for argv, inputs in (([], {}), (["a\0b"], {}), (["true"], {"../x": b""})):
        with pytest.raises(Violation):
            isp.run(argv, inputs=inputs)
    with pytest.raises(FileNotFoundError):
        isp.run(["true"], inputs={"x": tmp_path / "absent"})


def test_agent_killed(tmp_path: Path) -> None:
    """kill -9 of the agent ends its jobs with it; started again it serves, and what the dead one left is gone."""
    with AgentProcess(tmp_path) as agent:
        job = agent.client().run(["sh", "-c", "setsid sleep 60 & echo $!; sleep 60"], inputs={"x": b"y"})
        child = first_number(iter(job))
        agent.kill()
        with pytest.raises(IspLost):
            job.wait()
        until(lambda: not alive(child), SECONDS)
        assert (agent.work / job.id).exists()
        agent.restart()
        assert agent.client().jobs() == []
        assert not (agent.work / job.id).exists()


def test_agent_stops_in_order(tmp_path: Path) -> None:
    """SIGTERM ends the jobs, removes what they left, and is exit status 0."""
    with AgentProcess(tmp_path) as agent:
        job = agent.client().run(["sh", "-c", "echo $$; sleep 60"])
        child = first_number(iter(job))
        agent.process.terminate()
        assert agent.process.wait(SECONDS) == 0
        until(lambda: not alive(child), SECONDS)
        assert [path.name for path in agent.work.iterdir()] == ["lock"]
        job.close()


def test_one_agent_a_folder(tmp_path: Path) -> None:
    """A second agent does not touch the first one's jobs."""
    with AgentProcess(tmp_path) as agent, pytest.raises(AssertionError, match="another agent uses it"):
        agent.restart()


def test_throttle(tmp_path: Path) -> None:
    """A core that is worth a quarter of one here gets a quarter of one's time, whatever else the machine does."""
    spin = "import time\nend = time.monotonic() + 2\nwhile time.monotonic() < end: pass\nprint(time.process_time())"
    with AgentProcess(tmp_path, "--cpu-share", "0.25", "--cores", "4") as agent:
        isp = agent.client()
        assert isp.report()["throttle"] in ("signals", "cgroup")
        begun = time.monotonic()
        job = isp.run([PYTHON, "-c", spin])
        used = float(list(job).pop())
        took = time.monotonic() - begun
    assert used / took < 0.25 * 1.4
    with contextlib.suppress(OSError):
        assert used / took > 0.25 * 0.4 / max(os.getloadavg()[0] / (os.cpu_count() or 1), 1.0)


def test_start_is_light(agent: AgentProcess) -> None:
    """An agent that does not drive the drive itself loads nothing heavy: it starts on a slow machine, too."""
    heavy = ("numpy", "numba", "llvmlite", "asyncio", "msgspec", "rich", "paramiko")
    maps = Path(f"/proc/{agent.process.pid}/maps").read_text()
    assert not [name for name in heavy if f"/{name}" in maps]
    code = "import sys, emucsd_agent.agent; print(*sys.modules)"
    argv = [PYTHON, "-S", "-c", f"import sys; sys.path[:] = {[path for path in sys.path if path]!r}; {code}"]
    loaded = set(subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split())
    assert not loaded & {*heavy, "subprocess", "logging", "pyroute2", "tempfile", "uuid", "email"}
