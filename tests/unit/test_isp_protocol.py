"""What host and agent say to each other about jobs: frames, names, limits."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from emucsd.isp import protocol
from emucsd.isp.protocol import Ended, InputFile, Limits, RunRequest, Violation


class Wire:
    """A connection whose bytes are all there, and come in pieces of ``most``."""

    def __init__(self, data: bytes, most: int = 1 << 20) -> None:
        self.data, self.most = data, most

    def recv(self, count: int, /) -> bytes:
        piece, self.data = self.data[: min(count, self.most)], self.data[min(count, self.most) :]
        return piece

    def sendall(self, data: bytes, /) -> None:
        self.data += data

    def settimeout(self, seconds: float | None, /) -> None: ...

    def close(self) -> None: ...


def test_golden_frame() -> None:
    """The bytes of a frame are what docs/isp.md says."""
    assert protocol.pack({"do": "list"}, b"xy") == b"ISP\x01" + b"\x0d\0\0\0" + b"\x02\0\0\0" + b'{"do":"list"}' + b"xy"


@given(some.dictionaries(some.text(max_size=5), some.integers() | some.text(max_size=9)), some.binary(max_size=300))
def test_frames_come_back(header: dict[str, Any], body: bytes) -> None:
    """Whatever goes in comes out, one byte at a time too; then the end is an end between frames."""
    wire = Wire(protocol.pack(header, body) * 2, most=1)
    assert [protocol.receive(wire) for _ in range(2)] == [(header, body)] * 2
    with pytest.raises(Ended) as caught:
        protocol.receive(wire)
    assert not caught.value.within


@pytest.mark.parametrize("kept", [1, 11, 12, 20, 30])
def test_a_cut_frame_is_told(kept: int) -> None:
    """The end of the connection inside of a frame is no clean end."""
    with pytest.raises(Ended) as caught:
        protocol.receive(Wire(protocol.pack({"do": "report"}, b"body")[:kept]))
    assert caught.value.within


def test_nothing_too_long_is_sent() -> None:
    """Our own frames keep to the limits that we hold others to."""
    for header, body in (({"x": "y" * protocol.HEADER_LIMIT}, b""), ({}, bytes(protocol.BODY_LIMIT + 1))):
        with pytest.raises(Violation, match="are the most"):
            protocol.pack(header, body)


@given(some.binary(max_size=200))
def test_noise_is_a_violation_or_an_end(noise: bytes) -> None:
    """Random bytes never raise anything else."""
    wire = Wire(protocol.MAGIC + noise if noise[:1] > b"\x80" else noise)
    with contextlib.suppress(Violation, Ended):
        protocol.receive(wire)


def test_requests_come_back() -> None:
    """A request's header is the request."""
    limits = Limits(seconds=1.5, memory_bytes=1 << 30, cpus=2, nice=5, output_bytes=0)
    request = RunRequest(["sh"], {"A": "b"}, [InputFile("a/b", 3, True)], ["out"], limits, "detach")
    assert protocol.parse_run(request.header()) == request
    assert protocol.parse_run({"argv": ["true"]}) == RunRequest(["true"], {}, [], [], Limits(), "kill")


json_values = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=8),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
fields = some.sampled_from(["argv", "env", "inputs", "outputs", "limits", "on_disconnect"])


@given(some.dictionaries(fields, json_values, max_size=6), some.booleans())
def test_any_request_is_a_job_or_a_violation(header: dict[str, Any], runs: bool) -> None:
    """Whatever JSON a header holds, the answer is a checked job or a Violation."""
    if runs:
        header["argv"] = ["true"]
    try:
        request = protocol.parse_run(header)
    except Violation:
        return
    assert protocol.parse_run(request.header()) == request


@pytest.mark.parametrize(
    "name", ["", ".", "..", "/x", "x/", "a//b", "a/./b", "a/../b", "x\0", "a/" + "b" * 256, "é" * 600]
)
def test_names_stay_inside(name: str) -> None:
    """No name leads out of the job's folder."""
    with pytest.raises(Violation):
        protocol.check_name(name)


@pytest.mark.parametrize("name", ["x", "a/b/c", "...", ".hidden", "a b", "é"])
def test_plain_names_are_taken(name: str) -> None:
    """Names of files are names of files."""
    assert protocol.check_name(name) == name


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ({"seconds": "5"}, "seconds = '5'"),
        ({"memory_bytes": 5}, "memory_bytes = 5"),
        ({"cpus": 1.5}, r"cpus = 1\.5"),
        ({"nice": -5}, "nice = -5"),
        ({"output_bytes": 1 << 60}, "output_bytes"),
        ({"colour": 1}, "there are seconds"),
        ([], "must be an object"),
    ],
)
def test_limits_are_checked(limits: Any, text: str) -> None:
    """A limit that can't be held is refused, with its range."""
    with pytest.raises(Violation, match=text):
        protocol.parse_limits(limits)
