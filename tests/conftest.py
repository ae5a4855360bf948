"""What every test shares: the compile cache, hypothesis without chance, and a folder for what a failed test leaves."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest

from emucsd_firmware import build

ROOT = Path(__file__).resolve().parents[1]
ARTEFACTS = ROOT / "artefacts"
FAILED = pytest.StashKey[bool]()


def use_cache() -> None:
    """One folder for all that the tests compile, under a key of all sources: see emucsd_firmware.build for why.

    Drive processes inherit it; a test that starts one with policies of its own must take NUMBA_CACHE_DIR away.
    """
    if os.environ.get(build.CACHE_VARIABLE):
        return
    digest = hashlib.blake2b(build.key().encode(), digest_size=12)
    for path in sorted((ROOT / "host").rglob("*.py")):
        if b"emucsd_wire.words" in (text := path.read_bytes()):  # it has compiled code
            digest.update(text)
    folder = build.cache_root().with_name("tests") / digest.hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    os.utime(folder)
    build.prune(folder.parent, folder)
    os.environ[build.CACHE_VARIABLE] = str(folder)


use_cache()  # before any test module imports numba
hypothesis.settings.register_profile("emucsd", derandomize=True, deadline=None, database=None, print_blob=False)
hypothesis.settings.load_profile("emucsd")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


@pytest.fixture
def artefacts(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder for logs and consoles: kept as artefacts/<test> when the test fails, else gone with tmp_path."""
    folder = tmp_path / "artefacts"
    folder.mkdir()
    yield folder
    kept = ARTEFACTS / re.sub(r"[^\w.-]+", "-", request.node.nodeid.removeprefix("tests/"))
    shutil.rmtree(kept, ignore_errors=True)
    if request.node.stash.get(FAILED, False):
        shutil.copytree(folder, kept, ignore_dangling_symlinks=True, ignore=ignore_special)


def ignore_special(folder: str, names: list[str]) -> list[str]:
    """Sockets and other special files can't be copied, and a drive's media is too large to be worth it."""
    paths = {name: Path(folder, name) for name in names}
    return [n for n, p in paths.items() if not (p.is_dir() or (p.is_file() and p.stat().st_size < 16 << 20))]
