"""Policies: what the defaults decide, how a user's file takes their place, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from emucsd_firmware import policy
from emucsd_firmware.build import POLICY_VARIABLE
from emucsd_firmware.errors import ProfileError
from emucsd_firmware.policies import allocation, collection

ROOT = Path(__file__).resolve().parents[2]


def file(folder: Path, text: str) -> Path:
    path = folder / "mine.py"
    path.write_text(text)
    return path


def test_greedy() -> None:
    """Greedy takes the block with least to copy, whatever its age."""
    assert collection.greedy(3, 8, 0, 9) > collection.greedy(4, 8, 1000, 0)


def test_cost_benefit() -> None:
    """Cost-benefit waits for young blocks and empties old ones that hold a little more."""
    assert collection.cost_benefit(4, 8, 1000, 0) > collection.cost_benefit(3, 8, 10, 0)
    assert collection.cost_benefit(3, 8, 10, 0) > collection.cost_benefit(4, 8, 10, 0)
    assert collection.cost_benefit(0, 8, 0, 0) > 0


def test_stream_of() -> None:
    """Pages that are overwritten sooner than the average are hot; first writes are cold; two streams have no cold."""
    assert allocation.stream_of(10, 100, 3) == 0
    assert allocation.stream_of(90, 100, 3) == 1
    assert allocation.stream_of(-1, 100, 3) == 1
    assert {allocation.stream_of(age, 100, streams) for age in (-1, 10, 90) for streams in (1, 2)} == {0}


def test_compiled() -> None:
    """The policies in force are compiled, and agree with the plain functions."""
    for name, default in policy.DEFAULTS.items():
        assert getattr(policy, name).py_func is default
    assert policy.gc_score(3, 8, 10, 2) == collection.gc_score(3, 8, 10, 2)
    assert policy.stream_of(10, 100, 3) == 0
    assert policy.source("gc_score").startswith(collection.__file__)


def test_user_file(tmp_path: Path) -> None:
    """A file replaces the functions that it names, its own or imported ones, and leaves the others."""
    module = policy.load(
        file(
            tmp_path,
            "from emucsd_firmware.policies.collection import cost_benefit as gc_score\n"
            "def stream_of(age, pages, streams):\n    return 1\n",
        )
    )
    assert policy.chosen("gc_score", module) is collection.cost_benefit
    assert policy.chosen("stream_of", module)(1, 2, 3) == 1
    assert policy.chosen("pick_die", module) is allocation.pick_die
    assert policy.chosen("schedule", None) is policy.DEFAULTS["schedule"]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("gc_score = 5", r"gc_score = 5 in .*: must be a function"),
        ("def gc_score(valid, pages): return 1.0", r"takes 2 parameters, must take 4: \(valid, pages, age, erases\)"),
        ("def schedule(*classes): return 0", "takes 1 parameters, must take 7"),
    ],
)
def test_wrong_function(tmp_path: Path, text: str, match: str) -> None:
    """A function that can't take the default's place is refused with both parameter lists."""
    module = policy.load(file(tmp_path, text))
    name = "schedule" if "schedule" in text else "gc_score"
    with pytest.raises(policy.PolicyError, match=match):
        policy.chosen(name, module)


@pytest.mark.parametrize(("text", "match"), [("1 / 0", "ZeroDivisionError"), ("def", "SyntaxError")])
def test_broken_file(tmp_path: Path, text: str, match: str) -> None:
    """A file that does not run is refused with its error."""
    with pytest.raises(policy.PolicyError, match=match):
        policy.load(file(tmp_path, text))


def test_no_file(tmp_path: Path) -> None:
    """A file that is not there, or is none of Python's, is named; and it is a profile error like the others."""
    for path in (tmp_path / "none.py", tmp_path, file(tmp_path, "").rename(tmp_path / "mine.txt")):
        with pytest.raises(ProfileError, match="no such Python file"):
            policy.load(path)


def test_bound_at_import(tmp_path: Path) -> None:
    """$EMUCSD_FIRMWARE decides when the firmware is imported, and what it names is compiled and cached."""
    path = file(tmp_path, "LIMIT = 40\n\ndef gc_score(valid, pages, age, erases):\n    return float(LIMIT - valid)\n")
    code = "from emucsd_firmware import policy as p; print(p.gc_score(2, 8, 0, 0), p.source('gc_score'), end=' ')"
    code += "; print(sum(p.gc_score.stats.cache_hits.values()))"
    names = {"PYTHONPATH": str(ROOT / "firmware"), POLICY_VARIABLE: str(path), "NUMBA_CACHE_DIR": str(tmp_path / "c")}
    outputs = [
        subprocess.run([sys.executable, "-c", code], env=names, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert outputs == [f"38.0 {path}:3 0\n", f"38.0 {path}:3 1\n"]
