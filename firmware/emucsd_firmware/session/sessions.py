"""Open sessions: the control thread's side. The data plane is out of compiled code meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from emucsd_firmware.errors import BudgetExceeded, DramExceeded, GraphError
from emucsd_firmware.lookup.tables import Tables
from emucsd_firmware.mlp.engine import X
from emucsd_firmware.mlp.graph import Activation, Graph, Interaction, Layer
from emucsd_firmware.mlp.mapping import Mapping
from emucsd_firmware.mlp.program import ProgramMemory
from emucsd_firmware.profile import Profile
from emucsd_firmware.session.plan import layer_infos, plan
from emucsd_firmware.session.state import FREE, SessionBuffers, SessionsMemory, anonymous
from emucsd_wire import rm
from emucsd_wire.nvme import Status

GROUP = 64  # samples that are computed together: weights come once from memory for all of them
MAX_BUFFERS = 1 << 30  # bytes of rows and outputs of all batches in flight
MAX_LAYER_BYTES = 1 << 32  # RM_WEIGHTS' offset has 32 bits
_GENERATIONS = 1 << 27  # ids are generation * MAX_SESSIONS + slot, in 32 bits, as the host sees them
_KNOWN_FLAGS = sum(rm.RmFlag)
_STAGES = ("embedding", "bottom", "top")


class SessionRefused(Exception):
    """The host asked for what can't be: ``status`` is the answer."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Open(NamedTuple):
    """A session that can be opened, or is: what it keeps alive, beside its records."""

    model: rm.RmModel
    graph: Graph
    mapping: Mapping
    program: ProgramMemory
    bottom: Any  # Program record of the stages that need no sums
    buffers: SessionBuffers
    scratch: Any
    slots: tuple[int, ...]  # of its tables
    means: tuple[bool, ...]


