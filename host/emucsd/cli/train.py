"""`emucsd train`: train a network on a host and the engines inside its drives."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from emucsd.cli.command import USAGE, Command, CommandError, Option, Result, Settings
from emucsd.cli.units import count, seconds, show_size, show_time, size

if TYPE_CHECKING:
    from emucsd.stannis.launch.request import Request

_PLAIN = ("loss", "optimizer", "lr", "epochs", "steps", "seed", "transform", "strategy", "on_damage")
_RENAMED = {"warmup": "warmup_epochs", "batch": "global_batch", "evaluate": "evaluate_every", "momentum": "momentum"}
_SWITCHES = ("sync_batchnorm", "retune", "allow_missing")


def _image(text: str) -> tuple[int, ...]:
    """`32` or `3x224x224`."""
    parts = text.lower().split("x")
    if not all(part.isdecimal() for part in parts) or len(parts) not in (1, 3):
        raise ValueError(f"{text!r} is no image size: give a side, like 32, or CxHxW, like 3x224x224")
    sides = tuple(int(part) for part in parts)
    return sides if len(sides) == 3 else (3, sides[0], sides[0])


def _numbers(text: str) -> tuple[float, ...]:
    """`30,60,80`."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{text!r}: give numbers, like 30,60,80") from None


def _cores(text: str) -> tuple[int, ...]:
    """`0`, `0,2`, `0-3`."""
    found: list[int] = []
    for part in text.split(","):
        low, _, high = part.partition("-")
        if not low.isdecimal() or (high and not high.isdecimal()):
            raise ValueError(f"{text!r}: give numbers of processors, like 0 or 0,2 or 0-3")
        found += range(int(low), int(high or low) + 1)
    return tuple(found)


def _argument(text: str) -> tuple[str, Any]:
    """`num_classes=10`: the value is JSON, or else text."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ValueError(f"{text!r}: give NAME=VALUE, like num_classes=10")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _for_node(text: str) -> tuple[str, int]:
    """`isp0=16`."""
    node, equals, value = text.partition("=")
    if not node or not equals or not value.isdecimal():
        raise ValueError(f"{text!r}: give NODE=NUMBER, like isp0=16")
    return node, int(value)


def _rate(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is no number") from None


# -- from the command line to a request ------------------------------------------------------------------------------


def request_of(settings: Settings) -> Request:
    """What the options ask for. :raises SpecError, InvalidArgument: options that don't go together"""
    from emucsd.stannis.launch.request import Request

    drives = tuple(word for word in (settings.drives or "").split(",") if word)
    return Request(
        _spec(settings),
        data=tuple(settings.data),
        private=tuple(settings.private),
        test=settings.test,
        engines=settings.engines or 0,
        processes=settings.processes or 0,
        drives=drives,
        private_share=settings.private_share,
        cpu_share=settings.cpu_share,
        engine_memory=settings.engine_memory,
        profile=settings.profile,
        drive_size=settings.drive_size,
        host_cores=settings.host_cores or (),
        engine_cores=settings.engine_cores or (),
        equal=settings.equal,
        checkpoint=settings.checkpoint or "",
        heartbeat_seconds=settings.silence,
    )


def _spec(settings: Settings) -> Any:
    from emucsd.stannis.spec import Spec

    if not settings.factory:
        raise CommandError("no network is named", "emucsd train module:function --data … --engines 2", USAGE)
    said = vars(settings)
    named: dict[str, Any] = {name: said[name] for name in _PLAIN if said[name] is not None}
    named |= {field: said[name] for name, field in _RENAMED.items() if said[name] is not None}
    named |= {name: True for name in _SWITCHES if said[name]}
    named |= {"image": settings.image} if settings.image else {}
    named |= {"checkpoint_every": settings.checkpoint_every} if settings.checkpoint_every else {}
    if settings.milestones:
        named |= {"decay": "milestones", "milestones": settings.milestones}
    elif settings.decay is not None:
        named["decay"] = settings.decay
    if settings.weight_decay is not None:
        named["weight_decay"] = settings.weight_decay
    batches, threads = dict(settings.batches), dict(settings.threads)
    return Spec(settings.factory, dict(settings.arg), batches=batches, threads=threads, **named)


# -- running ---------------------------------------------------------------------------------------------------------


def run(settings: Settings) -> Result:
    """Train, or with --dry-run tune and plan."""
    from emucsd.stannis.launch.errors import RunTaken
    from emucsd.stannis.launch.progress import display
    from emucsd.stannis.launch.train import How, train

    folder = Path(settings.out or f"runs/{time.strftime('%Y%m%d-%H%M%S')}")
    if settings.resume and not settings.out:
        raise CommandError("which run is to go on?", "name its folder: emucsd train --resume --out runs/…", USAGE)
    request = _resumed(folder) if settings.resume else request_of(settings)
    how = How(resume=settings.resume, dry_run=settings.dry_run, debug=settings.debug, more=_more(settings))
    shown = display(request.spec)
    try:
        record = train(request, folder, shown, how)
    except RunTaken as problem:
        raise CommandError(str(problem), code=USAGE) from problem
    finally:
        shown.close()
    if not settings.dry_run and not settings.no_plot:
        record["plot"] = _plot(record, folder)
    return {"folder": str(folder), "dry_run": settings.dry_run, **record}


