"""The library inside the host machine, over Linux's own nvme driver: Debian's Python and NumPy, and nothing of ours
compiled. What each section does is in ``linux_worker``, which runs there; here is what it has to find.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from emucsd.testbed import Machine, Testbed

pytestmark = pytest.mark.vm

WORKER = Path(__file__).with_name("linux_worker.py")
SECONDS = 400.0  # some 20 s where nothing else runs

Found = dict[str, Any]


def run(machine: Machine, *sections: str) -> dict[str, Found]:
    """What the worker says in a machine."""
    machine.put(WORKER, "/root/linux_worker.py")
    words = ["env", "OPENBLAS_NUM_THREADS=1", "python3", "/root/linux_worker.py", "/dev/nvme0", *sections]
    done = machine.run(words, timeout=SECONDS, check=True)
    said: dict[str, Found] = json.loads(done.out.splitlines()[-1])
    print(done.err, {title: section["seconds"] for title, section in said.items()})
    return said


@pytest.fixture(scope="module")
def found(testbed: Testbed) -> dict[str, Found]:
    """What the worker said in the host machine, section by section."""
    return run(testbed.host)


def section(found: dict[str, Found], title: str) -> Found:
    """One of them; where it failed there, so does the test, with the traceback."""
    assert "failed" not in found[title], found[title]["failed"]
    return found[title]


def test_our_drive_is_recognised(found: dict[str, Found]) -> None:
    """Of Linux's controllers the drive is known as ours, with its namespace's own id."""
    nodes = section(found, "nodes")
    assert (nodes["ours"], nodes["nsid"]) == (["nvme0"], 1)


def test_commands_by_ioctl(found: dict[str, Found]) -> None:
    """Identify, write and read with the standard library alone; a status is an answer, Linux's refusal an error."""
    said = section(found, "ioctl")
    assert said["model"].startswith("emucsd")
    assert (said["statuses"], said["equal"], said["nsid"]) == ([0, 0, 0], True, 1)
    assert said["far"] == 0x80
    assert said["other_nsid"] == "InvalidArgument"


def test_commands_by_io_uring(found: dict[str, Found]) -> None:
    """32 commands at once come back by token and eventfd; admin results, statuses and refusals come as they are."""
    said = section(found, "uring")
    assert said["equal"]
    status, threshold = said["threshold"]
    assert (status, said["far"], said["refused"]) == (0, 0x80, True)
    assert threshold > 200, "kelvin"


@pytest.mark.parametrize("way", ["io_uring", "ioctl"])
def test_the_same_library(found: dict[str, Found], way: str) -> None:
    """Blocks, batches, single commands, typed errors and a reset, as the direct client has them."""
    check_commands(section(found, f"commands {way}"), way, 0)


def check_commands(said: Found, way: str, port: int) -> None:
    """What ``commands`` of the worker has to find."""
    assert (said["way"], said["port"]) == (way, port)
    for promise in ("equal", "zeros", "batch", "latencies", "singles", "after_reset"):
        assert said[promise], promise
    assert said["failing"] == [1, 1], "one of three, the second"
    assert said["paced_ms"] >= 8, "five commands, 2 ms apart"
    assert said["errors"] == [
        "LbaOutOfRange", "CompareFailure", "InvalidNamespace", "InvalidArgument", "InvalidCommand", "ControlError",
    ]  # fmt: skip


def test_without_io_uring(found: dict[str, Found]) -> None:
    """Where io_uring is switched off the library goes on by ioctl, and says so to who asked for io_uring."""
    said = section(found, "fallback")
    assert (said["way"], said["read"] >= 512, said["asked"]) == ("ioctl", True, "RingUnavailable")


def test_rights(found: dict[str, Found]) -> None:
    """A user without rights is told so; with nodes opened to all they read blocks, but send no vendor command."""
    said = section(found, "permissions")
    assert said["closed"] == said["vendor"] == said["format"] == said["table"] == "NotPermitted", said
    assert said["read"] >= 512


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_files_are_tables(found: dict[str, Found], kind: str) -> None:
    """Lookups in files of a partition equal NumPy's bit for bit, through overwriting and renaming."""
    said = section(found, "files")[kind]
    assert said["offset"] == {"ext4": 1 << 20, "xfs": 401 << 20}[kind]
    assert said["extents"] >= 1
    for promise in ("created", "long_bag", "two", "renewed"):
        assert said[promise], promise
    assert said["overwritten"] == [5.0, 3.0], "what write() left in memory is seen, too"
    assert said["renamed"] == [5.0, 5.0]
    assert said["again"] == [20_000, 32, 5.0]
    assert said["left"] == [], "a refused table leaves nothing behind"


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_moved_files_are_refused(found: dict[str, Found], kind: str) -> None:
    """A file whose blocks are not where they were is refused: by the open table, and when it is opened again."""
    said = section(found, "files")[kind]
    for what in ("truncated", "truncated_again", "moved", "moved_again", "copy"):
        assert said[what] == "FileChanged", what


def test_refusals_name_the_cause(found: dict[str, Found]) -> None:
    """Each kind of file that a drive can't read by itself has an error of its own."""
    said = section(found, "files")
    for kind in ("ext4", "xfs"):
        assert [said[kind][name] for name in ("unwritten", "hole", "empty")] == ["FileUnwritten"] * 3
        assert (said[kind]["no_dim"], said[kind]["no_rows"]) == ("FileUnrecorded", "TableShapeError")
        assert (said[kind]["plain"], said[kind]["exists"]) == ("nothing", "InvalidArgument")
    assert said["xfs"]["shared"] == "FileShared"
    assert said["ext4"]["journaled"] == "FileJournaled"
    assert said["inline"] == "FileInline"
    assert said["elsewhere"] == ["FileElsewhere", "FileElsewhere"]


def test_nothing_compiled_is_loaded(found: dict[str, Found]) -> None:
    """All of it ran without Numba and the packages of the command line."""
    loaded = section(found, "loaded")
    assert [name for name, there in loaded.items() if there is True] == []


def test_in_the_drive_as_well(testbed: Testbed) -> None:
    """The machine in the drive, another kind of processor, does the same through port 1."""
    said = run(testbed.isp(0), "uring", "commands io_uring")
    assert section(said, "uring")["equal"]
    check_commands(section(said, "commands io_uring"), "io_uring", 1)
