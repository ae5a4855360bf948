"""Nodes: how a command runs on the tunnel's network, whatever the node is.

| kind | is | a command is |
| --- | --- | --- |
| ``process`` | this machine, loopback | a child process |
| ``host-local`` | this machine, in the tunnel's namespace | a child process, by ``nsenter`` |
| ``local`` | a drive's local engine | a job of its agent |
| ``machine`` | a drive's own machine | a job of its agent |
| ``host-machine`` | a testbed's host machine | a command over SSH |

Each is given the same three things: words, variables, and files that are to lie in its working folder.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from emucsd.errors import EmucsdError
from emucsd.isp.errors import IspError
from emucsd.process import environment
from emucsd.stannis.errors import NodeFailed

if TYPE_CHECKING:
    from emucsd.isp.client import Isp
    from emucsd.isp.job import Job
    from emucsd.testbed import Machine

Files = Mapping[str, bytes | Path]
LOOPBACK = "127.0.0.1"
MACHINE_FOLDER = "/root/stannis"  # of the host machine: working folders of its commands
_STOP_SECONDS = 5.0
_TAKEN = ("PYTHONPATH", "PYTHONUNBUFFERED", "OMP_WAIT_POLICY")  # of our environment, into a local engine's


class Ended(NamedTuple):
    """How a command ended. :ivar status: of its exit, negative for a signal, None where nobody knows"""

    status: int | None
    why: str

    @property
    def ok(self) -> bool:
        """By itself, with status 0."""
        return self.status == 0


class Running(Protocol):
    """A command that was started. ``lines`` is for one thread; the others for any."""

    def lines(self) -> Iterator[str]:
        """What it prints, as it comes, until it ends or is lost; never raises."""
        ...

    def wait(self) -> Ended:
        """Until it has ended. ``lines`` must have been read to its end, or be read by another thread."""
        ...

    def stop(self) -> None:
        """Ask it to end (SIGTERM)."""
        ...

    def kill(self) -> None:
        """End it."""
        ...


class Node(Protocol):
    """Where commands run.

    :ivar address: on the network that all nodes of a run share
    :ivar python: its interpreter
    """

    name: str
    kind: str
    address: str
    python: str

    def start(self, words: Sequence[str], env: Mapping[str, str], inputs: Files) -> Running:
        """Start a command. :raises NodeFailed: the node can't run anything now"""
        ...

    def close(self) -> None:
        """Let go of what leads to it."""
        ...


# -- this machine --------------------------------------------------------------------------------------------------


class Child:
    """A child process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def lines(self) -> Iterator[str]:
        """Its standard output and error, line by line; leaving the iterator closes both."""
        assert self.process.stdout is not None
        with contextlib.suppress(ValueError, OSError), self.process.stdout as output:
            for line in output:
                yield line.rstrip("\n")

    def wait(self) -> Ended:
        """Its exit status."""
        status = self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()
        return Ended(status, _told(status))

    def stop(self) -> None:
        """SIGTERM."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()

    def kill(self) -> None:
        """SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()


def _told(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    return f"ended by {signal.Signals(-status).name if -status in signal.valid_signals() else f'signal {-status}'}"


class ProcessNode:
    """This machine: child processes, each in a folder of its own.

    :param folder: where working folders are made
    :param variables: what every command finds
    :param cores: that its commands may run on; None: all
    :param namespace: a process whose network namespace commands enter (a tunnel's); None: this machine's own network
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        address: str = LOOPBACK,
        variables: Mapping[str, str] | None = None,
        cores: Sequence[int] | None = None,
        namespace: int | None = None,
    ) -> None:
        self.name, self.folder, self.address = name, folder, address
        self.kind = "process" if namespace is None else "host-local"
        self.python = sys.executable
        self.variables = dict(variables or {})
        self.cores = cores
        self.namespace = namespace
        self._starts = 0

    def start(self, words: Sequence[str], env: Mapping[str, str], inputs: Files) -> Child:
        """A child process. :raises NodeFailed: it can't be started"""
        self._starts += 1
        folder = self.folder / f"{self.name}-{self._starts}"
        _lay_out(folder, inputs)
        try:
            process = subprocess.Popen(
                [*self._entrance(), *words],
                cwd=folder,
                env={**python_environment(), **self.variables, **env},
                stdin=subprocess.PIPE,  # its end of file says that this program is gone
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,  # Ctrl-C is the launcher's to handle
            )
        except OSError as problem:
            raise NodeFailed(f"{self.name}: {words[0]}: {problem.strerror or problem}", self.name) from problem
        if self.cores is not None:
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(process.pid, self.cores)
        return Child(process)

    def _entrance(self) -> list[str]:
        """What a command's words follow."""
        if self.namespace is None:
            return []
        return entrance(self.namespace)

    def close(self) -> None:
        """Remove the working folders."""
        for number in range(1, self._starts + 1):
            shutil.rmtree(self.folder / f"{self.name}-{number}", ignore_errors=True)


def entrance(pid: int) -> list[str]:
    """The command that enters the network namespace of a process, and its user namespace where that is another."""
    ours, theirs = (Path(f"/proc/{who}/ns/user").stat().st_ino for who in ("self", str(pid)))
    user = [] if ours == theirs else ["-U", "--preserve-credentials"]
    return ["nsenter", *user, "-n", "-t", str(pid), "--"]


def python_environment() -> dict[str, str]:
    """A small explicit environment, in which commands find what this program's own imports find; and its folder."""
    chosen = environment()
    chosen["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([*chosen["PYTHONPATH"].split(os.pathsep), os.getcwd()]))
    chosen["PYTHONUNBUFFERED"] = "1"
    chosen["OMP_WAIT_POLICY"] = os.environ.get(
        "OMP_WAIT_POLICY", "PASSIVE"
    )  # ranks share processors: who waits, sleeps
    return chosen


def _lay_out(folder: Path, inputs: Files) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, content in inputs.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else content.read_bytes())