class Sessions:
    """Opens and forgets the sessions of one drive.

    :raises SessionRefused: from every method that takes a host's word: the reason and the status that answers it
    """

    def __init__(self, memory: SessionsMemory, tables: Tables, profile: Profile) -> None:
        self.memory = memory
        self.records = memory.sessions
        self.tables = tables
        self.profile = profile
        self._open: dict[int, Open] = {}

    # ---- opening ----

    def prepare(self, port: int, model: rm.RmModel, layers: Sequence[rm.RmLayer], tables: Sequence[rm.RmTable]) -> Open:
        """All of opening a session that takes long, and needs nothing of the data plane's."""
        self._check(model, layers, tables)
        slots = [self._table(port, table.handle) for table in tables]
        graph = self._graph(model, layers, slots)
        if len(self._open) == rm.MAX_SESSIONS:
            raise SessionRefused(Status.RM_SESSIONS_FULL, f"{rm.MAX_SESSIONS} sessions are open; close one")
        means = tuple(table.pooling == rm.Pooling.MEAN for table in tables)
        return self._make(model, graph, self._mapping(model, graph, layers, slots), tuple(slots), means)

    def open(self, port: int, made: Open, registers: int) -> int:
        """Open a session that was prepared.

        :param registers: address of the port's RmRegisters[MAX_SESSIONS]
        :returns: its id
        """
        slot = int(np.flatnonzero(self.records["id"] == 0)[0])
        self._fill(slot, port, made, registers + slot * rm.RM_REGISTERS.size)
        self._open[slot] = made
        for table in made.slots:
            self.tables.records[table]["active"] += 1  # it can't be closed, nor its slot be used again
        return int(self.records[slot]["id"])

    def _check(self, model: rm.RmModel, layers: Sequence[rm.RmLayer], tables: Sequence[rm.RmTable]) -> None:
        """What can be said of a model without its tables."""

        def demand(fits: bool, reason: str, status: Status = Status.RM_MODEL) -> None:
            if not fits:
                raise SessionRefused(status, reason)

        demand(
            model.version == rm.RM_VERSION and not model.flags & ~_KNOWN_FLAGS,
            f"version {model.version}, flags {model.flags:#x}; this drive knows {rm.RM_VERSION} and {_KNOWN_FLAGS:#x}",
            Status.INVALID_FIELD,
        )
        demand(
            model.interaction in set(rm.Interaction) and model.budget in set(rm.Budget),
            f"interaction {model.interaction}, budget {model.budget}",
        )
        demand(1 <= model.depth <= rm.MAX_DEPTH, f"depth {model.depth}; use 1 to {rm.MAX_DEPTH}")
        demand(1 <= model.samples <= rm.MAX_SAMPLES, f"{model.samples} samples; use 1 to {rm.MAX_SAMPLES}")
        demand(1 <= len(tables) <= rm.MAX_SESSION_TABLES, f"{len(tables)} tables; use 1 to {rm.MAX_SESSION_TABLES}")
        demand(all(table.pooling in set(rm.Pooling) for table in tables), "a pooling that is neither sum nor mean")
        demand(len(layers) <= rm.MAX_LAYERS, f"{len(layers)} layers; use at most {rm.MAX_LAYERS}")
        groups = [rm.LayerGroup.BOTTOM] * model.bottom + [rm.LayerGroup.TOP] * model.top
        demand([layer.group for layer in layers] == groups, "layers come bottom first, then top")
        demand(all(layer.activation in set(rm.Activation) for layer in layers), "an activation that is not known")
        sizes = [rm.weight_bytes(layer.inputs, layer.outputs) for layer in layers]
        demand(max(sizes, default=0) <= MAX_LAYER_BYTES, f"a layer of {max(sizes, default=0)} bytes")
        if model.flags & rm.RmFlag.NO_MLP:
            plain = not layers and not model.dense and model.interaction == rm.Interaction.CAT
            demand(plain, "NO_MLP with layers, dense inputs or a dot interaction")
        else:
            demand(model.top > 0, "no top layers; give one, or NO_MLP")

    def _table(self, port: int, handle: int) -> int:
        """The slot of one of the port's tables."""
        records = self.tables.records
        found = np.flatnonzero((records["handle"] == handle) & (records["port"] == port))
        if handle == 0 or not len(found):
            raise SessionRefused(Status.LOOKUP_NO_TABLE, f"port {port} has no open table {handle:#x}")
        return int(found[0])

    def _graph(self, model: rm.RmModel, layers: Sequence[rm.RmLayer], slots: Sequence[int]) -> Graph:
        made = [Layer(layer.inputs, layer.outputs, Activation(layer.activation)) for layer in layers]
        try:
            graph = Graph(
                dense=model.dense,
                bottom=tuple(made[: model.bottom]),
                dims=tuple(int(self.tables.records[slot]["dim"]) for slot in slots),
                interaction=Interaction(model.interaction),
                top=tuple(made[model.bottom :]),
            )
        except GraphError as problem:
            raise SessionRefused(Status.RM_MODEL, str(problem)) from problem
        if 4 * model.samples * graph.outputs > rm.MAX_RM_PAYLOAD:
            reason = f"{model.samples} samples of {graph.outputs} outputs; RM_READ moves {rm.MAX_RM_PAYLOAD} bytes"
            raise SessionRefused(Status.RM_MODEL, reason)
        return graph

    def _mapping(self, model: rm.RmModel, graph: Graph, layers: Sequence[rm.RmLayer], slots: Sequence[int]) -> Mapping:
        row_bytes = [int(self.tables.records[slot]["row_bytes"]) for slot in slots]
        try:
            made = plan(self.profile, model, graph, layers, row_bytes)
        except GraphError as problem:
            raise SessionRefused(Status.RM_MODEL, str(problem)) from problem
        except BudgetExceeded as problem:
            raise SessionRefused(Status.RM_BUDGET, str(problem)) from problem
        except DramExceeded as problem:
            raise SessionRefused(Status.RM_DRAM, str(problem)) from problem
        others = sum(other.mapping.dram_bytes for other in self._open.values())
        if made.dram_bytes + others > made.dram_total:
            reason = f"{made.dram_bytes} bytes of weights beside {others} of others; the drive has {made.dram_total}"
            raise SessionRefused(Status.RM_DRAM, reason)
        return made

    def _make(
        self, model: rm.RmModel, graph: Graph, mapped: Mapping, slots: tuple[int, ...], means: tuple[bool, ...]
    ) -> Open:
        depth = model.depth if model.flags & rm.RmFlag.PIPELINE else 1
        buffers = depth * model.samples * 4 * (graph.width + graph.outputs)
        if buffers > MAX_BUFFERS:
            reason = f"{buffers} bytes of rows and outputs in flight, {MAX_BUFFERS} are there; use fewer samples"
            raise SessionRefused(Status.RM_DRAM, reason)
        try:
            program = ProgramMemory(graph)
            group = min(GROUP, model.samples)
            scratch = anonymous(program.sizes(group).scratch)
            memory = SessionBuffers(depth, model.samples, program.x_stride, 4 * graph.outputs, len(slots))
        except (MemoryError, OSError) as problem:
            raise SessionRefused(Status.RM_DRAM, f"this machine has no memory for it: {problem}") from problem
        bottom = program.record.copy()
        # stages that put something into X, and then those that take from it
        bottom["count"] = int(np.flatnonzero(program.stages["source"] == X)[0])
        return Open(model, graph, mapped, program, bottom, memory, scratch, slots, means)

    def _fill(self, slot: int, port: int, made: Open, registers: int) -> None:
        record, model, count = self.records[slot], made.model, len(made.slots)
        generation = int(record["generation"]) % (_GENERATIONS - 1) + 1
        values: dict[str, int] = {
            "id": generation * rm.MAX_SESSIONS + slot,
            "generation": generation,
            "port": port,
            "tables": count,
            "grain": int(bool(model.flags & rm.RmFlag.PAGE_GRAIN)),
            "dense": model.dense,
            "samples": model.samples,
            "depth": made.buffers.depth,
            "minibatch": made.mapping.minibatch,
            "out": made.graph.outputs,
            "stride": made.program.x_stride,
            "group": min(GROUP, model.samples),
            "program": made.program.address,
            "bottom": made.bottom.ctypes.data,
            "bottom_stages": int(made.bottom["count"][0]),
            "registers": registers,
        }
        self.records[slot] = np.zeros((), self.records.dtype)
        for name, value in values.items():
            record[name] = value
        for name in (*_STAGES, "tail"):
            record[f"{name}_times"] = getattr(made.mapping, f"{name}_ns").ctypes.data
        record["run"]["scratch"] = made.scratch.ctypes.data
        record["slots"][:count] = made.slots
        record["columns"][:count] = [made.program.column(table) for table in range(count)]
        record["means"][:count] = made.means
        made.buffers.fill(self.memory.batches[slot * rm.MAX_DEPTH : (slot + 1) * rm.MAX_DEPTH])
        cell = np.zeros(1, rm.RM_REGISTERS.dtype)
        cell["session"] = record["id"]
        self.memory.store(registers, cell)

    # ---- later ----

    def slot(self, port: int, session: int) -> int:
        """The slot of one of the port's sessions."""
        slot = session % rm.MAX_SESSIONS
        if slot not in self._open or (self.records[slot]["id"], self.records[slot]["port"]) != (session, port):
            raise SessionRefused(Status.RM_NO_SESSION, f"port {port} has no open session {session:#x}")
        return slot

    def of_port(self, port: int) -> list[int]:
        """Slots of a port's sessions."""
        return [slot for slot in self._open if self.records[slot]["port"] == port]

    def of_namespace(self, nsid: int, port: int | None) -> list[int]:
        """Slots of the sessions (of a port, or of both) that read a table of a namespace."""
        nsids = self.tables.records["nsid"]
        return [
            slot
            for slot, made in self._open.items()
            if port in (None, int(self.records[slot]["port"])) and any(nsids[table] == nsid for table in made.slots)
        ]

    def forget(self, slot: int) -> None:
        """Let go of a session's memory and tables. Its batches must have been ended in the data plane's records."""
        made = self._open.pop(slot)
        for table in made.slots:
            self.tables.records[table]["active"] -= 1

    # ---- what is told ----

    def info(self, port: int, session: int) -> bytes:
        """RM_INFO's data."""
        slot = self.slot(port, session)
        made, record = self._open[slot], self.records[slot]
        model, mapped = made.model, made.mapping
        stages, used, total = mapped.stage_ns, mapped.resources, mapped.budget
        data = rm.RM_INFO.pack(
            rm.RmInfo(
                version=rm.RM_VERSION,
                flags=model.flags,
                interaction=model.interaction,
                bottom=model.bottom,
                top=model.top,
                depth=int(record["depth"]),
                tables=model.tables,
                budget=int(rm.Budget[mapped.fpga]),
                dense=model.dense,
                out=made.graph.outputs,
                samples=model.samples,
                layers=len(mapped.layers),
                minibatch=mapped.minibatch,
                clock_mhz=mapped.clock_mhz,
                ii=mapped.ii,
                in_flight=self._in_flight(slot),
                lookups_ns=stages["lookups"],
                embedding_ns=stages["embedding"],
                bottom_ns=stages["bottom"],
                top_ns=stages["top"],
                lut=used.lut,
                lut_total=total.lut,
                ff=used.ff,
                ff_total=total.ff,
                bram=used.bram,
                bram_total=total.bram,
                dsp=used.dsp,
                dsp_total=total.dsp,
                dram=mapped.dram_bytes,
                dram_total=mapped.dram_total,
                dram_traffic=mapped.dram_traffic,
                weights=mapped.weight_bytes,
                accepted=int(record["accepted"]),
                ready=int(record["ended"]),
                failed=int(record["failed"]),
                inferred=int(record["inferred"]),
                lookups=int(record["lookups"]),
                embedding_busy_ns=int(record["embedding_busy"]),
                bottom_busy_ns=int(record["bottom_busy"]),
                top_busy_ns=int(record["top_busy"]),
                stall_ns=int(record["stall"]),
                reserved=bytes(44),
            )
        )
        return (data + b"".join(map(rm.RM_LAYER_INFO.pack, layer_infos(mapped)))).ljust(rm.RM_INFO_BYTES, b"\0")

    def _in_flight(self, slot: int) -> int:
        states = self.memory.batches["state"][slot * rm.MAX_DEPTH : (slot + 1) * rm.MAX_DEPTH]
        return int(np.count_nonzero(states != FREE))

    def _told(self) -> Iterator[dict[str, Any]]:
        for slot in sorted(self._open):
            record = self.records[slot]
            names = ("accepted", "ended", "failed", "inferred", "lookups")
            busy = {name: int(record[f"{name}_busy"]) for name in _STAGES}
            yield {
                "id": int(record["id"]),
                "port": int(record["port"]),
                "tables": int(record["tables"]),
                "minibatch": int(record["minibatch"]),
                "depth": int(record["depth"]),
                "in_flight": self._in_flight(slot),
                "under_way": int(record["count"]),
                **{name: int(record[name]) for name in names},
                "busy_ns": busy,
                "stall_ns": int(record["stall"]),
            }

    def snapshot(self) -> dict[str, Any]:
        """For ``stats``: plain values. Read while the data plane runs on."""
        record = self.memory.record
        queues = {name: int(record[name]) for name in ("flying", "backlog", "slices")}
        return {**queues, "sessions": list(self._told())}
