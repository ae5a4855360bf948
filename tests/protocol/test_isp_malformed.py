"""Clients that send what no client should: each is answered or let go, and the agent serves the next one."""

from __future__ import annotations

import contextlib
import json
import random
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from emucsd.isp import protocol
from emucsd.isp.errors import IspRefused
from emucsd.isp.protocol import PREFIX, Ended, Violation
from tests.drive_process import until
from tests.protocol.agent_process import TOKEN, AgentProcess

CASES = Path(__file__).parents[1] / "data" / "isp_malformed.txt"
SEEDS = range(6)
SECONDS = 30.0


class Case(NamedTuple):
    """One of the file's."""

    name: str
    sent: bytes
    kind: str
    text: str


def frame(text: str, body: bytes = b"") -> bytes:
    """A frame whose header need not be JSON."""
    text = text.replace("TOKEN", TOKEN).replace("*long*", "x" * 2000)
    data = (b'{"a":' * 50_000) if text == "*nested*" else text.encode()
    return PREFIX.pack(protocol.MAGIC, len(data), len(body)) + data + body


def cases() -> Iterator[Case]:
    for block in re.split(r"\n\s*\n", CASES.read_text()):
        lines = [line for line in block.splitlines() if line and not line.startswith("#")]
        if not lines:
            continue
        name, sent, kind, text = "", b"", "", ""
        for line in lines:
            word, _, rest = line.partition(" ")
            if word == "=":
                name = rest
            elif word == "raw":
                sent += bytes.fromhex(rest)
            elif word.startswith("frame"):
                sent += frame(rest, bytes(int(word[6:] or 0)))
            elif word == "<":
                kind = rest
            elif word == "~":
                text = rest
        yield Case(name, sent, kind, text)


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    with AgentProcess(tmp_path_factory.mktemp("agent")) as made:
        yield made


def descriptors(agent: AgentProcess) -> int:
    return len(list(Path(f"/proc/{agent.process.pid}/fd").iterdir()))


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case.name)
def test_malformed(agent: AgentProcess, case: Case) -> None:
    """What the file says of each is what happens, and the next client is served."""
    with socket.create_connection(("127.0.0.1", agent.port), SECONDS) as link:
        link.sendall(case.sent)
        link.shutdown(socket.SHUT_WR)
        if case.kind == "-":
            assert link.recv(1) == b""
        else:
            error = protocol.receive(link).header["error"]
            assert error["kind"] == case.kind
            assert case.text in error["message"]
    assert agent.client().report()["jobs"]["running"] == 0


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        (frame('{"input": "other"}', b"x"), "at most 4 of 'x' are due"),
        (frame('{"input": "x"}', b"12345"), "5 bytes of 'x'"),
        (frame('{"input": "x"}'), "0 bytes of 'x'"),
        (frame('{"input": ["x"]}', b"1"), "1 bytes of"),
        (b"garbage, not frames", "must be b'ISP"),
    ],
)
def test_bad_inputs(agent: AgentProcess, sent: bytes, text: str) -> None:
    """Inputs that are not what was announced end the request, and leave no job."""
    with socket.create_connection(("127.0.0.1", agent.port), SECONDS) as link:
        request = {"do": "run", "token": TOKEN, "argv": ["true"], "inputs": [{"name": "x", "size": 4}]}
        protocol.send(link, request)
        assert protocol.receive(link).header["ok"]
        link.sendall(sent)
        error = protocol.receive(link).header["error"]
        assert (error["kind"], text in error["message"]) == ("Violation", True)
    until(lambda: not agent.client().jobs(), SECONDS)


def test_inputs_that_collide(agent: AgentProcess) -> None:
    """A file where another input needs a folder is refused, not a crash."""
    with pytest.raises(IspRefused, match="collides with another input"):
        agent.client().run(["true"], inputs={"a": b"1", "a/b": b"2"}).wait()


def noise(chance: random.Random) -> bytes:
    """Valid requests, now and then cut, flipped or followed by noise."""
    header = {
        "do": chance.choice(["report", "list", "run", "attach", "cancel", "forget", "stop", ""]),
        "token": chance.choice([TOKEN, TOKEN, TOKEN, "", "x" * chance.choice([1, 1000, 5000])]),
        "argv": chance.choice([["true"], [], ["x" * 500] * 50, "true", [1]]),
        "job": chance.choice(["job-1", "job-999", "", "../x", 5, None]),
        "inputs": chance.choice([[], [{"name": "a", "size": chance.choice([0, 1, 100])}], [{}], {}]),
        "outputs": chance.choice([[], ["a"], ["../a"], ["a", "a"]]),
        "limits": chance.choice([{}, {"seconds": 0.5}, {"cpus": 0}, {"x": 1}, []]),
        "log_offset": chance.choice([0, 5, -1, 1 << 70, "0"]),
    }
    data = bytearray(frame(json.dumps(header), chance.randbytes(chance.choice([0, 0, 5, 5000]))))
    for _ in range(chance.choice([0, 0, 1, 4])):
        data[chance.randrange(len(data))] = chance.randrange(256)
    if chance.random() < 0.3:
        data = data[: chance.randrange(len(data))]
    return bytes(data) + chance.randbytes(chance.choice([0, 0, 3, 300]))


@pytest.mark.parametrize("seed", SEEDS)
def test_fuzz(agent: AgentProcess, seed: int) -> None:
    """Random clients with fixed seeds: the agent answers or hangs up, leaks no descriptor and no job, and lives."""
    chance = random.Random(seed)
    agent.client().report()
    before = descriptors(agent)
    for _ in range(120):
        with socket.create_connection(("127.0.0.1", agent.port), SECONDS) as link, contextlib.suppress(OSError):
            link.sendall(noise(chance))
            if chance.random() < 0.8:
                link.shutdown(socket.SHUT_WR)
                with contextlib.suppress(Ended, Violation):
                    protocol.receive(link)
    isp = agent.client()
    until(lambda: not isp.jobs(), SECONDS)
    until(lambda: descriptors(agent) <= before + 2, SECONDS)
    assert list(isp.run(["echo", "alive"])) == ["alive"]