def _resumed(folder: Path) -> Request:
    from emucsd.stannis.launch.request import Request

    try:
        return Request.from_json((folder / "request.json").read_text())
    except OSError as problem:
        raise CommandError(
            f"{folder}: {problem.strerror}; no run to go on with", "name its folder with --out"
        ) from None


def _more(settings: Settings) -> tuple[str, ...]:
    words = ["--no-cache"] if settings.no_cache else []
    words += ["--batches", settings.tune_batches] if settings.tune_batches else []
    words += ["--margin", str(settings.margin)] if settings.margin is not None else []
    words += ["--grain", str(settings.grain)] if settings.grain is not None else []
    return tuple(words)


def _plot(record: Result, folder: Path) -> str | None:
    from emucsd.stannis.launch.plot import plot

    return plot(record, folder)


def show(result: Result, console: Console) -> None:
    from emucsd.stannis.launch.progress import told

    training, ended = result["training"], result["ended"]
    if result["dry_run"]:
        console.print(
            "[dim]a dry run: nothing was trained; the plan is above, and in[/]", f"{result['folder']}/plan.json"
        )
        return
    table = Table("node", "kind", "images", "images/s", "waits", "joules")
    for column in table.columns[2:]:
        column.justify = "right"
    spent = training["energy"]["nodes"]
    for name, node in training["nodes"].items():
        table.add_row(
            name,
            node["kind"],
            f"{node['images']:,}",
            f"{node['images_per_second']:.1f}",
            f"{node['waiting_share']:.0%}",
            f"{spent.get(name, 0):,.0f}",
        )
    console.print(table)
    line = f"{ended['how']}: {training['steps']} steps, {training['images']:,} images in "
    line += f"{show_time(training['seconds'] * 1e9)}, {training['images_per_second']:.1f} images/s"
    console.print(escape(line))
    for epoch in training["epochs"][-1:]:
        console.print(escape(told({"event": "epoch", **epoch})))
    privacy = result["privacy"]
    if spaces := privacy.get("private_namespaces"):
        crossed = [show_size(privacy[f"port{port}_bytes"]) for port in (0, 1)]
        line = f"private samples: {privacy['verdict']}: of {spaces} namespaces {crossed[0]} crossed port 0 and "
        line += f"{crossed[1]} port 1; {privacy['watch_hits']} pieces were seen in the tunnel"
        console.print(escape("; ".join([line, *privacy["why"]])), soft_wrap=True)
    elif privacy.get("why"):
        console.print(escape("; ".join([f"private samples: {privacy['verdict']}", *privacy["why"]])), soft_wrap=True)
    if ended["how"] == "stopped":
        console.print(f"to go on: emucsd train --resume --out {escape(result['folder'])}", soft_wrap=True)
    console.print(f"record: {escape(result['folder'])}/record.json", soft_wrap=True)


