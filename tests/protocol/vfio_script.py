"""Conversations as data files: requests and replies in hex, as the files' own headers explain."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import NamedTuple

from emucsd_wire.vfio_user import HEADER, REGION_INFO, Command
from tests.protocol.vfio_peer import STEPS, Peer

DATA = Path(__file__).parents[1] / "data"


class Step(NamedTuple):
    """One exchange; ``name`` alone for what happens without messages."""

    name: str
    request: bytes = b""
    reply: tuple[int | None, ...] = ()  # None: any byte
    sends_fd: bool = False
    gets_fd: bool = False
    polls: bool = False

    def matches(self, got: bytes) -> bool:
        return len(got) == len(self.reply) and all(w in (None, g) for w, g in zip(self.reply, got, strict=True))


def parse(name: str) -> list[Step]:
    """The exchanges of a data file."""
    steps: list[Step] = []
    title, words, kind = "", dict[str, list[str]](), ""
    for line in [*(DATA / name).read_text().splitlines(), "# end"]:
        if line[:1] in ("#", "=") and words:
            steps.append(_step(title, words))
            words = {}
        if line.startswith("="):
            steps.append(Step(line[2:]))
        elif line.startswith("#"):
            title = line[2:]
        elif line.strip():
            kind = line[:2].strip() or kind
            words.setdefault(kind, []).extend(line[2:].split())
    return steps


def _step(title: str, words: dict[str, list[str]]) -> Step:
    request = [b for key in (">", ">>", ">?") for b in _bytes(words.get(key, []))]
    reply = [b for key in ("<", "<<") for b in _bytes(words.get(key, []))]
    return Step(title, bytes(b or 0 for b in request), tuple(reply), ">>" in words, "<<" in words, ">?" in words)


def _bytes(words: list[str]) -> list[int | None]:
    found: list[int | None] = []
    for word in words:
        if word.startswith("+"):
            found += [None if word.endswith("?") else 0] * int(word[1:].rstrip("?"))
        else:
            pairs = [word[n : n + 2] for n in range(0, len(word), 2)]
            found += [None if pair == ".." else int(pair, 16) for pair in pairs]
    return found


class Actor:
    """Plays a conversation's client against a server.

    :param memory: the descriptor of the client's memory
    """

    def __init__(self, peer: Peer, memory: int, spare: int | None = None) -> None:
        self.peer = peer
        self.page: mmap.mmap | None = None
        self._memory = memory
        self._spare = memory if spare is None else spare  # for what is no memory: an eventfd

    def run(self, steps: list[Step]) -> None:
        """Send each request and insist on its reply."""
        for step in steps:
            if step.request:
                self._exchange(step)

    def close(self) -> None:
        """Vanish."""
        if self.page is not None:
            self.page.close()
        self.peer.close()

    def _exchange(self, step: Step) -> None:
        command = HEADER.unpack(step.request).command
        fd = self._spare if command == Command.DEVICE_SET_IRQS else self._memory
        got = b""
        for _ in range(STEPS if step.polls else 1):
            self.peer.send_raw(step.request, (fd,) if step.sends_fd else ())
            answer = self.peer.receive()
            got = HEADER.pack(answer.header) + answer.payload
            if step.matches(got):
                break
        else:
            raise AssertionError(f"{step.name}: got {got.hex()}")
        assert len(answer.fds) == step.gets_fd, step.name
        for received in answer.fds:
            info = REGION_INFO.unpack(answer.payload)
            self.page = mmap.mmap(received, 4096, offset=(info.offset + 0x1000) % (1 << 64))
            os.close(received)
