"""One training run, from a request to a record: what `emucsd train` does, for programs.

record = train(Request(Spec("my_net.py:make", epochs=2), data=("cifar10.tar",), engines=2), Path("run"))
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emucsd.errors import EmucsdError
from emucsd.stannis.data.inspect import inspect
from emucsd.stannis.group.cluster import Cluster
from emucsd.stannis.launch import places, record
from emucsd.stannis.launch.errors import RunTaken
from emucsd.stannis.launch.fleet import Fleet, open_fleet
from emucsd.stannis.launch.progress import Display
from emucsd.stannis.launch.proof import Witness
from emucsd.stannis.launch.request import Request
from emucsd.stannis.launch.run import Run
from emucsd.stannis.launch.ship import shipped
from emucsd.stannis.launch.standing import Standing
from emucsd.stannis.spec import Spec

CODE = ("factory", "loss", "optimizer", "transform")  # fields of a Spec that may name the user's code


@dataclass(frozen=True)
class How:
    """How a request is carried out.

    :ivar resume: go on from the newest checkpoint of the folder
    :ivar dry_run: tune, plan, and train nothing
    :ivar debug: errors of the nodes carry tracebacks
    :ivar more: further words for the coordinator
    """

    resume: bool = False
    dry_run: bool = False
    debug: bool = False
    more: tuple[str, ...] = ()

    def words(self, request: Request) -> list[str]:
        """Of the coordinator's command line."""
        words = ["--silence", f"{request.heartbeat_seconds:g}", *self.more]
        switches = {"--resume": self.resume, "--dry-run": self.dry_run, "--debug": self.debug, "--equal": request.equal}
        return [*words, *(word for word, on in switches.items() if on)]


def train(
    request: Request,
    folder: Path,
    display: Display,
    how: How = How(),
    *,
    watch: Callable[[Fleet, Run], None] = lambda fleet, run: None,
) -> dict[str, Any]:
    """Carry out a request. The run folder holds request, plans, events, logs, checkpoints and the record afterwards.

    :param watch: is given the fleet and the run before it starts: for whoever wants to disturb it
    :returns: what ``record.json`` holds
    :raises RunFailed: the run ended without a result; the record says how
    :raises PrivacyBroken: it is done, and private bytes have left their drive; the record says which
    :raises RunTaken: the folder is another run's, or none's where one is to be resumed
    :raises EmucsdError: drives, engines or samples can't be had
    """
    prepare(request, folder, how)
    begun = time.time()
    if request.engines and request.drive_size is None:
        from emucsd.stannis.launch.placing import needed_bytes

        request = dataclasses.replace(request, drive_size=str(needed_bytes(request)))
    called, files = shipped(getattr(request.spec, name) for name in CODE)
    changes: dict[str, Any] = {name: called[getattr(request.spec, name)] for name in CODE}
    spec = dataclasses.replace(request.spec, threads=threads(request), **changes)
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="emucsd-")))  # short: sockets lie in it
        fleet = stack.enter_context(open_fleet(request, work, folder.absolute() / "checkpoints", display.note))
        cluster = _cluster(request, fleet, display)
        standing = Standing(fleet.kinds, fleet.profiles)
        saver = _Saver(folder, standing, display)
        run = Run(fleet.nodes, spec, cluster, folder, standing, options=how.words(request), files=files, tell=saver)
        witness = Witness(fleet, cluster, standing)
        watch(fleet, run)
        failure: EmucsdError | None = None
        with witness.watching():
            try:
                run.run()
            except EmucsdError as problem:
                failure = problem
        found = record.make(request, fleet, cluster, standing, run, begun, failure, witness.record)
        record.write(folder / ("dry-run.json" if how.dry_run else "record.json"), found)
        if failure is not None:
            raise failure
        if witness.proof is not None:
            witness.proof.demand()
        return found


def threads(request: Request) -> dict[str, int]:
    """As asked for; plain processes share this computer's processors evenly."""
    cores = max(len(request.host_cores or os.sched_getaffinity(0)) // max(request.processes, 1), 1)
    return {**{f"process{number}": cores for number in range(request.processes)}, **request.spec.threads}


def prepare(request: Request, folder: Path, how: How) -> None:
    """The run folder. :raises RunTaken: it can't be this run's"""
    there = folder / "request.json"
    if how.resume:
        if not there.exists():
            raise RunTaken(f"{folder} holds no run to go on with; leave out --resume, or name its folder with --out")
        return
    if there.exists() and not how.dry_run and (folder / "checkpoints").exists():
        raise RunTaken(f"{folder} holds a run; go on with it (--resume), or name another folder (--out)")
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("events.jsonl", "record.json"):
        (folder / name).unlink(missing_ok=True)
    there.write_text(request.to_json() + "\n")


def _cluster(request: Request, fleet: Fleet, display: Display) -> Cluster:
    """Where samples are, once they are there."""

    def digest(location: str) -> str:
        if fleet.embedded is None:
            return location
        return inspect(location).digest or location

    with fleet.disks():
        data, private = request.data, request.private
        if request.engines:
            from emucsd.stannis.launch.placing import put_samples

            data, private = put_samples(request, fleet, display.note)
        pools = (*places.public(fleet.where, data, digest), *places.private(fleet.where, private))
        test = places.public(fleet.where, [request.test], digest, "test") if request.test else ()
    return Cluster(fleet.members, pools, test)


class _Saver:
    """What each event changes in the run folder, then the display."""

    def __init__(self, folder: Path, standing: Standing, display: Display) -> None:
        self._folder, self._standing, self._display = folder, standing, display

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] == "plan":
            plans: Sequence[Any] = self._standing.plans
            (self._folder / "plan.json").write_text(json.dumps(plans, indent=2) + "\n")
        self._display.event(event, self._standing)


def as_spec(request: Request, **changes: Any) -> Request:
    """The same request with fields of its Spec changed."""
    changed: Spec = dataclasses.replace(request.spec, **changes)
    return dataclasses.replace(request, spec=changed)
