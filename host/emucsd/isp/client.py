"""The ISP engine's client: what it is doing, and jobs for it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from emucsd.isp import protocol
from emucsd.isp.errors import IspLost, IspUnreachable
from emucsd.isp.job import Job, answered
from emucsd.isp.protocol import PORT, Header, InputFile, Limits, RunRequest, Stream, Violation
from emucsd.isp.reach import Dial, Note, direct, local_socket, through_proxy

ANSWER_SECONDS = 30.0

Input = bytes | bytearray | memoryview | str | Path


class _Source(NamedTuple):
    """An input: bytes, or a file of ours."""

    name: str
    data: memoryview | None
    path: Path | None


class Isp:
    """One ISP engine. Each request is a connection of its own: nothing is held open but by the jobs that run.

    :param address: the agent's address on the tunnel's network
    :param token: what the agent wants to hear; the testbed has it
    :param proxy: Unix socket of the tunnel's host end, where this process is not on that network itself
    :param socket: Unix socket of an agent on this machine that joins no tunnel
    :param dial: opens a connection in any other way (an SSH channel); the others are not looked at then
    :param close: what ``close`` is to do for it
    """

    def __init__(
        self,
        address: str = "",
        *,
        port: int = PORT,
        token: str = "",
        proxy: Path | None = None,
        socket: Path | None = None,
        dial: Dial | None = None,
        close: Callable[[], None] | None = None,
        timeout: float = ANSWER_SECONDS,
    ) -> None:
        self.address, self.port, self.timeout = address, port, timeout
        self.proxy, self.socket = proxy, socket
        self._token = token
        self._dial: Dial = dial or self._usual
        self._closing = close

    def _usual(self) -> Stream:
        if self.socket is not None:
            return local_socket(self.socket)
        if self.proxy is not None:
            return through_proxy(self.proxy, self.address, self.port)
        return direct(self.address, self.port)

    @classmethod
    def at(cls, note: Note) -> Isp:
        """The engine that a note leads to."""
        proxy, socket = (Path(path) if path else None for path in (note.proxy, note.socket))
        return cls(note.address, port=note.port, token=note.token, proxy=proxy, socket=socket)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of what leads to it; jobs that run are not touched."""
        if self._closing is not None:
            self._closing()

    def __repr__(self) -> str:
        return f"<Isp {self.socket or f'{self.address}:{self.port}'}>"

    # -- small requests ----------------------------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        """Load, memory, cores, disk, uptime, jobs by state, the tunnel. :raises IspError: see ``emucsd.isp.errors``"""
        return dict(self._ask({"do": "report"})["report"])

    def jobs(self) -> list[dict[str, Any]]:
        """Jobs that run, and those that ended and were not fetched; the oldest first."""
        return [dict(job) for job in self._ask({"do": "list"})["jobs"]]

    def cancel(self, job: str) -> dict[str, Any]:
        """End a job by its id. :returns: what it is now :raises IspRefused: (``NoJob``) there is none"""
        return dict(self._ask({"do": "cancel", "job": job})["job"])

    def forget(self, job: str) -> None:
        """Let the agent remove an ended job's outputs unfetched. :raises IspRefused: it runs, or there is none"""
        self._ask({"do": "forget", "job": job})

    def _ask(self, request: Header) -> Header:
        stream = self._open(request)
        try:
            return answered(stream).header
        finally:
            stream.close()

    def _open(self, request: Header) -> Stream:
        """A connection on which this request was sent."""
        stream = self._dial()
        try:
            stream.settimeout(self.timeout)
            protocol.send(stream, {**request, "token": self._token})
        except OSError as problem:
            stream.close()
            raise IspLost(f"the connection to the ISP engine broke: {problem.strerror or problem}") from problem
        except BaseException:
            stream.close()
            raise
        return stream

    def wait_ready(self, seconds: float) -> dict[str, Any]:
        """Until the agent answers. :returns: its report :raises IspUnreachable: not in this time"""
        deadline = time.monotonic() + seconds
        while True:
            try:
                return self.report()
            except (IspUnreachable, IspLost):
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.05)

    # -- jobs --------------------------------------------------------------------------------------------------------

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        inputs: Mapping[str, Input] | None = None,
        outputs: Iterable[str] | Mapping[str, str | Path | None] = (),
        limits: Limits | None = None,
        on_disconnect: str = "kill",
    ) -> Job:
        """Send a job; it runs in a folder of its own, in which its inputs lie and its outputs are looked for.

        :param inputs: name -> bytes, text, or a Path of a file here (its executable bit goes along)
        :param outputs: names of files to bring back as bytes; or name -> where to save it
        :param on_disconnect: what happens when this process goes away: ``kill`` it, or ``detach`` and let it go on
        :raises IspRefused: no room, too many jobs, a bad token
        :raises Violation: something that the protocol can't carry (a ValueError)
        """
        sources = [_source(name, value) for name, value in (inputs or {}).items()]
        wanted = _wanted(outputs)
        files = [_announced(source) for source in sources]
        request = RunRequest([*argv], dict(env or {}), files, [*wanted], limits or Limits(), on_disconnect)
        header = request.header()
        protocol.parse_run(header)  # our own mistakes are found here, not on the far side
        stream = self._open(header)
        try:
            number = str(answered(stream).header.get("job"))
            self._send_inputs(stream, sources, files)
            stream.settimeout(None)
        except BaseException:
            stream.close()
            raise
        return Job(number, stream, lambda: self.cancel(number), name=argv[0], outputs=wanted)

    def attach(self, job: str, *, outputs: Mapping[str, str | Path | None] | None = None, log_offset: int = 0) -> Job:
        """Follow a job that was left running (or has ended and was not fetched).

        :param log_offset: bytes of its log that have come already: ``Job.log_offset``
        :raises IspRefused: (``NoJob``) there is none
        """
        stream = self._open({"do": "attach", "job": job, "log_offset": log_offset})
        try:
            answered(stream)
            stream.settimeout(None)
        except BaseException:
            stream.close()
            raise
        wanted = _wanted(outputs or {})
        return Job(job, stream, lambda: self.cancel(job), name=job, outputs=wanted, log_offset=log_offset)

    def _send_inputs(self, stream: Stream, sources: Sequence[_Source], files: Sequence[InputFile]) -> None:
        try:
            for source, file in zip(sources, files, strict=True):
                for piece in _pieces(source, file):
                    protocol.send(stream, {"input": file.name}, piece)
        except (BrokenPipeError, ConnectionResetError) as problem:
            with contextlib.suppress(IspLost):
                answered(stream)  # it hung up after saying why
            raise IspLost("the ISP engine closed the connection while inputs were sent; see its log") from problem


