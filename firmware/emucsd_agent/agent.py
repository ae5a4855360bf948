"""The agent: one process that joins the drive's tunnel and serves jobs on it.

python3 -m emucsd_agent --drive /dev/nvme0 --token-file /etc/emucsd/token       in the drive's own machine
python3 -m emucsd_agent --listen 127.0.0.1:7077                                 without a drive: for tests
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from emucsd.isp.protocol import PORT
from emucsd_agent.cgroup import Group, Unavailable
from emucsd_agent.errors import AgentError, SetupFailed
from emucsd_agent.governor import Engine, Governor
from emucsd_agent.hold import Hold
from emucsd_agent.job import Machinery
from emucsd_agent.jobs import Jobs
from emucsd_agent.report import memory, report
from emucsd_agent.server import Server, log
from emucsd_agent.spawn import Spawner

WORK = Path("/var/tmp/emucsd-isp")
_IP_FREEBIND = 15
_PASSED_ON = ("PATH", "LANG", "PYTHONPATH", "LD_LIBRARY_PATH", "TMPDIR", "TZ")


class Settings(NamedTuple):
    """The command line."""

    drive: str | None
    listen: list[str]
    tunnel: bool
    token: str
    work: Path
    engine: Engine
    ready_fd: int | None
    lifeline_fd: int | None


def parse(arguments: Sequence[str]) -> Settings:
    """:raises SetupFailed: a value that can't be used"""
    cpus = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(prog="python3 -m emucsd_agent", description="Serve jobs inside of a drive.")
    add = parser.add_argument
    add(
        "--drive", metavar="WHERE", help="/dev/nvme0 of this machine, or a drive's runtime folder: port 1 of that drive"
    )
    add(
        "--listen",
        metavar="WHERE",
        action="append",
        default=[],
        help=f"ADDRESS:PORT or unix:PATH to serve on besides port {PORT} of the tunnel's address; may be repeated",
    )
    add("--no-tunnel", action="store_true", help="attach to the drive, and leave its tunnel alone")
    add("--token-file", metavar="FILE", help="what clients must say; without it whoever reaches the agent may use it")
    add("--work", metavar="DIR", type=Path, default=WORK, help=f"folder for jobs (default: {WORK})")
    add("--cores", metavar="N", type=int, default=cpus, help="cores that the engine has (default: this machine's)")
    add("--memory", metavar="BYTES", type=int, default=memory()[0], help="what all jobs together may hold")
    add(
        "--cpu-share",
        metavar="F",
        type=float,
        default=1.0,
        help="part of a core here that a core of the engine is worth",
    )
    add("--ready-fd", metavar="FD", type=int, help="descriptor for one JSON line, once it serves or has failed to")
    add("--lifeline-fd", metavar="FD", type=int, help="descriptor whose end of file stops the agent")
    given = parser.parse_args(arguments)
    if not given.listen and (given.drive is None or given.no_tunnel):
        raise SetupFailed("give --drive, whose tunnel to join, or --listen ADDRESS:PORT")
    if given.cores < 1 or given.memory < 1 << 20 or not 0 < given.cpu_share <= 1:
        raise SetupFailed(
            f"--cores {given.cores} --memory {given.memory} --cpu-share {given.cpu_share}: at least 1 core, 1 MiB and "
            "more than 0, at most 1 of a core"
        )
    engine = Engine(given.cores, given.memory, given.cpu_share)
    return Settings(
        given.drive,
        given.listen,
        not given.no_tunnel,
        _token(given.token_file),
        given.work,
        engine,
        given.ready_fd,
        given.lifeline_fd,
    )


def listener(where: str) -> socket.socket:
    """Listen on ``ADDRESS:PORT`` or ``unix:PATH``. :raises SetupFailed: it can't be"""
    host, _, port = where.rpartition(":")
    if not host or (host != "unix" and (not port.isdecimal() or int(port) > 65535)):
        raise SetupFailed(f"{where}: must be ADDRESS:PORT, as in 127.0.0.1:{PORT}, or unix:PATH")
    made = socket.socket(socket.AF_UNIX if host == "unix" else socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        if host == "unix":
            Path(port).unlink(missing_ok=True)
            made.bind(port)
        else:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)  # the tunnel may come and go under it
            made.bind((host, int(port)))
        made.listen(32)
    except OSError as problem:
        made.close()
        raise SetupFailed(f"{where}: {problem.strerror or problem}; does another agent serve there?") from problem
    return made


def _token(path: str | None) -> str:
    if path is None:
        return ""
    try:
        token = Path(path).read_text().strip()
    except OSError as problem:
        raise SetupFailed(f"--token-file {path}: {problem.strerror}") from problem
    if not token:
        raise SetupFailed(f"--token-file {path}: it is empty; put a secret word into it")
    return token


