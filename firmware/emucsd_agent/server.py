"""The agent's service: one request a TCP connection, a thread each. A bad client never ends the agent."""

from __future__ import annotations

import contextlib
import hmac
import os
import select
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from emucsd.isp import protocol
from emucsd.isp.protocol import Ended, Frame, InputFile, Violation
from emucsd_agent.errors import AgentError, Refused
from emucsd_agent.job import Job
from emucsd_agent.jobs import Jobs

CLIENT_LIMIT = 64
HELLO_SECONDS = 10.0  # for a first frame
INPUT_SECONDS = 60.0  # between two pieces of input
_PIECE = 64 << 10
Report = Callable[[], Mapping[str, Any]]


def log(text: str) -> None:
    """One line of the agent's own log."""
    print(f"emucsd_agent: {text}", file=sys.stderr, flush=True)


class Server:
    """Accepts on one socket until closed.

    :param token: what clients must say; "" lets everybody in that reaches this socket
    :param report: what ``report`` answers
    """

    def __init__(
        self, listener: socket.socket, jobs: Jobs, token: str, report: Callable[[], Mapping[str, Any]]
    ) -> None:
        self.listener, self.jobs = listener, jobs
        self._token = token.encode()
        self._report = report
        self._clients = threading.Semaphore(CLIENT_LIMIT)
        self._does: dict[str, Callable[[socket.socket, Frame], None]] = {
            "report": self._on_report,
            "list": self._on_list,
            "run": self._on_run,
            "attach": self._on_attach,
            "cancel": self._on_cancel,
            "forget": self._on_forget,
        }

    def serve(self) -> None:
        """Until the listener is shut down."""
        while True:
            try:
                connection, peer = self.listener.accept()
            except OSError as problem:
                if problem.errno in _LISTENER_GONE:
                    return
                log(f"accept: {problem}")
                select.select([], [], [], 0.1)  # out of descriptors, perhaps: let some come back
                continue
            if not self._clients.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(target=self._client, args=(connection, peer), name="client", daemon=True).start()

    def close(self) -> None:
        """No more clients; those that are there go on until the process ends."""
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def _client(self, connection: socket.socket, peer: Any) -> None:
        try:
            with connection:
                self._prepare(connection)
                self._request(connection)
        except (Ended, OSError):
            pass  # it left
        except Exception as problem:  # our own bug: this client loses its connection, the others go on
            log(f"client {peer}: {type(problem).__name__}: {problem}")
        finally:
            self._clients.release()

    @staticmethod
    def _prepare(connection: socket.socket) -> None:
        connection.settimeout(HELLO_SECONDS)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if connection.family != socket.AF_UNIX:
            for option, value in ((socket.TCP_KEEPIDLE, 20), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 6)):
                connection.setsockopt(socket.IPPROTO_TCP, option, value)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _request(self, connection: socket.socket) -> None:
        try:
            frame = protocol.receive(connection)
            said = protocol.text_of(frame.header, "token", 1024).encode(errors="replace")
            if self._token and not hmac.compare_digest(said, self._token):
                raise Refused("BadToken", "the token is not this engine's; the testbed's file of it has the right one")
            do = protocol.text_of(frame.header, "do")
            if do not in self._does:
                raise Violation(f"do = {do!r}: must be one of {', '.join(self._does)}")
            self._does[do](connection, frame)
        except Violation as problem:
            _refuse(connection, "Violation", str(problem))
        except AgentError as problem:
            _refuse(connection, problem.kind, str(problem))

    # -- requests ----------------------------------------------------------------------------------------------------

    def _on_report(self, connection: socket.socket, _: Frame) -> None:
        protocol.send(connection, {"ok": True, "report": self._report()})

    def _on_list(self, connection: socket.socket, _: Frame) -> None:
        protocol.send(connection, {"ok": True, "jobs": self.jobs.describe()})

    def _on_cancel(self, connection: socket.socket, frame: Frame) -> None:
        job = self.jobs.find(protocol.text_of(frame.header, "job"))
        job.end("cancelled", "a client asked for it")
        protocol.send(connection, {"ok": True, "job": job.describe()})

    def _on_forget(self, connection: socket.socket, frame: Frame) -> None:
        job = self.jobs.find(protocol.text_of(frame.header, "job"))
        if job.state != "ended":
            raise Refused("Running", f"{job.id} is {job.state}; cancel it first")
        self.jobs.remove(job)
        protocol.send(connection, {"ok": True})

    def _on_run(self, connection: socket.socket, frame: Frame) -> None:
        request = protocol.parse_run(frame.header)
        job = self.jobs.accept(request)
        try:
            protocol.send(connection, {"ok": True, "job": job.id})
            connection.settimeout(INPUT_SECONDS)
            for file in request.inputs:
                self._receive_input(connection, job, file)
        except BaseException:
            job.abandon()
            self.jobs.remove(job)
            raise
        job.start()
        self._follow(connection, job, 0)

    def _on_attach(self, connection: socket.socket, frame: Frame) -> None:
        job = self.jobs.find(protocol.text_of(frame.header, "job"))
        offset = protocol.count_of(frame.header, "log_offset")
        protocol.send(connection, {"ok": True, "job": job.id})
        self._follow(connection, job, offset, owner=False)

    def _receive_input(self, connection: socket.socket, job: Job, file: InputFile) -> None:
        """One file, in frames that name it. :raises Violation: another file, or more bytes than were announced"""
        path = job.folder / file.name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "xb") as target:
                left = file.size
                while left:
                    frame = protocol.receive(connection)
                    if frame.header.get("input") != file.name or not 0 < len(frame.body) <= left:
                        raise Violation(
                            f"{len(frame.body)} bytes of {str(frame.header.get('input'))[:80]!r} came where at most "
                            f"{left} of {file.name!r} are due"
                        )
                    target.write(frame.body)
                    left -= len(frame.body)
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as problem:
            raise Violation(f"inputs: {file.name} collides with another input") from problem
        except TimeoutError:
            raise
        except OSError as problem:
            if problem.filename is None and problem.errno not in _DISK_FULL:
                raise  # the connection's
            raise Refused("NoSpace", f"{file.name}: {problem.strerror}") from problem
        if file.executable:
            path.chmod(0o700)

    # -- following a job ---------------------------------------------------------------------------------------------

    def _follow(self, connection: socket.socket, job: Job, offset: int, *, owner: bool = True) -> None:
        """Send its log as it comes, then its result and outputs; a client that leaves may take the job with it."""
        connection.settimeout(None)
        news = job.follow()
        try:
            with job.open_log() as source:
                source.seek(offset)
                self._stream_log(connection, job, source, news)
            self._send_outputs(connection, job)
            connection.settimeout(INPUT_SECONDS)
            if protocol.receive(connection).header.get("do") == "taken":
                self.jobs.remove(job)
        except (Ended, OSError, Violation):
            if owner and job.request.on_disconnect == "kill":
                self._drop(job)
        finally:
            job.unfollow(news)

    def _drop(self, job: Job) -> None:
        """Its client is gone, and it is to go with it: once it has ended nothing of it stays."""
        job.end("disconnected", "its client left")
        news = job.follow()
        try:
            while job.state != "ended":
                select.select([news], [], [])
                os.eventfd_read(news)
        finally:
            job.unfollow(news)
        self.jobs.remove(job)

    @staticmethod
    def _stream_log(connection: socket.socket, job: Job, source: BinaryIO, news: int) -> None:
        poller = select.poll()
        poller.register(connection, select.POLLIN | select.POLLRDHUP)
        poller.register(news, select.POLLIN)
        state = ""
        while True:
            ended = job.state == "ended"  # before the log is read: then the end of file is the log's end
            if state != job.state:
                state = job.state
                protocol.send(connection, {"state": state})
            if data := source.read(_PIECE):
                protocol.send(connection, {"log": source.tell()}, data)
                continue
            if ended:
                return
            ready = {fd for fd, _ in poller.poll()}
            if connection.fileno() in ready:
                raise Ended(within=False)  # clients say nothing while a job runs; whoever speaks, or hangs up, is done
            os.eventfd_read(news)

    @staticmethod
    def _send_outputs(connection: socket.socket, job: Job) -> None:
        assert job.result is not None
        outputs = job.outputs()
        protocol.send(connection, {"done": job.result._asdict(), "outputs": outputs})
        for output in outputs:
            with job.open_output(output["name"]) as file:
                for piece in protocol.pieces(file.read, output["size"]):
                    protocol.send(connection, {"output": output["name"]}, piece)
        protocol.send(connection, {"end": True})


def _refuse(connection: socket.socket, kind: str, text: str) -> None:
    """Say why, and wait shortly for the client to read it: closing with unread input would reset the connection."""
    with contextlib.suppress(OSError, Ended):
        protocol.send(connection, {"ok": False, "error": {"kind": kind, "message": text}})
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(1.0)
        for _ in range(64):
            if not connection.recv(1 << 16):
                return


_LISTENER_GONE = (9, 22)  # EBADF, EINVAL: closed, or shut down
_DISK_FULL = (28, 122, 27)  # ENOSPC, EDQUOT, EFBIG
