"""All jobs of this engine: those that run, and those that ended and wait to be fetched."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import threading
from pathlib import Path
from typing import Any

from emucsd.isp.protocol import RunRequest
from emucsd_agent.errors import Refused, SetupFailed
from emucsd_agent.job import Job, Machinery

RUNNING_LIMIT = 64
KEPT = 32  # ended jobs whose log and outputs nobody has fetched


class Jobs:
    """The table of jobs, and the folder in which each has its own.

    :param folder: made where it is missing; what an agent that was killed left in it is removed
    :raises SetupFailed: the folder can't be used, or another agent has it
    """

    def __init__(self, folder: Path, machinery: Machinery) -> None:
        self.folder = folder
        self._machinery = machinery
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()
        self._count = 0
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._held = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as problem:
            raise SetupFailed(f"{folder}: another agent uses it; give this one its own (--work)") from problem
        except OSError as problem:
            raise SetupFailed(f"{problem.filename}: {problem.strerror}; give another folder (--work)") from problem
        for left in folder.glob("job-*"):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)

    def accept(self, request: RunRequest) -> Job:
        """A new job, which waits for its inputs. :raises Refused: too many, or no room for them"""
        size = sum(file.size for file in request.inputs)
        free = shutil.disk_usage(self.folder).free
        if size > free:
            raise Refused("NoSpace", f"the inputs have {size} bytes, {free} are free on the engine's disk")
        with self._lock:
            if sum(job.state != "ended" for job in self._jobs.values()) >= RUNNING_LIMIT:
                raise Refused("TooMany", f"{RUNNING_LIMIT} jobs run already; wait for one, or cancel it")
            self._count += 1
            number = f"job-{self._count}"
            job = self._jobs[number] = Job(number, request, self.folder / number, self._machinery)
            ended = [one for one in self._jobs.values() if one.state == "ended"]
        for one in ended[: max(len(ended) - KEPT, 0)]:
            self.remove(one)
        return job

    def find(self, number: str) -> Job:
        """:raises Refused: there is none, or its outputs were fetched"""
        job = self._jobs.get(number)
        if job is None:
            known = ", ".join(self._jobs) or "none"
            raise Refused("NoJob", f"no job {number!r}; there are: {known}")
        return job

    def remove(self, job: Job) -> None:
        """Forget a job that has ended, with everything that it left. Harmless when repeated."""
        with self._lock:
            if self._jobs.pop(job.id, None) is None:
                return
        job.remove()

    def describe(self) -> list[dict[str, Any]]:
        """All of them, the oldest first."""
        return [job.describe() for job in list(self._jobs.values())]

    def counts(self) -> dict[str, int]:
        """How many there are, by state."""
        found = {"receiving": 0, "running": 0, "ended": 0}
        for job in list(self._jobs.values()):
            found[job.state] += 1
        return found

    def close(self) -> None:
        """End all of them and remove what they left."""
        for job in list(self._jobs.values()):
            job.end("cancelled", "the agent stops")
        for job in list(self._jobs.values()):
            with contextlib.suppress(OSError):
                job.remove()
        os.close(self._held)
