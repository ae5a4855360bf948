"""Holding jobs to what the engine has: its cores, what each is worth, its memory.

Memory is what the processes of a job hold resident, summed; the sum over a job passing its limit ends that job, the sum
over all jobs passing the engine's memory ends the largest. Between two looks a job can grow by what it can touch in
that time, so each process is also refused private memory beyond its limit by more than ``SLACK``.

A core of the engine is worth ``cpu_share`` of a core of this machine: with n threads that want to run, the jobs
together get ``cpu_share * min(n, cores)`` cores' time. Where the kernel offers control groups it is told so, else all
of them run for a moment, are stopped (SIGSTOP), and go on (SIGCONT) when the time that they used is paid for.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from emucsd_agent import processes
from emucsd_agent.cgroup import Group

SLACK = 1 << 30
LOOK = 0.05  # seconds between two looks at memory, and the period of the duty cycle
_LEAST_RUN = 0.004  # s
_CREDIT = 0.2  # s: what an idle engine may save up


class Engine(NamedTuple):
    """What the jobs have together."""

    cores: int
    memory_bytes: int
    cpu_share: float = 1.0  # of one core of this machine that each core is worth


class Subject:
    """A running job, as the governor sees it."""

    def __init__(self, keeper: int, memory_bytes: int, group: Group | None, end: Callable[[str, str], None]) -> None:
        self.keeper, self.memory_bytes, self.group, self.end = keeper, memory_bytes, group, end
        self.pids: list[int] = []
        self.resident = 0
        self.peak = 0

    def look(self) -> None:
        """Take stock of its processes and their memory."""
        self.pids = processes.tree(self.keeper)
        held = sum(map(processes.resident, self.pids))
        shared = max(map(processes.shared_memory, self.pids), default=0)  # they may share it: count it once
        self.resident = held + shared
        self.peak = max(self.peak, self.resident)

    def kill(self) -> None:
        """End what was there at the last look."""
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class Governor:
    """A thread that works while jobs run.

    :param group: the engine's control group, where there is one
    """

    def __init__(self, engine: Engine, cpus: int, group: Group | None = None) -> None:
        self.engine, self.group = engine, group
        self._cpus = max(min(cpus, engine.cores), 1)
        self._subjects: list[Subject] = []
        self._changed = threading.Condition()
        self._ran: dict[str, int] = {}
        self._debt = 0.0  # core seconds used and not paid for
        self._paid = time.monotonic()
        self.throttled_seconds = 0.0
        if group is not None:
            group.limit_memory(engine.memory_bytes)
        threading.Thread(target=self._run, name="governor", daemon=True).start()

    @property
    def throttle(self) -> str:
        """How the processor's share is held: none, cgroup or signals."""
        if self.engine.cpu_share >= 1.0:
            return "none"
        return "signals" if self.group is None else "cgroup"

    def add(self, subject: Subject) -> None:
        """Watch a job that has just started."""
        with self._changed:
            self._subjects.append(subject)
            self._changed.notify()

    def remove(self, subject: Subject) -> None:
        """It has ended."""
        with self._changed:
            self._subjects.remove(subject)

    def resident(self) -> int:
        """Bytes that all jobs hold, at the last look."""
        return sum(subject.resident for subject in list(self._subjects))

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._subjects:
                    self._ran.clear()
                    self._rest()
                    self._changed.wait()
                subjects = list(self._subjects)
            for subject in subjects:
                subject.look()
            self._check_memory(subjects)
            if self.throttle == "signals":
                self._duty(subjects)
            else:
                if self.throttle == "cgroup" and self.group is not None:
                    wanted = processes.load(pid for subject in subjects for pid in subject.pids).runnable
                    self.group.limit_cpu(self._worth(wanted))
                time.sleep(LOOK)

    def _rest(self) -> None:
        """No job runs: the next one begins with one core's worth."""
        if self.throttle == "cgroup" and self.group is not None:
            self.group.limit_cpu(self._worth(1))

    def _check_memory(self, subjects: list[Subject]) -> None:
        for subject in subjects:
            if subject.resident > subject.memory_bytes:
                subject.end("memory", f"it held {subject.resident} bytes, its limit is {subject.memory_bytes}")
        if sum(subject.resident for subject in subjects) > self.engine.memory_bytes:
            largest = max(subjects, key=lambda subject: subject.resident)
            largest.end("memory", f"all jobs held more than the engine's {self.engine.memory_bytes} bytes")

    def _worth(self, runnable: int) -> float:
        """Cores of this machine that so many threads may use."""
        return self.engine.cpu_share * min(max(runnable, 1), self.engine.cores)

    # -- the duty cycle ----------------------------------------------------------------------------------------------

    def _duty(self, subjects: list[Subject]) -> None:
        """One period: run, take account, stop until it is paid for."""
        begun = time.monotonic()
        time.sleep(max(LOOK * self.engine.cpu_share, _LEAST_RUN))
        for subject in subjects:
            subject.pids = processes.tree(subject.keeper)  # also those that began just now
        now = processes.load(pid for subject in subjects for pid in subject.pids)
        self._signal(subjects, signal.SIGSTOP)
        rate = self._worth(now.runnable)
        self._charge(now, time.monotonic() - begun, rate)
        if self._debt > 0:
            pause = min(self._debt / rate, 1.0)
            self.throttled_seconds += pause
            time.sleep(pause)
            self._signal(subjects, signal.SIGCONT)
            return
        self._signal(subjects, signal.SIGCONT)  # they sleep, or wait for data: nobody needs to be held
        time.sleep(LOOK)

    def _charge(self, now: processes.Load, ran: float, rate: float) -> None:
        """Add what was used to the debt and take off what time has paid."""
        used = sum(time_ns - self._ran.get(thread, 0) for thread, time_ns in now.ran_ns.items()) / 1e9
        if self._ran.keys() - now.ran_ns.keys():  # what ended took its account with it
            used = max(used, ran)
        self._ran = now.ran_ns
        moment = time.monotonic()
        self._debt = max(self._debt + used - rate * (moment - self._paid), -_CREDIT * rate)
        self._paid = moment

    def _signal(self, subjects: list[Subject], number: signal.Signals) -> None:
        for subject in subjects:
            for pid in subject.pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
