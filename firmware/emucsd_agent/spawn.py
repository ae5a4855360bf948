"""Starting jobs, and ending all of a job.

The agent has threads, and a process with threads must not fork and go on in Python. So, before its first thread, it
forks a *spawner*, which does nothing but fork *keepers*, one a job. A keeper is the job's parent and a subreaper: what
the job starts and abandons becomes its child, whatever session it made, so the keeper can end all of it and knows when
nothing is left. It ends its job when told, when the job's first process ends, and when the agent is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import socket
from collections.abc import Mapping
from typing import Any, NoReturn

from emucsd_agent.errors import SetupFailed
from emucsd_agent.processes import PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG, children, prctl, signal_tree, tree

TERM, KILL = b"t", b"k"  # what a keeper is told
_SPEC_LIMIT = 1 << 20
_GLANCE_MS = 1000


class Spawner:
    """The agent's end. Make it before any thread; ``start`` may be called from all of them."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            ours.close()
            _run(_spawner, theirs)
        theirs.close()
        self._socket = ours

    def start(self, spec: Mapping[str, Any], log: int) -> socket.socket:
        """Start a job.

        :returns: the line to its keeper, which says ``{"keeper": pid}`` or ``{"failed": why}`` and, when all of the job
            has ended, ``{"status", "cpu_seconds", "largest_bytes"}``: one JSON object a line

        :param spec: argv, env, folder, rlimits {name: bytes}, nice, cpus [numbers] or None, cgroup (path or None)
        :param log: descriptor for its output
        :raises SetupFailed: the spawner is gone
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        memory = os.memfd_create("job", os.MFD_CLOEXEC)
        try:
            with open(memory, "wb", closefd=False) as file:
                file.write(json.dumps(spec).encode())
            os.lseek(memory, 0, os.SEEK_SET)
            socket.send_fds(self._socket, [b"j"], [memory, theirs.fileno(), log])
        except OSError as problem:
            ours.close()
            raise SetupFailed(f"the spawner of jobs is gone ({problem}); start the agent again") from problem
        finally:
            theirs.close()
            os.close(memory)
        return ours

    def fileno(self) -> int:
        """Readable once the spawner has died."""
        return self._socket.fileno()

    def close(self) -> None:
        """End the spawner; keepers end with their lines."""
        self._socket.close()
        os.waitpid(self.pid, 0)


def _run(body: Any, *arguments: Any) -> NoReturn:
    """The whole life of a forked child: nothing of its parent's runs on in it."""
    status = 1
    try:
        body(*arguments)
        status = 0
    except BaseException as problem:
        os.write(2, f"emucsd_agent: {body.__name__}: {type(problem).__name__}: {problem}\n".encode())
    finally:
        os._exit(status)


def _spawner(line: socket.socket) -> None:
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers are nobody's to wait for
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while True:
        message, fds, _, _ = socket.recv_fds(line, 16, 8)
        if not message:
            return
        if os.fork() == 0:
            line.close()
            _run(_keeper, *fds)
        for fd in fds:
            os.close(fd)


def _keeper(spec_fd: int, line_fd: int, log: int) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    line = socket.socket(fileno=line_fd)
    with open(spec_fd, "rb") as file:
        spec = json.loads(file.read(_SPEC_LIMIT))
    told, tell = os.pipe()  # close-on-exec: end of file means that the program runs
    try:
        result = _raise(spec, log, told, tell, line)
    finally:
        _end_all()  # whatever happened: nothing of a job outlives its keeper
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    result |= {"cpu_seconds": used.ru_utime + used.ru_stime, "largest_bytes": used.ru_maxrss << 10}
    with contextlib.suppress(OSError):  # the agent is gone: nobody wants to know
        _say(line, result)


def _raise(spec: Mapping[str, Any], log: int, told: int, tell: int, line: socket.socket) -> dict[str, Any]:
    """A job from its first process to that one's end. :raises OSError: the agent is gone"""
    main = os.fork()
    if main == 0:
        _run(_become, spec, log, tell)
    os.close(log)
    os.close(tell)
    with open(told, "rb") as file:
        problem = file.read().decode(errors="replace")
    if problem:
        return {"failed": problem}
    _say(line, {"keeper": os.getpid()})
    return {"status": _watch(main, line)}


def _say(line: socket.socket, content: Mapping[str, Any]) -> None:
    line.sendall(json.dumps(content).encode() + b"\n")


def _watch(main: int, line: socket.socket) -> int:
    """Until the job's first process has ended, or is to. :returns: its status, negative for a signal"""
    watched = os.pidfd_open(main)
    poller = select.poll()
    poller.register(watched, select.POLLIN)
    poller.register(line, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poller.poll(_GLANCE_MS)}
        if watched in ready:
            return os.waitstatus_to_exitcode(os.waitpid(main, 0)[1])
        if line.fileno() in ready:
            order = line.recv(1)
            if order == TERM:
                signal_tree(os.getpid(), signal.SIGTERM)
                signal_tree(os.getpid(), signal.SIGCONT)
            else:  # KILL, or the agent is gone
                os.kill(main, signal.SIGKILL)
                return os.waitstatus_to_exitcode(os.waitpid(main, 0)[1])
        for orphan in children(os.getpid()):
            if orphan != main:
                os.waitpid(orphan, os.WNOHANG)


def _end_all() -> None:
    """Kill every descendant, until the kernel says that there are none: a subreaper's children are all of them."""
    while True:
        for one in tree(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        select.select([], [], [], 0.001)  # killed, and not dead yet


_RLIMITS = {"data": resource.RLIMIT_DATA, "file": resource.RLIMIT_FSIZE, "core": resource.RLIMIT_CORE}


def _become(spec: Mapping[str, Any], log: int, tell: int) -> None:
    """In the job's own process: everything up to its program's first instruction."""
    program = ""
    try:
        os.setsid()
        if spec.get("cgroup"):
            with open(f"{spec['cgroup']}/cgroup.procs", "w") as file:
                file.write("0")
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("500")  # should the machine run out of memory: the job before the agent
        null = os.open("/dev/null", os.O_RDONLY)
        for source, target in ((null, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        for name, value in spec["rlimits"].items():
            hard = resource.getrlimit(_RLIMITS[name])[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(_RLIMITS[name], (value, value))
        if spec["cpus"]:
            os.sched_setaffinity(0, spec["cpus"])
        if spec["nice"]:
            os.nice(spec["nice"])
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        os.umask(0o022)
        os.chdir(spec["folder"])
        os.closerange(3, tell)
        os.closerange(tell + 1, os.sysconf("SC_OPEN_MAX"))
        program = spec["argv"][0]
        os.execvpe(program, spec["argv"], spec["env"])
    except OSError as problem:
        os.write(tell, f"{program or problem.filename}: {problem.strerror}".encode(errors="replace"))
