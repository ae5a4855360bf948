"""Runs in a machine, with nothing but Python: works on a shared tree as one of several nodes, or tells what is in it.

    ocfs2_worker.py work FOLDER NODE SECONDS   create, append, rename, lock, read, remove, until FOLDER/stop-NODE is
                                               there; the last line printed is JSON
    ocfs2_worker.py tell FOLDER                a digest of all names and contents, as JSON

Every file's content follows from its name, so any node can check any file. FOLDER/synced-NODE says up to which round
everything of that node's was made durable.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import sys
import time
from pathlib import Path

LARGEST = 40_000
SYNC_EVERY = 4
REMOVE_AFTER = 10


def content(name: str) -> bytes:
    """What is in the file of this name."""
    source = random.Random(name)
    return source.randbytes(source.randrange(LARGEST))


def durable(path: Path) -> None:
    """fsync a file or folder."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def append(path: Path, line: str) -> None:
    """A line at the end. Under a lock and after a look at the size, which fetches it from the node that wrote last:

    OCFS2's O_APPEND takes the size that this node knows, so appends of two nodes overwrite each other.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.fstat(fd)
        os.write(fd, f"{line}\n".encode())
    finally:
        os.close(fd)


def count_up(path: Path) -> None:
    """One more, read and written under a lock that holds on all nodes (OCFS2 has flock so, fcntl's locks not)."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        value = int(os.pread(fd, 20, 0) or b"0")
        os.pwrite(fd, b"%d" % (value + 1), 0)
    finally:
        os.close(fd)


def mark(path: Path, number: int) -> None:
    """The last durable round, durable itself."""
    draft = path.with_name(f"{path.name}.draft")
    draft.write_text(str(number))
    durable(draft)
    draft.rename(path)
    durable(path.parent)


def check_one(folder: Path, node: str) -> bool:
    """Read some file of the others'. It may be gone by now; what is read must be right."""
    others = [path for path in (folder / "files").iterdir() if not path.name.startswith(f"{node}-")]
    if not others:
        return False
    chosen = random.choice(others)
    try:
        data = chosen.read_bytes()
    except FileNotFoundError:
        return False
    assert data == content(chosen.name), f"{chosen} is wrong: {len(data)} bytes"
    return True


def work(folder: Path, node: str, seconds: float) -> dict[str, float]:
    """Rounds until the time is over. :returns: how much was done, and how long the slowest round took"""
    (folder / "files").mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds
    number = read = 0
    slowest = 0.0
    while time.monotonic() < end and not (folder / f"stop-{node}").exists():
        begun = time.monotonic()
        name = f"{node}-{number}"
        draft = folder / f"{name}.draft"
        draft.write_bytes(content(name))
        if number % SYNC_EVERY == 0:
            durable(draft)
        draft.rename(folder / "files" / name)
        append(folder / "log", name)
        count_up(folder / "counter")
        read += check_one(folder, node)
        if number >= REMOVE_AFTER:
            (folder / "files" / f"{node}-{number - REMOVE_AFTER}").unlink()
        if number % SYNC_EVERY == 0:
            durable(folder / "log")
            durable(folder / "files")
            mark(folder / f"synced-{node}", number)
        number += 1
        slowest = max(slowest, time.monotonic() - begun)
    durable(folder / "log")
    return {"rounds": number, "read": read, "slowest_seconds": round(slowest, 3)}


def tell(folder: Path) -> dict[str, object]:
    """Everything in the tree; contents are checked on the way."""
    digest = hashlib.sha256()
    wrong = []
    names = sorted(path.name for path in (folder / "files").iterdir())
    for name in names:
        data = (folder / "files" / name).read_bytes()
        digest.update(f"{name}\0{len(data)}\0".encode() + data)
        if data != content(name):
            wrong.append(name)
    lines = (folder / "log").read_text().split("\n")[:-1]
    digest.update("\n".join(lines).encode())
    counter = int((folder / "counter").read_bytes())
    return {"digest": digest.hexdigest(), "names": names, "wrong": wrong, "lines": lines, "counter": counter}


def main(words: list[str]) -> None:
    """See the top."""
    if words[0] == "work":
        print(json.dumps(work(Path(words[1]), words[2], float(words[3]))))
    else:
        print(json.dumps(tell(Path(words[1]))))


if __name__ == "__main__":
    main(sys.argv[1:])
