"""What a drive process is started with: one row an option makes its flag, help, default and check."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from emucsd_femu.errors import SettingsError
from emucsd_femu.session import Doorbells
from emucsd_wire import paths

CLOCKS = ("real", "virtual")
DURABILITIES = ("process", "machine")
LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True)
class Settings:
    """A drive process, fully specified."""

    name: str
    runtime: Path
    store: Path
    profile: str
    size: str | None
    clock: str
    durability: str
    doorbells: Doorbells
    overrides: dict[str, str]
    firmware: Path | None
    log_level: int
    ready_fd: int | None
    lifeline_fd: int | None

    def public(self) -> dict[str, Any]:
        """What ``drive.json`` and ``status`` tell."""
        return {
            "runtime": str(self.runtime),
            "store": str(self.store),
            "profile": self.profile,
            "size": self.size,
            "clock": self.clock,
            "durability": self.durability,
            "doorbells": self.doorbells.value,
            "overrides": self.overrides,
            "firmware": None if self.firmware is None else str(self.firmware),
        }


class Option(NamedTuple):
    """One flag."""

    flag: str
    metavar: str
    parse: Callable[[str], Any]
    default: str | None
    help: str
    repeated: bool = False


def _choice(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"is none of {', '.join(allowed)}")
        return text

    return parse


def _descriptor(text: str) -> int:
    number = int(text)
    if number < 3:
        raise ValueError("must be a descriptor of 3 or more that this process inherits")
    return number


def _override(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key or not value:
        raise ValueError("must be KEY=VALUE, as in nand.read_ns=50000")
    return key, value


def _plugin(text: str) -> Path:
    path = Path(text).absolute()
    if not path.is_file():
        raise ValueError("is no file; give the path of a Python file with policies")
    return path


def _folder(text: str) -> Path:
    return Path(text).expanduser().absolute()


OPTIONS = (
    Option("name", "NAME", paths.check_name, None, "the drive's name; its folders are named after it"),
    Option("runtime", "DIR", _folder, None, "folder for sockets, pid and log"),
    Option("store", "DIR", _folder, None, "folder of the drive's flash"),
    Option("profile", "P", str, "null", "built-in profile or a TOML file: what the flash is made of and how fast"),
    Option("size", "S", str, None, "capacity, as in 16GiB; the profile's where not given"),
    Option("clock", "|".join(CLOCKS), _choice(*CLOCKS), "real", "wall clock, or discrete events that repeat exactly"),
    Option(
        "durability", "|".join(DURABILITIES), _choice(*DURABILITIES), "process",
        "what a flushed write survives: this process's death, or the whole machine's",
    ),
    Option(
        "doorbells", "|".join(d.value for d in Doorbells), Doorbells, "auto",
        "mapped page (SPDK, own client), trapped messages (QEMU), or by what each client says",
    ),
    Option("set", "KEY=VALUE", _override, None, "override one setting of the profile; may be repeated", repeated=True),
    Option("firmware", "FILE", _plugin, None, "Python file whose policies replace the built-in ones"),
    Option("log-level", "|".join(LEVELS), _choice(*LEVELS), "info", "what goes to the log"),
    Option("ready-fd", "FD", _descriptor, None, "descriptor for one JSON line, once the drive serves or has failed to"),
    Option("lifeline-fd", "FD", _descriptor, None, "descriptor whose end of file stops the drive: its owner has died"),
)  # fmt: skip


class _Parser(argparse.ArgumentParser):
    """argparse that raises instead of exiting."""

    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message}; see --help")


def parser() -> argparse.ArgumentParser:
    """The command line of ``serve``."""
    made = _Parser(prog="python -m emucsd_femu serve", description="Run one drive and serve it.", allow_abbrev=False)
    for option in OPTIONS:
        default = f" (default: {option.default})" if option.default else ""
        action = "append" if option.repeated else "store"
        made.add_argument(f"--{option.flag}", metavar=option.metavar, action=action, help=option.help + default)
    return made


def parse(arguments: Sequence[str]) -> Settings:
    """:raises SettingsError: says which option, what it was given, and what it takes"""
    given = vars(parser().parse_args(arguments))
    values: dict[str, Any] = {}
    for option in OPTIONS:
        key = option.flag.replace("-", "_")
        text = given[key]
        if text is None:
            text = [] if option.repeated else option.default
        values[key] = None if text is None else _value(option, text)
    name = values["name"]
    if name is None:
        raise SettingsError("--name is missing; give the drive a name")
    overrides = values.pop("set")
    if len({key for key, _ in overrides}) < len(overrides):
        raise SettingsError("--set names one setting twice; give it once")
    return Settings(
        **{
            **values,
            "overrides": dict(overrides),
            "runtime": values["runtime"] or paths.runtime_folder(name),
            "store": values["store"] or paths.store_folder(name),
            "log_level": getattr(logging, values["log_level"].upper()),
        }
    )


def ready_fd(arguments: Sequence[str]) -> int | None:
    """Whom to tell about arguments that ``parse`` refuses; None where even that can't be read."""
    for flag, value in pairwise(arguments):
        if flag == "--ready-fd" and value.isdecimal() and int(value) > 2:
            return int(value)
    return None


def _value(option: Option, text: str | list[str]) -> Any:
    try:
        if isinstance(text, list):
            return [option.parse(one) for one in text]
        return option.parse(text)
    except ValueError as problem:
        raise SettingsError(f"--{option.flag} {text}: {problem}") from problem
