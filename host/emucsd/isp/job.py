"""A job as its client sees it: log lines, result, outputs."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from emucsd.isp import protocol
from emucsd.isp.errors import IspError, IspLost, IspRefused, job_error
from emucsd.isp.protocol import Ended, Frame, Header, Stream, Violation

TAIL_BYTES = 4096  # of the log, for errors
HELD_BYTES = 1 << 30  # outputs that are kept in memory; larger ones go to files


class Result(NamedTuple):
    """How a job ended.

    :ivar reason: ``exited``, ``signal``, ``cancelled``, ``disconnected``, ``seconds``, ``memory``, ``output``, or
        ``failed`` (to start)
    :ivar status: exit status of its program, negative for a signal, None where it never ran
    :ivar text: more about the reason
    :ivar seconds: wall clock; ``cpu_seconds`` processor time of all its processes
    :ivar peak_bytes: resident memory, as sampled
    """

    reason: str
    status: int | None
    text: str
    seconds: float
    cpu_seconds: float
    peak_bytes: int

    @property
    def ok(self) -> bool:
        """It ended by itself, with status 0."""
        return self.reason == "exited" and self.status == 0


def answered(stream: Stream) -> Frame:
    """The agent's next frame. :raises IspRefused: it said no :raises IspLost: it hung up, or broke the protocol"""
    try:
        frame = protocol.receive(stream)
    except Ended as problem:
        raise IspLost("the ISP engine closed the connection; is it restarting? `emucsd isp status` tells") from problem
    except Violation as problem:
        raise IspLost(f"the answer is not an agent's: {problem}") from problem
    except TimeoutError as problem:
        raise IspLost("the ISP engine did not answer in time; is its machine up?") from problem
    except OSError as problem:
        raise IspLost(f"the connection to the ISP engine broke: {problem.strerror or problem}") from problem
    if "error" in frame.header:
        error = frame.header["error"]
        raise IspRefused(str(error.get("kind")), str(error.get("message")))
    return frame


class Job:
    """A job that was sent to the engine. Iterate over it for its log as it comes; ``wait`` for its end.

    A Job is used by one thread at a time; ``cancel`` and ``close`` may come from any.

    :ivar id: what ``attach``, ``list`` and ``cancel`` call it
    :ivar state: ``receiving``, ``running`` or ``ended``, as last heard
    :ivar outputs: after ``wait``: name -> bytes, or the Path that it was saved to
    :ivar missing: after ``wait``: outputs that the job did not make
    """

    def __init__(
        self,
        number: str,
        stream: Stream,
        cancel: Callable[[], Any],
        *,
        name: str,
        outputs: Mapping[str, Path | None],
        log_offset: int = 0,
    ) -> None:
        self.id, self.state = number, "receiving"
        self.outputs: dict[str, bytes | Path] = {}
        self.missing: list[str] = []
        self.result: Result | None = None
        self.log_offset = log_offset  # bytes of its log that have come
        self._stream, self._cancel, self._name = stream, cancel, name
        self._wanted = dict(outputs)
        self._tail = b""
        self._closed = False

    def __repr__(self) -> str:
        return f"<Job {self.id} {self._name!r}: {self.result.reason if self.result else self.state}>"

    # -- the log -----------------------------------------------------------------------------------------------------

    def read(self) -> bytes:
        """The next piece of the log as soon as there is one; b"" once the job has ended. Outputs are fetched then.

        :raises IspLost: the connection ended first
        """
        while self.result is None:
            try:
                frame = answered(self._stream)
                if "log" in frame.header:
                    self.log_offset += len(frame.body)
                    self._tail = (self._tail + frame.body)[-TAIL_BYTES:]
                    return frame.body
                if "state" in frame.header:
                    self.state = str(frame.header["state"])
                elif "done" in frame.header:
                    self._finish(frame.header)
                else:
                    raise IspLost(f"the agent sent a frame of {', '.join(frame.header)} while the job ran")
            except BaseException:
                self.close()
                raise
        return b""

    def __iter__(self) -> Iterator[str]:
        """Its lines of log, without their ends, as they come."""
        pending: list[bytes] = []  # of a line whose end has not come
        while piece := self.read():
            *lines, rest = piece.split(b"\n")
            for line in lines:
                yield b"".join([*pending, line]).decode(errors="replace")
                pending.clear()
            if rest:
                pending.append(rest)
        if pending:
            yield b"".join(pending).decode(errors="replace")

    @property
    def log_tail(self) -> str:
        """The end of what has come of its log."""
        return self._tail.decode(errors="replace").strip()

    # -- its end -----------------------------------------------------------------------------------------------------

    def wait(self, *, check: bool = True) -> Result:
        """Until it has ended and its outputs are here; the log that was not read is skipped.

        :param check: raise when it did not end with status 0
        :raises LimitExceeded, JobCancelled, JobFailed: see ``check``
        :raises IspLost: the connection ended first; a job of ``on_disconnect="detach"`` goes on: ``isp.attach(job.id)``
        """
        while self.read():
            pass
        assert self.result is not None
        if check and not self.result.ok:
            raise job_error(f"{self.id} ({self._name})", self.result, self.log_tail)
        return self.result

    def cancel(self) -> None:
        """End it: it is asked to (SIGTERM), and killed with all that it started 3 s later. ``wait`` tells the rest."""
        if self.result is None:
            self._cancel()

    def close(self) -> None:
        """Leave it: it ends, or goes on, as ``on_disconnect`` said. Harmless when repeated.

        May come from any thread: one that waits in ``read`` is given IspLost.
        """
        if not self._closed:
            self._closed = True
            if isinstance(self._stream, socket.socket):  # closing alone would leave that thread waiting
                with contextlib.suppress(OSError):
                    self._stream.shutdown(socket.SHUT_RDWR)
            self._stream.close()

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _finish(self, done: Header) -> None:
        """Fetch the outputs, and let the agent forget the job."""
        try:
            result = Result(**done["done"])
            listed = [(str(one["name"]), int(one["size"])) for one in done["outputs"]]
        except (KeyError, TypeError, ValueError) as problem:
            raise IspLost(f"the agent told no result: {problem}") from problem
        for name, size in listed:
            self.outputs[name] = self._fetch(name, size)
        self.missing = [name for name in self._wanted if name not in self.outputs]
        if "end" not in (frame := answered(self._stream)).header:
            raise IspLost(f"the agent sent {', '.join(frame.header)} after the outputs")
        self.state, self.result = "ended", result
        with contextlib.suppress(OSError):  # everything is here; the agent forgets the job in time
            protocol.send(self._stream, {"do": "taken"})
        self.close()

    def _fetch(self, name: str, size: int) -> bytes | Path:
        path = self._wanted.get(name)
        if path is None:
            if size > HELD_BYTES:
                raise IspError(
                    f"output {name} has {size} bytes, memory takes {HELD_BYTES}: name a file, {{{name!r}: path}}"
                )
            return b"".join(self._pieces(name, size))
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with open(draft, "wb") as file:
                for piece in self._pieces(name, size):
                    file.write(piece)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
        return path

    def _pieces(self, name: str, size: int) -> Iterator[bytes]:
        left = size
        while left:
            frame = answered(self._stream)
            if frame.header.get("output") != name or not 0 < len(frame.body) <= left:
                raise IspLost(f"{len(frame.body)} bytes of {frame.header} came where {left} of output {name} are due")
            left -= len(frame.body)
            yield frame.body