# -- a drive's engine ----------------------------------------------------------------------------------------------


class EngineJob:
    """A job of an ISP engine's agent."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._ended: Ended | None = None
        self._over = threading.Event()

    def lines(self) -> Iterator[str]:
        """Its log."""
        try:
            yield from self.job
            result = self.job.result
            assert result is not None
            self._ended = Ended(result.status, f"{result.reason} {result.text or result.status}".strip())
        except IspError as problem:
            self._ended = Ended(None, str(problem).splitlines()[0])
        finally:
            self._over.set()

    def wait(self) -> Ended:
        """Its result."""
        self._over.wait()
        return self._ended or Ended(None, "nobody read it to its end")

    def stop(self) -> None:
        """Cancel it: SIGTERM, and SIGKILL 3 s later."""
        with contextlib.suppress(EmucsdError):
            self.job.cancel()

    def kill(self) -> None:
        """Hang up: the agent ends what nobody follows."""
        self.job.close()


class EngineNode:
    """A drive's engine: ``local`` or ``machine``.

    :param revive: is called before each start: brings an engine back that has ended, where that is ours to do
    """

    def __init__(
        self,
        name: str,
        isp: Isp,
        address: str,
        *,
        kind: str = "local",
        variables: Mapping[str, str] | None = None,
        revive: Callable[[], None] | None = None,
    ) -> None:
        self.name, self.isp, self.address, self.kind = name, isp, address, kind
        self.python = sys.executable if kind == "local" else "python3"
        shared = python_environment() if kind == "local" else {"PYTHONUNBUFFERED": "1"}
        self.variables: dict[str, str] = {key: shared[key] for key in _TAKEN if key in shared}
        self.variables |= dict(variables or {})
        self._revive = revive

    def start(self, words: Sequence[str], env: Mapping[str, str], inputs: Files) -> EngineJob:
        """A job. :raises NodeFailed: its agent does not answer, or has no room"""
        try:
            if self._revive is not None:
                self._revive()
            return EngineJob(self.isp.run(list(words), env={**self.variables, **env}, inputs=dict(inputs)))
        except EmucsdError as problem:
            raise NodeFailed(f"{self.name}: {str(problem).splitlines()[0]}", self.name) from problem

    def close(self) -> None:
        """Let go of its agent."""
        self.isp.close()


# -- a testbed's host machine --------------------------------------------------------------------------------------


class Remote:
    """A command over SSH: its first line is its process id."""

    def __init__(self, machine: Machine, line: str) -> None:
        self._machine = machine
        self._pid = ""
        self._ended: Ended | None = None
        self._over = threading.Event()
        self._channel = machine.ssh.session()
        self._channel.set_combine_stderr(True)
        self._channel.exec_command(line)

    def lines(self) -> Iterator[str]:
        """What it prints."""
        try:
            with self._channel.makefile("r", -1) as output:
                for line in output:
                    if not self._pid:
                        self._pid = line.strip()
                        continue
                    yield line.rstrip("\n")
            status = self._channel.recv_exit_status()
            self._ended = Ended(status, f"exit status {status}")
        except (OSError, EOFError) as problem:
            self._ended = Ended(None, f"the connection to {self._machine.name} broke: {problem}")
        finally:
            self._over.set()

    def wait(self) -> Ended:
        """Its exit status; -1 where a signal ended it."""
        self._over.wait()
        return self._ended or Ended(None, "nobody read it to its end")

    def stop(self) -> None:
        """SIGTERM."""
        self._signal("TERM")

    def kill(self) -> None:
        """SIGKILL."""
        self._signal("KILL")

    def _signal(self, name: str) -> None:
        if self._pid.isdecimal() and not self._over.is_set():
            with contextlib.suppress(EmucsdError):
                self._machine.run(f"kill -{name} {self._pid}", timeout=_STOP_SECONDS)


class MachineNode:
    """A testbed's host machine; the library lies in it."""

    kind = "host-machine"
    python = "python3"

    def __init__(self, name: str, machine: Machine, address: str, variables: Mapping[str, str] | None = None) -> None:
        self.name, self.machine, self.address = name, machine, address
        self.variables = {"PYTHONUNBUFFERED": "1", **(variables or {})}
        self._starts = 0

    def start(self, words: Sequence[str], env: Mapping[str, str], inputs: Files) -> Remote:
        """A command over SSH. :raises NodeFailed: the machine does not answer"""
        self._starts += 1
        folder = f"{MACHINE_FOLDER}/{self.name}-{os.getpid()}-{self._starts}"
        try:
            self.machine.run(["mkdir", "-p", folder], check=True)
            for name, content in inputs.items():
                data = content if isinstance(content, bytes) else content.read_bytes()
                self.machine.put(data, f"{folder}/{name}")
            settings = [f"{key}={value}" for key, value in {**self.variables, **env}.items()]
            command = shlex.join(["env", *settings, *words])
            return Remote(self.machine, f"cd {shlex.quote(folder)} && echo $$ && exec {command}")
        except (EmucsdError, OSError) as problem:
            raise NodeFailed(f"{self.name}: {str(problem).splitlines()[0]}", self.name) from problem

    def close(self) -> None:
        """Remove the working folders, hang up."""
        with contextlib.suppress(EmucsdError):
            self.machine.run(f"rm -rf {MACHINE_FOLDER}/{self.name}-{os.getpid()}-*", timeout=_STOP_SECONDS)
        self.machine.hang_up()


def describe(node: Node) -> dict[str, Any]:
    """For the record."""
    return {"name": node.name, "kind": node.kind, "address": node.address, "python": node.python}
