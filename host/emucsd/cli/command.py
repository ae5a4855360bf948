"""What a command is: one row an option, from which flag, help, default, checking and the dry run's JSON all come."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console

Settings = argparse.Namespace
Result = dict[str, Any]
Parser = Callable[[str], Any]

OK, FAILED, USAGE, DIFFERENT, INTERRUPTED = 0, 1, 2, 3, 130
EXIT_CODES = (
    f"exit codes: {OK} done, {FAILED} failed (the error says why), {USAGE} wrong usage, "
    f"{DIFFERENT} data or answers differ from what they must be, {INTERRUPTED} interrupted"
)


class CommandError(Exception):
    """A command can't go on: what happened, what to do next, and the exit code."""

    def __init__(self, message: str, hint: str = "", code: int = FAILED) -> None:
        super().__init__(message)
        self.hint = hint
        self.code = code


@dataclass(frozen=True)
class Option:
    """One option. A name without dashes is positional; a positional with a default may be left out.

    ``parse`` turns the text into a value and raises ValueError with a sentence that says what is wanted.
    """

    name: str
    help: str
    default: Any = None
    parse: Parser = str
    choices: tuple[str, ...] = ()
    metavar: str = ""
    many: bool = False
    rest: bool = False  # a positional that takes all that follows, options too

    @property
    def positional(self) -> bool:
        return not self.name.startswith("-")

    @property
    def key(self) -> str:
        """Where the value lies in Settings, and its key in JSON."""
        return self.name.lstrip("-").replace("-", "_")

    def add(self, parser: argparse.ArgumentParser) -> None:
        """Make the flag. :raises TypeError: a switch whose default is true (name the opposite instead)."""
        if self.default is False:
            parser.add_argument(self.name, action="store_true", help=self.help)
            return
        if self.default is True:
            raise TypeError(f"{self.name}: a switch is off unless it is given")
        keywords: dict[str, Any] = {"help": self._help(), "default": self.default, "type": _typed(self.parse)}
        if self.choices:
            keywords["choices"] = self.choices
        if self.metavar and not (self.choices and self.positional):
            keywords["metavar"] = self.metavar
        if self.rest:
            parser.add_argument(self.name, nargs=argparse.REMAINDER, help=self.help)
            return
        if self.positional:
            keywords["nargs"] = "*" if self.many else ("?" if self.default is not None else None)
        elif self.many:
            keywords |= {"action": "append", "default": []}
        parser.add_argument(self.name, **keywords)

    def _help(self) -> str:
        shown = self.default not in (None, "", ())
        return f"{self.help} (default: {self.default})" if shown else self.help


def _typed(parse: Parser) -> Parser:
    def convert(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as exc:
            raise argparse.ArgumentTypeError(str(exc)) from exc

    return convert


JSON = Option("--json", "print the result as one JSON object on standard output", False)
DEBUG = Option("--debug", "show the Python traceback when something fails", False)
DRY_RUN = Option("--dry-run", "print what would be done, and do nothing", False)


@dataclass(frozen=True)
class Command:
    """A command, or a group of them when it has children.

    ``run`` does the work and returns what ``--json`` prints; ``show`` prints the same for people.
    ``plan``, for commands that act, returns what they would do: it is what ``--dry-run`` prints.
    """

    name: str
    summary: str
    run: Callable[[Settings], Result] | None = None
    show: Callable[[Result, Console], None] | None = None
    plan: Callable[[Settings], Result] | None = None
    options: tuple[Option, ...] = ()
    examples: tuple[str, ...] = ()
    children: tuple[Command, ...] = ()
    details: str = ""

    def all_options(self) -> Iterator[Option]:
        yield from self.options
        if self.plan:
            yield DRY_RUN
        yield JSON
        yield DEBUG

    def add(self, actions: Any) -> None:
        """Make this command's parser under argparse's subparsers action."""
        parser = actions.add_parser(
            self.name,
            help=self.summary,
            description=_description(self),
            epilog=_epilog(self.examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if self.children:
            inner = parser.add_subparsers(metavar="ACTION", required=True)
            for child in self.children:
                child.add(inner)
            return
        for option in self.all_options():
            option.add(parser)
        parser.set_defaults(command=self)


def _description(command: Command) -> str:
    text = command.summary[0].upper() + command.summary[1:] + "."
    return "\n\n".join([text, *filter(None, [textwrap.dedent(command.details).strip()])])


def _epilog(examples: tuple[str, ...]) -> str:
    lines = ["examples:", *(f"  {line}" for line in examples), ""] if examples else []
    return "\n".join([*lines, *textwrap.wrap(EXIT_CODES, 100)])