_WHERE = (
    Option("--engines", "so many temporary drives with an engine each, besides this machine", None, count, metavar="N"),
    Option("--drives", "running drives by name (a,b), or a testbed's: lab, lab:0-3, 0-3", None, metavar="NAMES"),
    Option("--processes", "so many plain processes, without drives: to try a network", None, count, metavar="N"),
    Option("--cpu-share", "of a core of this machine that a core of an engine is worth (default: the profile's)", None,
           _rate, metavar="F"),
    Option("--engine-memory", "of each local engine (default: the profile's)", None, size),
    Option("--profile", "of temporary drives", "newport"),
    Option("--drive-size", "of temporary drives (default: what the samples need)", None),
    Option("--host-cores", "processors for the host's rank, like 0", None, _cores, metavar="CORES"),
    Option("--engine-cores", "processors for drives and engines, like 1", None, _cores, metavar="CORES"),
)  # fmt: skip
_DATA = (
    Option("--data", "public samples: a folder of class folders, a .tar, a .npz, ns:N; [NODE=]LOCATION; repeatable",
           None, metavar="LOC", many=True),
    Option("--private", "samples that stay where they are: ns:N (of each drive), or NODE=LOCATION; repeatable", None,
           metavar="LOC", many=True),
    Option("--private-share", "of --data's samples: the part that is private, spread over temporary drives", 0.0,
           _rate, metavar="F"),
    Option("--test", "samples to evaluate on", None, metavar="LOC"),
    Option("--on-damage", "a sample that can't be read: end the run, or skip it", None, choices=("fail", "skip")),
)  # fmt: skip
_TRAINING = (
    Option("--arg", "a keyword for the factory, like num_classes=10; repeatable", None, _argument, metavar="NAME=VALUE",
           many=True),
    Option("--image", "size of an image, 32 or 3x32x32 (default: 3x32x32)", None, _image, metavar="SIZE"),
    Option("--epochs", "passes over the samples (default: 1)", None, count),
    Option("--steps", "stop after so many", None, count),
    Option("--loss", "cross_entropy, or module:function", None),
    Option("--optimizer", "sgd, adam, or module:function", None),
    Option("--lr", "learning rate at a global batch of 256; it is scaled with the batch (default: 0.1)", None, _rate),
    Option("--momentum", "of sgd (default: 0.9)", None, _rate),
    Option("--weight-decay", "(default: 0.0001)", None, _rate),
    Option("--warmup", "epochs over which the learning rate climbs", None, _rate, metavar="EPOCHS"),
    Option("--decay", "of the learning rate", None, choices=("constant", "cosine")),
    Option("--milestones", "epochs at which it falls to a tenth, like 30,60", None, _numbers, metavar="EPOCHS"),
    Option("--transform", "standard (crop and flip), flip, none, or module:function", None),
    Option("--seed", "of weights, order and augmentation", None, int),
    Option("--sync-batchnorm", "batch norm over all ranks: equal to one process exactly, and slower", False),
    Option("--evaluate", "on the test samples, every so many epochs", None, count, metavar="EPOCHS"),
)  # fmt: skip
_PLANNING = (
    Option("--batch", "global batch (default: what the engines' best batches sum up to)", None, count),
    Option("--batches", "a node's batch, which is not tuned then: isp0=16; repeatable", None, _for_node,
           metavar="NODE=N", many=True),
    Option("--threads", "of torch on a node: host=1; repeatable (default: all its cores)", None, _for_node,
           metavar="NODE=N", many=True),
    Option("--strategy", "what fills ranks that have too few samples", None,
           choices=("auto", "public", "duplicate", "shorten")),
    Option("--tune-batches", "sizes that the tuner tries, like 8,16,32", None, metavar="N,N,…"),
    Option("--margin", "the tuner's: Algorithm 1's E", None, _rate, metavar="E"),
    Option("--grain", "the tuner's: Algorithm 1's C", None, _rate, metavar="C"),
    Option("--no-cache", "tune anew, whatever was measured before", False),
    Option("--equal", "equal batches on all ranks (plain data parallel), to compare with", False),
    Option("--retune", "let batches follow the engines' speeds while the run goes on", False),
    Option("--allow-missing", "go on without engines that the network does not fit", False),
    Option("--dry-run", "tune, print the plan, train nothing", False),
)  # fmt: skip
_RUN = (
    Option("--out", "the run's folder (default: runs/ and the time)", None, metavar="DIR"),
    Option("--resume", "go on with the run in --out, from its newest checkpoint", False),
    Option("--checkpoint", "where the host keeps checkpoints: a folder, or ns:N (default: in the run's folder)", None,
           metavar="LOC"),
    Option("--checkpoint-every", "steps (default: at each epoch's end)", None, count, metavar="STEPS"),
    Option("--silence", "seconds without a word after which a node is lost", 10.0, seconds, metavar="SECONDS"),
    Option("--no-plot", "draw nothing at the end", False),
)  # fmt: skip

COMMAND = Command(
    name="train",
    summary="train a network on this machine and the engines inside drives",
    details="""
        One rank runs on the host and one in each drive; batches are as large as each is fast, found by benchmark, so
        that nobody waits long. Private samples are trained on by the engine of the drive that they lie on, and leave
        it never: the record proves it from the drive's own counters. docs/stannis.md tells the rest.

        Ctrl-C keeps a checkpoint and stops; --resume goes on.
    """,
    run=run,
    show=show,
    options=(
        Option("factory", "module:function or path/file.py:function, which gives a torch.nn.Module", ""),
        *_WHERE,
        *_DATA,
        *_TRAINING,
        *_PLANNING,
        *_RUN,
    ),
    examples=(
        "emucsd train emucsd.stannis.models:small --data cifar10.tar --engines 2 --private-share 0.2",
        "emucsd train my_net.py:make --data images/train --test images/val --processes 2 --epochs 5",
        "emucsd train emucsd.stannis.models:mobilenet_v2 --arg num_classes=10 --data ns:1 --private ns:2 --drives a,b",
        "emucsd train my_net.py:make --data ns:1 --private isp0=ns:2 --drives testbed:0-3 --dry-run",
        "emucsd train --resume --out runs/20261120-101500",
    ),
)