class Agent:
    """Everything that serves; ``run`` until stopped."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        os.umask(0o077)
        self._wake, waking = socket.socketpair()
        waking.setblocking(False)
        self.spawner = Spawner()  # before the first thread
        signal.set_wakeup_fd(waking.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda number, _: None)
        self._waking = waking
        cpus = sorted(os.sched_getaffinity(0))
        group = _group()
        self.governor = Governor(settings.engine, len(cpus), group)
        self._environment = {key: os.environ[key] for key in _PASSED_ON if key in os.environ}
        self._environment.setdefault("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        self._environment["PYTHONUNBUFFERED"] = "1"  # a job's log is there as it is printed
        mine = cpus[: settings.engine.cores]
        self.machinery = Machinery(self.spawner, self.governor, group, self.environment, mine)
        self.jobs = Jobs(settings.work, self.machinery)
        self._servers: dict[str, Server] = {}
        self._hold: Hold | None = None
        if settings.drive is not None:
            joined = self._joined if settings.tunnel else None
            self._hold = Hold(settings.drive, settings.work, joined)

    def environment(self) -> dict[str, str]:
        """What a job that starts now finds."""
        return {**self._environment, **({} if self._hold is None else self._hold.variables())}

    def more(self) -> dict[str, Any]:
        """What a report says beyond the machine."""
        return {} if self._hold is None else {"drive": self._hold.describe()}

    def serve(self, where: str) -> str:
        """Listen there, in a thread. :returns: where exactly :raises SetupFailed: it can't be"""
        made = listener(where)
        server = Server(made, self.jobs, self.settings.token, lambda: report(self.jobs, self.governor, self.more()))
        self._servers[where] = server
        threading.Thread(target=server.serve, name="server", daemon=True).start()
        if made.family == socket.AF_UNIX:
            return where
        host, port = made.getsockname()
        return f"{host}:{port}"

    def _joined(self, address: str) -> None:
        """The tunnel is open with this address: serve there, and nowhere that the tunnel was before."""
        where = f"{address}:{PORT}"
        if where in self._servers:
            return
        for old in [old for old in self._servers if old not in self.settings.listen]:
            self._servers.pop(old).close()
        try:
            log(f"serving jobs on {self.serve(where)}")
        except SetupFailed as problem:
            log(str(problem))

    def wait(self) -> int:
        """Until a signal, the owner's death, or the spawner's. :returns: the exit code"""
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        poller.register(self.spawner.fileno(), select.POLLIN)
        if self.settings.lifeline_fd is not None:
            poller.register(self.settings.lifeline_fd, select.POLLIN)
        ready = {fd for fd, _ in poller.poll()}
        if self.spawner.fileno() in ready:
            log("the spawner of jobs has died; ending")
            return 1
        return 0

    def close(self) -> None:
        """End the jobs and take away what they left; let the drive go."""
        self.jobs.close()
        if self._hold is not None:
            self._hold.close()
        self.spawner.close()
        if self.machinery.group is not None:
            self.machinery.group.close()


def _group() -> Group | None:
    try:
        return Group.find()
    except Unavailable as problem:
        log(f"no control groups, limits are held from outside: {problem}")
        return None


def _tell(fd: int | None, content: dict[str, Any]) -> None:
    """Whoever waits for this agent, once."""
    if fd is not None:
        with open(fd, "w", closefd=True) as file:
            file.write(json.dumps(content) + "\n")


def _as_init() -> None:
    """As the first process of a PID namespace: let a child be the agent, and bury what the kernel hands us."""
    child = os.fork()
    if child == 0:
        return
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: os.kill(child, number))
    while True:
        pid, status = os.wait()
        if pid == child:
            os._exit(max(os.waitstatus_to_exitcode(status), 0))


def main(arguments: Sequence[str]) -> int:
    """Exit 0 when stopped in order, 1 when it could not go on, 2 for settings that can't be used."""
    if os.getpid() == 1:
        _as_init()
    ready_fd = None
    try:
        settings = parse(arguments)
        ready_fd = settings.ready_fd
        agent = Agent(settings)
        where = [agent.serve(one) for one in settings.listen]
        _tell(ready_fd, {"ok": True, "listen": where, "pid": os.getpid()})
        if where:
            log(f"serving jobs on {', '.join(where)}")
        status = agent.wait()
        agent.close()
    except AgentError as problem:
        log(str(problem))
        _tell(ready_fd, {"ok": False, "error": {"kind": problem.kind, "message": str(problem)}})
        return 2
    return status
