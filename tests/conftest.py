"""What every test shares: the compile cache, hypothesis without chance, and a folder for what a failed test leaves."""

from __future__ import annotations

import re
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parents[1]
ARTEFACTS = ROOT / "artefacts"
FAILED = pytest.StashKey[bool]()

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
