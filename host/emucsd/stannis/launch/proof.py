"""What the drives of a run counted: the proof that private samples stayed, kept in the record."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from emucsd.control import Control
from emucsd.errors import EmucsdError
from emucsd.stannis.data.location import parse
from emucsd.stannis.group.cluster import Cluster
from emucsd.stannis.launch.fleet import Fleet
from emucsd.stannis.launch.standing import Standing
from emucsd.stannis.privacy import Proof, Snapshot, watched


class Witness:
    """Before a run and after it. ``record`` is empty where nothing is private, or no drive takes part.

    :ivar proof: after ``watching`` was left
    """

    def __init__(self, fleet: Fleet, cluster: Cluster, standing: Standing) -> None:
        self._standing = standing
        self._private = private_namespaces(cluster)
        self._drives: dict[str, Control] = {node: fleet.control(node) for node in fleet.engines}
        self.proof: Proof | None = None
        self.problem = ""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """For the time of the run. What goes wrong with it never ends the run: the record says so."""
        if not self._drives or not any(self._private.values()):
            yield
            return
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(watched(self._drives))
            except EmucsdError as problem:
                self.problem = f"the drives could not be watched: {problem}"
            before = Snapshot.take(self._drives)
            try:
                yield
            finally:  # a run that failed has moved bytes as well
                self._conclude(before)

    def _conclude(self, before: Snapshot) -> None:
        try:
            after = Snapshot.take(self._drives, copies=not self.problem)
        except EmucsdError as problem:  # a drive may be what ended the run
            self.problem = f"the drives could not be asked afterwards: {problem}"
            return
        sent = {node: self._standing.nodes[node].sent for node in self._drives}
        self.proof = Proof.between(before, after, sent, private=self._private)

    @property
    def record(self) -> dict[str, Any]:
        """For the record."""
        if self.proof is None and self.problem:
            return {"verdict": "incomplete", "why": [self.problem]}
        if self.proof is None:
            return {"verdict": "nothing private", "why": [], "port0_bytes": 0}
        record = dict(self.proof.record)
        return {**record, "why": [*record["why"], self.problem]} if self.problem else record


def private_namespaces(cluster: Cluster) -> dict[str, list[int]]:
    """Node -> namespaces of its drive that the run takes for private."""
    found: dict[str, list[int]] = {}
    for place in cluster.pools:
        for node, location in place.at.items() if place.private else ():
            if nsid := parse(location).nsid:
                found.setdefault(node, []).append(nsid)
    return found
