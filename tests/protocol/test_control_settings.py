"""The drive process's command line: every option checked, every mistake named with what is possible."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from emucsd_femu.errors import SettingsError
from emucsd_femu.session import Doorbells
from emucsd_femu.settings import parse
from emucsd_wire import paths
from emucsd_wire.paths import PathError


def test_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A name is enough; folders follow from it and from the environment."""
    monkeypatch.setenv("EMUCSD_RUNTIME", str(tmp_path / "run"))
    monkeypatch.setenv("EMUCSD_STORE", str(tmp_path / "stores"))
    settings = parse(["--name", "first"])
    assert settings.runtime == tmp_path / "run" / "first"
    assert settings.store == tmp_path / "stores" / "first"
    assert (settings.profile, settings.size, settings.clock, settings.durability) == ("null", None, "real", "process")
    assert settings.doorbells is Doorbells.AUTO
    assert settings.log_level == logging.INFO
    assert (settings.ready_fd, settings.lifeline_fd, settings.firmware, settings.overrides) == (None, None, None, {})


def test_everything_given(tmp_path: Path) -> None:
    """Every option arrives in its type."""
    policy = tmp_path / "policy.py"
    policy.write_text("")
    words = "--runtime /r --store /s --profile femu --size 4GiB --clock virtual --durability machine --doorbells mapped"
    words += (
        f" --set nand.read_ns=5 --set pg_wr_lat=7 --firmware {policy} --log-level debug --ready-fd 7 --lifeline-fd 8"
    )
    settings = parse(["--name", "x", *words.split()])
    assert (settings.runtime, settings.store) == (Path("/r"), Path("/s"))
    assert settings.overrides == {"nand.read_ns": "5", "pg_wr_lat": "7"}
    assert settings.doorbells is Doorbells.MAPPED
    assert (settings.firmware, settings.ready_fd, settings.lifeline_fd) == (policy, 7, 8)
    assert settings.public()["size"] == "4GiB"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "--name"),
        (["--name", "../up"], "../up"),
        (["--name", ".hidden"], "letter or digit"),
        (["--name", "x" * 65], "64"),
        (["--name", "a/b"], "a/b"),
        (["--name", "x", "--clock", "fast"], "real, virtual"),
        (["--name", "x", "--durability", "some"], "process, machine"),
        (["--name", "x", "--doorbells", "loud"], "loud"),
        (["--name", "x", "--log-level", "chatty"], "debug"),
        (["--name", "x", "--set", "nand.read_ns"], "KEY=VALUE"),
        (["--name", "x", "--set", "a=1", "--set", "a=2"], "twice"),
        (["--name", "x", "--ready-fd", "1"], "3 or more"),
        (["--name", "x", "--ready-fd", "one"], "one"),
        (["--name", "x", "--firmware", "/does/not/exist.py"], "no file"),
        (["--name", "x", "--colour", "red"], "--colour"),
        (["--name", "x", "stray"], "stray"),
        (["--name"], "--name"),
        (["--nam", "x"], "--nam"),
    ],
)
def test_mistakes_are_named(words: list[str], part: str) -> None:
    """A SettingsError says which option, what it was given, or what it takes."""
    with pytest.raises(SettingsError, match=re.escape(part)):
        parse(words)


def test_paths_follow_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runtime and store roots: EMUCSD_*, then XDG_*, then a default that belongs to the user."""
    for name in ("EMUCSD_RUNTIME", "EMUCSD_STORE", "XDG_RUNTIME_DIR", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/ada")
    assert str(paths.runtime_root()).startswith("/tmp/emucsd-")
    assert paths.store_folder("x") == Path("/home/ada/.local/share/emucsd/x")
    assert paths.cache_root() == Path("/home/ada/.cache/emucsd")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert paths.port_socket(paths.runtime_folder("x"), 1) == Path("/run/user/7/emucsd/x/port1/cntrl")
    assert paths.control_socket(paths.runtime_folder("x")) == Path("/run/user/7/emucsd/x/control")
    assert paths.store_folder("x") == Path("/data/emucsd/x")


def test_sockets_must_have_short_paths() -> None:
    """A Unix socket's address has 107 bytes: a longer path is refused with what to do."""
    with pytest.raises(PathError, match="107"):
        paths.port_socket(Path("/", *["deep"] * 25), 0)
