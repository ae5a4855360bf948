"""What host and agent say to each other about jobs: frames over one TCP connection a request. See docs/isp.md.

A frame is ``"ISP" version(u8) header_bytes(u32) body_bytes(u32)``, little-endian, then a JSON object, then raw bytes.
Only the standard library is used here: the agent imports this on the drive's own small machine.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

PORT = 7077
VERSION = 1
MAGIC = b"ISP" + bytes([VERSION])
PREFIX = struct.Struct("<4sII")
HEADER_LIMIT = 256 << 10
BODY_LIMIT = 1 << 20
PIECE = 256 << 10  # body bytes of the frames that we send
ITEMS = 1024  # entries of argv, env, inputs and outputs, each
NAME_LIMIT = 1024
FILE_LIMIT = 1 << 44
ON_DISCONNECT = ("kill", "detach")

Header = dict[str, Any]


class Stream(Protocol):
    """What a connection must offer: a socket does, and so does an SSH channel."""

    def recv(self, count: int, /) -> bytes: ...
    def sendall(self, data: bytes, /) -> None: ...
    def settimeout(self, seconds: float | None, /) -> None: ...
    def close(self) -> None: ...


class Violation(ValueError):
    """The peer sent what the protocol forbids; the text says what and the limit."""


class Ended(EOFError):
    """The peer closed the connection between two frames (``within`` False) or inside of one."""

    def __init__(self, within: bool) -> None:
        super().__init__("the connection ended inside of a frame" if within else "the connection ended")
        self.within = within


class Frame(NamedTuple):
    """One message."""

    header: Header
    body: bytes


def pack(header: Mapping[str, Any], body: bytes = b"") -> bytes:
    """The bytes of a frame. :raises Violation: it would be too long"""
    text = json.dumps(header, separators=(",", ":")).encode()
    if len(text) > HEADER_LIMIT or len(body) > BODY_LIMIT:
        raise Violation(
            f"a frame of {len(text)} header and {len(body)} body bytes; {HEADER_LIMIT} and {BODY_LIMIT} are the most: "
            "send long arguments as input files"
        )
    return PREFIX.pack(MAGIC, len(text), len(body)) + text + body


def send(stream: Stream, header: Mapping[str, Any], body: bytes = b"") -> None:
    """Send one frame. :raises Violation: too long :raises OSError: the connection is gone"""
    stream.sendall(pack(header, body))


def receive(stream: Stream) -> Frame:
    """The next frame.

    :raises Ended: the peer has closed
    :raises Violation: wrong magic or version, a length above its limit, no JSON object
    """
    magic, header_bytes, body_bytes = PREFIX.unpack(_exactly(stream, PREFIX.size, within=False))
    if magic != MAGIC:
        if magic[:3] == MAGIC[:3]:
            raise Violation(f"protocol version {magic[3]}, this side speaks {VERSION}; bring both to one release")
        raise Violation(f"a frame begins with {magic!r}, must be {MAGIC!r}")
    if header_bytes > HEADER_LIMIT or body_bytes > BODY_LIMIT:
        raise Violation(f"a frame of {header_bytes} + {body_bytes} bytes; {HEADER_LIMIT} + {BODY_LIMIT} are the most")
    text = _exactly(stream, header_bytes, within=True)
    body = _exactly(stream, body_bytes, within=True)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise Violation(f"the header is no JSON: {problem}") from None
    if not isinstance(header, dict):
        raise Violation(f"the header is a JSON {type(header).__name__}, must be an object")
    return Frame(header, body)


def _exactly(stream: Stream, count: int, *, within: bool) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = stream.recv(min(count - len(data), 1 << 18))
        if not piece:
            raise Ended(within or bool(data))
        data += piece
    return bytes(data)


# -- what requests carry -----------------------------------------------------------------------------------------------


class Limits(NamedTuple):
    """What a job may use; None: whatever the engine has. Passing one ends the job with that reason.

    :ivar seconds: wall-clock time
    :ivar memory_bytes: resident memory of all its processes together
    :ivar cpus: cores that it may run on
    :ivar nice: 0 (normal) to 19 (only what nobody else wants)
    :ivar output_bytes: of its log, and of each file that it writes
    """

    seconds: float | None = None
    memory_bytes: int | None = None
    cpus: int | None = None
    nice: int = 0
    output_bytes: int | None = None


class InputFile(NamedTuple):
    """A file that the client sends."""

    name: str
    size: int
    executable: bool = False


class RunRequest(NamedTuple):
    """A job, checked."""

    argv: list[str]
    env: dict[str, str]
    inputs: list[InputFile]
    outputs: list[str]
    limits: Limits
    on_disconnect: str

    def header(self) -> Header:
        """As it goes over the wire, without the token."""
        return {
            "do": "run",
            "argv": self.argv,
            "env": self.env,
            "inputs": [file._asdict() for file in self.inputs],
            "outputs": self.outputs,
            "limits": {key: value for key, value in self.limits._asdict().items() if value is not None},
            "on_disconnect": self.on_disconnect,
        }


def parse_run(header: Mapping[str, Any]) -> RunRequest:
    """The job that a header asks for. :raises Violation: says which field, what it is, and what it must be"""
    argv = _list(header, "argv", str, least=1)
    env = header.get("env", {})
    if not isinstance(env, dict) or len(env) > ITEMS or not all(isinstance(value, str) for value in env.values()):
        raise Violation(f"env must be an object of at most {ITEMS} strings")
    for word in (*argv, *env, *env.values()):
        _check_text(word)
    if bad := [key for key in env if not key or "=" in key]:
        raise Violation(f"env: {bad[0]!r} is no name of a variable")
    inputs = [_input(one) for one in _list(header, "inputs", dict)]
    outputs = [check_name(name) for name in _list(header, "outputs", str)]
    for what, names in (("inputs", [file.name for file in inputs]), ("outputs", outputs)):
        if len(set(names)) < len(names):
            raise Violation(f"{what} name a file twice")
    policy = header.get("on_disconnect", "kill")
    if policy not in ON_DISCONNECT:
        raise Violation(f"on_disconnect = {policy!r}: must be one of {', '.join(ON_DISCONNECT)}")
    return RunRequest(argv, env, inputs, outputs, parse_limits(header.get("limits", {})), policy)


_LIMITS: dict[str, tuple[type, float, float]] = {
    "seconds": (float, 0.001, 1e9),
    "memory_bytes": (int, 1 << 20, 1 << 46),
    "cpus": (int, 1, 4096),
    "nice": (int, 0, 19),
    "output_bytes": (int, 0, FILE_LIMIT),
}


def parse_limits(found: Any) -> Limits:
    """:raises Violation: an unknown limit, or a value outside of its range"""
    if not isinstance(found, dict):
        raise Violation(f"limits must be an object, not {type(found).__name__}")
    for key, value in found.items():
        if key not in _LIMITS:
            raise Violation(f"limits: {key!r}: no such limit; there are {', '.join(_LIMITS)}")
        kind, low, high = _LIMITS[key]
        number = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
        if not number or not low <= value <= high:
            raise Violation(f"limits: {key} = {value!r}: must be {kind.__name__}, {low:g} to {high:g}")
    return Limits(**found)


def check_name(name: str) -> str:
    """A file's name inside the job's folder. :raises Violation: it is absolute, empty, too long, or leads outside"""
    _check_text(name)
    parts = name.split("/")
    if not name or len(name.encode()) > NAME_LIMIT or any(p in ("", ".", "..") or len(p.encode()) > 255 for p in parts):
        raise Violation(
            f"file name {name[:80]!r}: must be a path inside the job's folder, of at most {NAME_LIMIT} bytes, without "
            "empty parts, '.' and '..'"
        )
    return name


def text_of(header: Mapping[str, Any], key: str, limit: int = 256) -> str:
    """A string field, "" where absent. :raises Violation: it is something else, or longer than ``limit``"""
    value = header.get(key, "")
    if not isinstance(value, str) or len(value) > limit:
        raise Violation(f"{key} must be a string of at most {limit} characters")
    return value


def count_of(header: Mapping[str, Any], key: str, limit: int = FILE_LIMIT) -> int:
    """A whole number from 0, 0 where absent. :raises Violation: it is something else"""
    value = header.get(key, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= limit:
        raise Violation(f"{key} = {str(value)[:40]}: must be a whole number, 0 to {limit}")
    return value


def _input(found: Mapping[str, Any]) -> InputFile:
    name = check_name(text_of(found, "name", NAME_LIMIT))
    executable = found.get("executable", False)
    if not isinstance(executable, bool):
        raise Violation(f"inputs: {name}: executable must be true or false")
    return InputFile(name, count_of(found, "size"), executable)


def _list(header: Mapping[str, Any], key: str, kind: type, least: int = 0) -> list[Any]:
    value = header.get(key, [])
    if not isinstance(value, list) or not least <= len(value) <= ITEMS or not all(isinstance(v, kind) for v in value):
        name = "object" if kind is dict else "string"
        raise Violation(f"{key} must be a list of {least} to {ITEMS} {name}s")
    return value


def _check_text(word: str) -> None:
    """What an operating system takes as argument, variable or name."""
    try:
        encoded = word.encode()
    except UnicodeEncodeError:  # a lone surrogate
        raise Violation(f"{word[:80]!r} is no valid text") from None
    if b"\0" in encoded:
        raise Violation(f"{word[:80]!r} holds a NUL character")


def pieces(read: Callable[[int], bytes], size: int) -> Iterator[bytes]:
    """``size`` bytes of a file as bodies of frames; fewer when the file ends early."""
    left = size
    while left:
        data = read(min(left, PIECE))
        if not data:
            return
        left -= len(data)
        yield data
