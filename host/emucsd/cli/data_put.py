"""`emucsd data put`: a data set onto one drive or several, in public and private parts."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from emucsd.cli.command import USAGE, Command, CommandError, Option, Result, Settings
from emucsd.cli.progress import bar
from emucsd.cli.units import show_size

if TYPE_CHECKING:
    from emucsd import Drive
    from emucsd.stannis.data.put import Put
    from emucsd.stannis.data.source import Source
    from emucsd.stannis.data.split import Part

HOST = "host"  # the node's name in pools


def drives_of(text: str) -> list[str]:
    """`a,b,c` -> names. :raises ValueError: none, or one twice"""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"{text!r}: give drives, each once, like disk0 or disk0,disk1,disk2")
    return names


def share(text: str) -> float:
    """`0.2`, `20%` -> 0.2. :raises ValueError: not 0 to 1"""
    value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    if not 0 <= value <= 1:
        raise ValueError(f"{text!r} is no share: 0 to 1, or 0% to 100%")
    return value


def ratio(text: str) -> list[float]:
    """`2:1:1` -> [2.0, 1.0, 1.0]. :raises ValueError: none"""
    values = [float(part) for part in text.split(":")]
    if min(values) < 0 or not sum(values):
        raise ValueError(f"{text!r} divides nothing: give one number for each drive, like 2:1:1")
    return values


@contextlib.contextmanager
def opened(drive: str, port: int = 0) -> Iterator[Drive]:
    """A drive's port, by its name, folder or node."""
    from emucsd import Drive

    options: dict[str, Any] = {} if drive.startswith("/dev/") else {"port": port}
    with Drive.open(drive, **options) as found:
        yield found


@contextlib.contextmanager
def _source(location: str) -> Iterator[tuple[Source, str]]:
    """The source, and what to say about its choice: of a set with train/ and test/ it is train/."""
    from emucsd.stannis.data.errors import SplitsFound
    from emucsd.stannis.data.source import open as open_source

    note = ""
    try:
        found = open_source(location)
    except SplitsFound as problem:
        if "train" not in problem.parts:
            raise
        others = [part for name, part in problem.parts.items() if name != "train"]
        note = f"of {', '.join(problem.parts)} these are train; {' '.join(others) or 'nothing'} stays where it is"
        found = open_source(problem.parts["train"])
    with found:
        yield found, note


def _parts(settings: Settings, source: Source) -> list[Part]:
    """:raises CommandError: options that don't go together"""
    from emucsd.stannis.data.split import split

    if settings.private and settings.private_share is not None:
        raise CommandError("--private makes all of it private, --private-share a part", "leave one of them out", USAGE)
    private = 1.0 if settings.private else settings.private_share or 0.0
    if settings.shares and len(settings.shares) != len(settings.drives):
        raise CommandError(
            f"--shares has {len(settings.shares)} numbers for {len(settings.drives)} drives", "one each: 2:1:1", USAGE
        )
    if settings.namespace is not None and 0 < private < 1:
        raise CommandError("--namespace takes one part a drive, public or private", "leave --private-share out", USAGE)
    return split(source, len(settings.drives), private, shares=settings.shares or (), copies=settings.copies,
                 seed=settings.seed)  # fmt: skip


def plan(settings: Settings) -> Result:
    """What would lie where; no drive is asked."""
    from emucsd.stannis.data.pack import Pack

    with _source(settings.source) as (source, note):
        found: Result = {"read": f"{source.count} samples from {source.location}", **({"note": note} if note else {})}
        for part in _parts(settings, source):
            drive, kind = settings.drives[part.drive], "private" if part.private else "public"
            pack = Pack(source, part.indices.tolist())
            found[f"put on {drive}, {kind}"] = f"{pack.count} samples, {show_size(pack.size)}"
        return found


def run(settings: Settings) -> Result:
    """Make the namespaces, write, read back, hand over."""
    from emucsd.stannis.data.pack import Pack
    from emucsd.stannis.data.put import put_all

    with contextlib.ExitStack() as stack:
        source, note = stack.enter_context(_source(settings.source))
        parts = _parts(settings, source)
        drives = [stack.enter_context(opened(name)) for name in settings.drives]
        total = 2 * sum(Pack(source, part.indices.tolist()).size for part in parts)
        advance = stack.enter_context(bar("writing and reading back", total))
        done = 0

        def told(count: int) -> None:
            nonlocal done
            done += count
            advance(done, f"{show_size(min(done, total))} of {show_size(total)}")

        written = put_all(drives, source, parts, namespace=settings.namespace, force=settings.force, progress=told)
        found: Result = {
            "source": source.location,
            "note": note,
            "count": source.count,
            "classes": list(source.classes),
            "parts": [
                {"drive": settings.drives[part.drive], **one.to_json()}
                for part, one in zip(parts, written, strict=True)
            ],
            "pools": pools(settings.drives, parts, written, copies=settings.copies),
        }
    if settings.out:
        kept = {"pools": found["pools"], "classes": found["classes"]}
        Path(settings.out).write_text(json.dumps(kept, indent=2) + "\n")
        found["out"] = settings.out
    return found


