"""The command line's frame: options, units, errors, exit codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from emucsd.cli import units
from emucsd.cli.command import DIFFERENT, FAILED, INTERRUPTED, OK, Command, CommandError, Option, Settings
from emucsd.cli.main import commands, main, make_parser

pytestmark = pytest.mark.usefixtures("own_folders")


@pytest.fixture
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No drive of the user's is seen or touched."""
    for name in ("EMUCSD_RUNTIME", "EMUCSD_STORE", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))


def leaves(known: tuple[Command, ...], before: str = "") -> Iterator[tuple[str, Command]]:
    for command in known:
        name = f"{before} {command.name}".strip()
        if command.children:
            yield from leaves(command.children, name)
        else:
            yield name, command


LEAVES = dict(leaves(commands()))


@pytest.mark.parametrize(
    ("text", "value"), [("4096", 4096), ("4K", 4096), ("4KiB", 4096), ("1.5G", 3 << 29), ("2t", 2 << 40), ("0", 0)]
)
def test_size(text: str, value: int) -> None:
    """Sizes are powers of 1024."""
    assert units.size(text) == value


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("10k", 10_000), ("1.5M", 1_500_000)])
def test_count(text: str, value: int) -> None:
    """Counts are powers of 1000."""
    assert units.count(text) == value


@pytest.mark.parametrize(("text", "value"), [("2", 2.0), ("0.5s", 0.5), ("100ms", 0.1), ("1min", 60.0)])
def test_seconds(text: str, value: float) -> None:
    """Times carry their unit, seconds without one."""
    assert units.seconds(text) == value


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (units.size, "much"),
        (units.size, "-1"),
        (units.count, "0"),
        (units.count, "0.5"),
        (units.seconds, "1 h"),
        (units.setting, "nand.read_ns"),
        (units.setting, "=5"),
    ],
)
def test_bad_units_are_named(parse: units.Parse, text: str) -> None:
    """A value that can't be read is quoted, with what is wanted."""
    with pytest.raises(ValueError, match="give") as caught:
        parse(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(("value", "text"), [(0, "0 B"), (1536, "1.5 KiB"), (5 << 40, "5 TiB")])
def test_show_size(value: int, text: str) -> None:
    """Sizes are shown in the largest unit that fits."""
    assert units.show_size(value) == text


@pytest.mark.parametrize("name", LEAVES)
def test_every_command_has_help_with_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` shows examples, exit codes, --json and --debug, and every example parses."""
    command = LEAVES[name]
    with pytest.raises(SystemExit) as caught:
        main([*name.split(), "--help"])
    assert caught.value.code == OK
    text = capsys.readouterr().out
    for part in ("examples:", "exit codes:", "--json", "--debug"):
        assert part in text
    assert command.examples
    for example in command.examples:
        for line in example.split("#")[0].split("&&"):
            make_parser(commands()).parse_args(line.split()[1:])


@pytest.mark.parametrize("name", LEAVES)
def test_commands_that_act_have_a_dry_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What starts, stops, writes tables or drops them can be asked what it would do."""
    acts = name in ("demo", "up", "down", "table create", "table drop", "mount", "umount", "isp run", "isp cancel")
    acts = acts or name.startswith(("machine ", "reproduce ")) or name in ("data put", "data take")
    assert bool(LEAVES[name].plan) is acts


def test_dry_run_starts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """`up --dry-run --json` tells the drive's whole command line and makes no folder."""
    assert main(["up", "d0", "--drive-only", "--size", "1GiB", "--set", "nand.read_ns=5", "--dry-run", "--json"]) == OK
    told = json.loads(capsys.readouterr().out)
    for part in ("emucsd_femu serve", "--name d0", "--size 1GiB", "--set nand.read_ns=5"):
        assert part in told["run"]
    assert not Path(told["put_sockets_in"]).exists()


def test_unknown_drive(capsys: pytest.CaptureFixture[str]) -> None:
    """A drive that is not there is an error of one line, with what there is."""
    assert main(["down", "nothing"]) == FAILED
    error = capsys.readouterr().err
    assert error.startswith("emucsd: error: no drive 'nothing'")
    assert "Traceback" not in error


def test_status_without_drives(capsys: pytest.CaptureFixture[str]) -> None:
    """An empty list is no error."""
    assert main(["status", "--json"]) == OK
    assert json.loads(capsys.readouterr().out) == {"testbeds": {}, "drives": {}}


def test_profiles(capsys: pytest.CaptureFixture[str]) -> None:
    """`profile` lists the built-in ones; with a name, every setting with its limits, overrides applied."""
    assert main(["profile", "--json"]) == OK
    assert {"femu", "null", "rmssd"} <= set(json.loads(capsys.readouterr().out)["profiles"])
    assert main(["profile", "femu", "--set", "pg_rd_lat=1234", "--json"]) == OK
    settings = {row["key"]: row for row in json.loads(capsys.readouterr().out)["settings"]}
    assert settings["nand.read_ns"]["value"] == 1234
    assert settings["nand.read_ns"]["low"] == 0
    assert main(["profile", "femu", "--set", "nand.reed_ns=1"]) == FAILED
    assert "did you mean nand.read_ns" in capsys.readouterr().err


def run_one(monkeypatch: pytest.MonkeyPatch, command: Command, *argv: str) -> int:
    monkeypatch.setattr("emucsd.cli.main.commands", lambda: (command,))
    return main([command.name, *argv])


def failing(exc: BaseException) -> Command:
    def run(settings: Settings) -> dict[str, object]:
        raise exc

    return Command("do", "fail", run, lambda result, console: None)


def test_hint_and_exit_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A CommandError becomes an error line, a hint line and its exit code."""
    assert run_one(monkeypatch, failing(CommandError("no room", "make some", DIFFERENT))) == DIFFERENT
    assert capsys.readouterr().err == "emucsd: error: no room\nhint: make some\n"


def test_a_bug_is_called_a_bug(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An exception that nobody meant names its type, and asks for --debug."""
    assert run_one(monkeypatch, failing(KeyError("x"))) == FAILED
    error = capsys.readouterr().err
    assert "KeyError" in error
    assert "--debug" in error


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """With --debug the exception itself comes out."""
    with pytest.raises(KeyError):
        run_one(monkeypatch, failing(KeyError("x")), "--debug")


def test_interrupt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C ends with 130 and no traceback."""
    assert run_one(monkeypatch, failing(KeyboardInterrupt())) == INTERRUPTED
    assert capsys.readouterr().err == "emucsd: interrupted\n"


def test_options_of_one_row(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A row makes the flag, its default, its check and its key; a result's exit code is not printed."""
    command = Command(
        "do",
        "show settings",
        lambda settings: {"depth": settings.queue_depth, "on": settings.on, "exit_code": DIFFERENT},
        lambda result, console: None,
        options=(Option("--queue-depth", "depth", 32, units.count), Option("--on", "a switch", False)),
    )
    assert run_one(monkeypatch, command, "--json", "--on") == DIFFERENT
    assert json.loads(capsys.readouterr().out) == {"depth": 32, "on": True}
    with pytest.raises(SystemExit) as caught:
        run_one(monkeypatch, command, "--queue-depth", "none")
    assert caught.value.code == 2
    assert "'none' is no count" in capsys.readouterr().err
