"""Python's bytecode, made on the build machine: an emulated processor would take many times as long to make it.

Debian packages carry none. Theirs is of the unchecked kind: right whatever a source's date is, and it saves the machine
a look at every source. This project's own is checked against the source, which somebody may edit in the machine.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, cast

from emucsd_images.tools import Tools
from emucsd_wire.paths import cache_root

_TAG = "cpython-313"


def compiled(sources: Sequence[Path], below: Path, at: str, tools: Tools, *, checked: bool = False) -> dict[str, bytes]:
    """Bytecode of some modules.

    :param below: the folder that paths are taken relative to
    :param at: where that folder will be in the machine, "/" or "/opt/emucsd": tracebacks say so
    :param checked: Python compares it with the source when it is loaded
    :returns: path relative to ``below`` (``…/__pycache__/NAME.cpython-313.pyc``) -> content
    """
    with tempfile.TemporaryDirectory(prefix="emucsd-bytecode-") as scratch:
        kind = "checked-hash" if checked else "unchecked-hash"
        processes = os.cpu_count() or 1
        with ThreadPoolExecutor(processes) as pool:  # compileall's own workers would need an installed Python
            words = ("-m", "compileall", "-q", "--invalidation-mode", kind, "-s", str(below), "-p", at)
            for done in [
                pool.submit(
                    _run, tools, [*words], [str(path) for path in sorted(sources)[part::processes]], Path(scratch), part
                )
                for part in range(processes)
            ]:
                done.result()
        mirrored = Path(scratch, *below.resolve().parts[1:])
        found = {}
        for path in sorted(mirrored.rglob(f"*.{_TAG}.pyc")):
            relative = path.relative_to(mirrored)
            found[str(relative.parent / "__pycache__" / path.name)] = path.read_bytes()
        return found


def cached(sources: Sequence[Path], below: Path, at: str, tools: Tools) -> dict[str, bytes]:
    """``compiled``, kept in the user's cache: a package that has not changed is not compiled again."""
    digest = hashlib.blake2b(f"{at}\0{tools.root.name}".encode(), digest_size=6)
    for path in sources:
        digest.update(f"\0{path.relative_to(below)}\0".encode() + path.read_bytes())
    kept = cache_root() / "bytecode" / f"{digest.hexdigest()}.tar"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        draft = kept.with_suffix(f".{os.getpid()}")
        with tarfile.open(draft, "w") as archive:
            for name, code in compiled(sources, below, at, tools, checked=True).items():
                info = tarfile.TarInfo(name)
                info.size = len(code)
                archive.addfile(info, io.BytesIO(code))
        draft.rename(kept)
    with tarfile.open(kept) as archive:
        return {info.name: cast(IO[bytes], archive.extractfile(info)).read() for info in archive}


def _run(tools: Tools, words: list[str], sources: list[str], scratch: Path, part: int) -> None:
    listed = scratch / f"sources.{part}"
    listed.write_text("\n".join(sources))
    # a fixed seed, so that the same sources make the same bytes
    tools.python(*words, "-i", str(listed), environment={"PYTHONPYCACHEPREFIX": str(scratch), "PYTHONHASHSEED": "0"})
