"""Where compiled firmware is kept: a folder for each state of the sources, chosen before numba is imported."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from emucsd_firmware import build

ROOT = Path(__file__).resolve().parents[2]


def run(code: str, **names: str) -> str:
    """A fresh interpreter's output."""
    env = {"PYTHONPATH": str(ROOT / "firmware"), "PATH": os.environ["PATH"], **names}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout


def test_without_numba() -> None:
    """Importing the module imports no numba: else its choice would come too late."""
    assert run("import sys; from emucsd_firmware import build; print('numba' in sys.modules)") == "False\n"


def test_key(tmp_path: Path) -> None:
    """The key changes with the policy file's content, and is stable otherwise."""
    path = tmp_path / "mine.py"
    path.write_text("A = 1\n")
    first = build.key(path)
    assert first == build.key(path) != build.key()
    path.write_text("A = 2\n")
    assert build.key(path) != first
    assert {path.name for path in build.sources()} >= {"words.py", "layout.py", "gc.py", "timing.py", "policy.py"}


def test_key_sees_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key changes with any source, its name or the processor."""
    package = tmp_path / "emucsd_firmware"
    package.mkdir()
    (package / "a.py").write_text("A = 1\n")
    monkeypatch.setattr(build, "_FIRMWARE", package)
    keys = [build.key()]
    (package / "a.py").write_text("A = 2\n")
    keys.append(build.key())
    (package / "a.py").rename(package / "b.py")
    keys.append(build.key())
    monkeypatch.setattr(build, "processor", lambda: "another")
    keys.append(build.key())
    assert len(set(keys)) == 4


def test_use_cache(tmp_path: Path) -> None:
    """The folder is made under the cache root, exported, and is warm once somebody says so."""
    code = (
        "import os; from emucsd_firmware import build; b = build.use_cache(); "
        "print(b.folder == build.cache_root() / build.key(), os.environ['NUMBA_CACHE_DIR'] == str(b.folder), b.warm); "
        "b.mark_warm()"
    )
    assert run(code, XDG_CACHE_HOME=str(tmp_path)) == "True True False\n"
    assert run(code, XDG_CACHE_HOME=str(tmp_path)) == "True True True\n"
    assert len(list((tmp_path / "emucsd" / "firmware").iterdir())) == 1


def test_own_cache(tmp_path: Path) -> None:
    """A NUMBA_CACHE_DIR that is set already is left alone."""
    code = "import os; from emucsd_firmware import build; print(build.use_cache().folder)"
    assert run(code, NUMBA_CACHE_DIR=str(tmp_path)) == f"{tmp_path}\n"


def test_policy_named(tmp_path: Path) -> None:
    """A policy file that is given is exported for the process's import of the policies."""
    path = tmp_path / "mine.py"
    path.write_text("")
    variable = build.POLICY_VARIABLE
    code = f"from emucsd_firmware import build; build.use_cache({str(path)!r}); print(build.os.environ[{variable!r}])"
    assert run(code, XDG_CACHE_HOME=str(tmp_path)) == f"{path}\n"


def test_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """After numba was imported the choice would have no effect: that is said."""
    monkeypatch.delenv(build.CACHE_VARIABLE, raising=False)
    with pytest.raises(RuntimeError, match="numba is imported already"):
        build.use_cache()


def test_prune(tmp_path: Path) -> None:
    """Builds of the last week, the newest few and the present one stay; older ones go."""
    now = time.time()
    for age in range(10):
        (tmp_path / f"old{age}").mkdir()
        os.utime(tmp_path / f"old{age}", (now, now - build.KEPT_SECONDS * (1 + age)))
    for name in ("new", "present"):
        (tmp_path / name).mkdir()
    os.utime(tmp_path / "present", (0, 0))
    gone = build.prune(tmp_path, tmp_path / "present")
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {"present", "new", "old0", "old1", "old2"}
    assert len(gone) == 7
    assert build.prune(tmp_path / "none", tmp_path) == []