def _source(name: str, value: Input) -> _Source:
    if isinstance(value, Path):
        return _Source(name, None, value)
    data = value.encode() if isinstance(value, str) else value
    return _Source(name, memoryview(data).cast("B"), None)


def _announced(source: _Source) -> InputFile:
    if source.data is not None:
        return InputFile(source.name, len(source.data))
    assert source.path is not None
    found = source.path.stat()
    return InputFile(source.name, found.st_size, bool(found.st_mode & 0o100))


def _pieces(source: _Source, file: InputFile) -> Iterable[bytes]:
    if source.data is not None:
        for start in range(0, file.size, protocol.PIECE):
            yield bytes(source.data[start : start + protocol.PIECE])
        return
    assert source.path is not None
    sent = 0
    with open(source.path, "rb") as opened:
        for piece in protocol.pieces(opened.read, file.size):
            sent += len(piece)
            yield piece
    if sent < file.size:
        raise Violation(f"{source.path} had {file.size} bytes and now {sent}: it shrank while it was sent")


def _wanted(outputs: Iterable[str] | Mapping[str, str | Path | None]) -> dict[str, Path | None]:
    if isinstance(outputs, Mapping):
        return {name: None if path is None else Path(path) for name, path in outputs.items()}
    return dict.fromkeys(outputs)