def pools(drives: Sequence[str], parts: Sequence[Part], written: Sequence[Put], *, copies: bool) -> list[Result]:
    """As ``emucsd.stannis.plan.Pool`` has them: a pool's name, and node -> location of those that can read it.

    A node in a drive has the drive's name; on the host ``ns:2@1`` is namespace 2 of the second drive.
    """
    nodes = [Path(drive).name for drive in drives]
    found: dict[str, Result] = {}
    for part, put in zip(parts, written, strict=True):
        node = nodes[part.drive]
        name = f"private-{node}" if part.private else "public" if copies or len(drives) == 1 else f"public-{node}"
        pool = found.setdefault(
            name,
            {"name": name, "private": part.private, "count": put.count, "sample_bytes": put.sample_bytes, "at": {}},
        )
        if not part.private:
            pool["at"].setdefault(HOST, f"{put.location}@{part.drive}")
        pool["at"][node] = put.location
    return list(found.values())


def show(result: Result, console: Console) -> None:
    sheet = Table("drive", "location", "", "samples", "classes", "size", "read by")
    for part in result["parts"]:
        kind, readers = ("private", "its engine") if part["private"] else ("public", "the host and its engine")
        cells = (kind, str(part["count"]), str(len(part["classes"])), show_size(part["size"]), readers)
        sheet.add_row(escape(part["drive"]), part["location"], *cells)
    console.print(sheet)
    rooms = [f"{part['drive']}: {part['room']}" for part in result["parts"] if part["room"]]
    for line in filter(None, [result["note"], *rooms]):
        console.print(escape(line), soft_wrap=True)
    if "out" in result:
        console.print(f"pools are in {escape(result['out'])}", soft_wrap=True)
    drives = ",".join(dict.fromkeys(shlex.quote(part["drive"]) for part in result["parts"]))
    words = f"--drives {drives} {shlex.join(_words(result))}"
    console.print(f"next: emucsd train FACTORY {escape(words)}", soft_wrap=True)


def _words(result: Result) -> list[str]:
    """Of `emucsd train`, for these samples: ns:N is each drive's own where N is the same for all."""
    words = []
    for option, private in (("--data", False), ("--private", True)):
        parts = [part for part in result["parts"] if part["private"] is private]
        same = len({part["nsid"] for part in parts}) == 1
        shown = [part["location"] if same else f"{part['drive']}={part['location']}" for part in parts]
        words += [word for location in dict.fromkeys(shown) for word in (option, location)]
    return words


COMMAND = Command(
    name="put",
    summary="put a data set on one drive, or deal it out to several, in public and private parts",
    details="""
        Each part is a new namespace that holds a tar of its samples: written over the host's port, read back, compared.
        A public one is attached to the host and to the drive's own engine, a private one to the engine alone: the host
        then neither sees nor reads it any more. Classes are spread evenly. Of a set with train/ and test/ it takes
        train/. A new drive has one namespace over all of its capacity; while that is blank it makes way by itself.
    """,
    run=run,
    show=show,
    plan=plan,
    options=(
        Option("drives", "drives, with commas: names, runtime folders, or nodes of Linux's driver (/dev/nvme0)", None,
               drives_of),
        Option("source", "a folder of class folders, a .tar, '*.tar', x.tar/train, a .npz or .pt of uint8 images"),
        Option("--private", "all of it is private", False),
        Option("--private-share", "this share of the samples is private, each on one drive, like 0.2", None, share,
               metavar="SHARE"),
        Option("--shares", "what each drive gets, in proportion (default: equal parts)", None, ratio, metavar="2:1:1"),
        Option("--copies", "every drive gets all public samples, not a part of them", False),
        Option("--namespace", "write to this namespace, not to a new one", None, int, metavar="N"),
        Option("--force", "with --namespace: overwrite what it holds", False),
        Option("--seed", "of which sample goes where", 0, int),
        Option("--out", "write the pools, as a training run wants them, to this file", "", metavar="JSON"),
    ),
    examples=(
        "emucsd data put disk0,disk1,disk2 cifar10.tar --private-share 0.2",
        "emucsd data put disk0 /data/train --private",
        "emucsd data put disk0,disk1 'imagenet-*.tar' --shares 3:1 --dry-run",
    ),
)  # fmt: skip
