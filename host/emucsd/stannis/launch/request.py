"""What a user asks for: the run itself, where its samples are, and on what it is to be trained."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Self

from emucsd.errors import InvalidArgument
from emucsd.stannis import fields
from emucsd.stannis.spec import Spec

DEFAULT_TESTBED = "testbed"
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True)
class Request:
    """A run as it was asked for; it lies in the run folder as ``request.json``, for ``--resume``.

    :ivar data: locations of public samples
    :ivar private: ``LOCATION``: at each engine; ``NODE=LOCATION``: at one
    :ivar test: a location that every node can read, or None
    :ivar engines: so many temporary drives, each with its local engine, besides the host
    :ivar processes: so many plain processes instead
    :ivar drives: names of running drives, or a testbed and numbers of its drives
    :ivar private_share: of the samples that are put onto temporary drives: the part that is private, spread over them
    :ivar cpu_share: of a core of this machine that a core of an engine is worth; None: the profile's
    :ivar engine_memory: bytes of each local engine; None: the profile's
    :ivar profile: of temporary drives; ``drive_size`` of each
    :ivar host_cores: processors of this machine for the host's rank; ``engine_cores`` for engines and drives
    :ivar equal: equal batches on all ranks: plain data parallel, for comparison
    :ivar checkpoint: where checkpoints lie: a folder, or ``ns:N``; empty: in the run folder
    :ivar heartbeat_seconds: without a word from a node after which it is taken for lost
    :raises InvalidArgument: settings that don't go together
    """

    spec: Spec
    data: tuple[str, ...] = ()
    private: tuple[str, ...] = ()
    test: str | None = None
    engines: int = 0
    processes: int = 0
    drives: tuple[str, ...] = ()
    private_share: float = 0.0
    cpu_share: float | None = None
    engine_memory: int | None = None
    profile: str = "newport"
    drive_size: str | None = None
    host_cores: tuple[int, ...] = ()
    engine_cores: tuple[int, ...] = ()
    equal: bool = False
    checkpoint: str = ""
    heartbeat_seconds: float = 10.0
    notes: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ways = sum(map(bool, (self.engines, self.processes, self.drives)))
        if ways != 1:
            raise InvalidArgument(
                "say what to train on, one of: --engines N (temporary drives), --drives NAMES (running ones, or a "
                "testbed), --processes N (plain processes, to try a network)"
            )
        if not 0 <= self.private_share < 1:
            raise InvalidArgument(f"a private share of {self.private_share}; from 0 to less than 1")
        if self.private_share and not self.engines:
            raise InvalidArgument(
                "--private-share is for --engines; samples of running drives are made private by emucsd data put "
                "DRIVE SOURCE --private, and named by --private"
            )
        if not self.data and not self.private:
            raise InvalidArgument("no samples are named; give --data LOCATION (docs/stannis.md says which there are)")

    @property
    def testbed(self) -> tuple[str, tuple[int, ...] | None] | None:
        """The testbed and the drives of it that are meant, None: drives by their names."""
        return as_testbed(self.drives)

    def to_json(self) -> str:
        """All of it."""
        return fields.to_json(self, 2)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """:raises InvalidArgument: it describes no run"""
        try:
            return fields.from_json(cls, text)
        except fields.FieldError as problem:
            raise InvalidArgument(f"request: {problem}") from None


def as_testbed(words: tuple[str, ...]) -> tuple[str, tuple[int, ...] | None] | None:
    """``lab:0-3``, ``lab:1``, ``0-3``: a testbed's drives by number; ``lab`` is for whoever asks to find out.

    :raises InvalidArgument: numbers that are none
    """
    name, colon, numbers = words[0].partition(":") if words else ("", "", "")
    if not colon and words and _RANGE.fullmatch(words[0]):
        name, colon, numbers = DEFAULT_TESTBED, ":", words[0]
    if not colon:
        return None
    chosen: list[int] = []
    for word in (numbers, *words[1:]):
        match = _RANGE.fullmatch(word)
        if match is None:
            raise InvalidArgument(f"drives {','.join(words)!r}: give TESTBED:0-3, TESTBED:0,2, or names of drives: a,b")
        chosen += range(int(match[1]), int(match[2] or match[1]) + 1)
    return name, tuple(dict.fromkeys(chosen))
