"""Features (Base 5.1.25): current, default and saved values, and what follows from setting one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from emucsd_firmware.nvme import interrupts
from emucsd_firmware.nvme.events import CONFIGURABLE
from emucsd_firmware.nvme.identify import KEEP_ALIVE_UNIT, WARNING_KELVIN
from emucsd_firmware.nvme.queues import IO_QUEUES, VECTORS
from emucsd_firmware.nvme.request import Refused, Request
from emucsd_wire import features as wire
from emucsd_wire.features import Capability, Feature, Select
from emucsd_wire.logs import FeatureScope
from emucsd_wire.nvme import NSID_ALL, Status
from emucsd_wire.registers import Bits, Word

if TYPE_CHECKING:
    from emucsd_firmware.controller import Controller

OVER, UNDER = 0, 1  # indexes of the composite temperature's thresholds
MS = 1_000_000
_ALL_SENSORS = 15
_DEALLOCATED_ERROR = 1 << 16  # DULBE of Error Recovery: not offered (NSFEAT bit 2)
_KEEP_ALIVE_MS = KEEP_ALIVE_UNIT * 100


class SetDword(Word):
    """CDW10 of Set Features."""

    fid = Bits(7, 0)
    sv = Bits(31)


class GetDword(Word):
    """CDW10 of Get Features."""

    fid = Bits(7, 0)
    sel = Bits(10, 8)


class Kind(NamedTuple):
    """What a feature is. ``mask``: bits of CDW11 that are kept; ``size``: bytes of its data structure."""

    scope: FeatureScope
    saveable: bool = False
    mask: int = 0xFFFF_FFFF
    default: int = 0
    size: int = 0

    @property
    def per_namespace(self) -> bool:
        return self.scope == FeatureScope.NAMESPACE

    @property
    def capabilities(self) -> int:
        per_namespace = Capability.NAMESPACE_SPECIFIC if self.per_namespace else 0
        return Capability.CHANGEABLE | per_namespace | (Capability.SAVEABLE if self.saveable else 0)


_HERE, _SPACE, _ALL = FeatureScope.CONTROLLER, FeatureScope.NAMESPACE, FeatureScope.SUBSYSTEM

KINDS: dict[int, Kind] = {
    Feature.ARBITRATION: Kind(_HERE, saveable=True, mask=0xFFFF_FF07, default=7),
    Feature.POWER_MANAGEMENT: Kind(_HERE, saveable=True, mask=0xFF),
    Feature.TEMPERATURE_THRESHOLD: Kind(_HERE, saveable=True, mask=0xFFFF),
    Feature.ERROR_RECOVERY: Kind(_SPACE, saveable=True, mask=0xFFFF),
    Feature.VOLATILE_WRITE_CACHE: Kind(_HERE, saveable=True, mask=1, default=1),
    Feature.NUMBER_OF_QUEUES: Kind(_HERE, default=wire.Queues.of(nsq=IO_QUEUES - 1, ncq=IO_QUEUES - 1)),
    Feature.INTERRUPT_COALESCING: Kind(_HERE, saveable=True, mask=0xFFFF),
    Feature.INTERRUPT_VECTOR: Kind(_HERE, mask=0x1_FFFF),
    Feature.WRITE_ATOMICITY: Kind(_HERE, saveable=True, mask=1),
    Feature.ASYNC_EVENTS: Kind(_HERE, mask=CONFIGURABLE),
    Feature.TIMESTAMP: Kind(_HERE, size=wire.TIMESTAMP.size),
    Feature.KEEP_ALIVE: Kind(_HERE),
    Feature.HOST_BEHAVIOR: Kind(_HERE, size=wire.HOST_BEHAVIOR.size),
    Feature.SANITIZE_CONFIG: Kind(_ALL, saveable=True, mask=1),
    Feature.SOFTWARE_PROGRESS: Kind(_HERE, saveable=True, mask=0xFF),
    Feature.HOST_IDENTIFIER: Kind(_HERE, size=16),
}


class Features:
    """One controller's features."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._subsystem = controller.subsystem
        self._values: dict[tuple[int, int], int] = {}
        self.reset()

    def reset(self) -> None:
        """Controller reset: saved values where there are some, else defaults; data structures are cleared."""
        self._values.clear()
        self.host_behavior = bytes(wire.HOST_BEHAVIOR.size)
        self.host_identifier = bytes(16)
        self._clock_base, self._clock_set, self._clock_origin = 0, self._subsystem.now(), 0

    @property
    def has_write_cache(self) -> bool:
        """Whether the drive has a volatile write cache."""
        return self._subsystem.drive.profile.buffer.pages > 0

    @property
    def write_cache(self) -> bool:
        """Whether this controller wants it used."""
        return self.value(Feature.VOLATILE_WRITE_CACHE) == 1

    @property
    def no_deallocate_warns(self) -> bool:
        """NODRM of Sanitize Config: a sanitize that must not deallocate is done anyway, with a warning."""
        return self.value(Feature.SANITIZE_CONFIG) == 1

    def value(self, feature: int, index: int = 0, select: Select = Select.CURRENT) -> int:
        """A feature's value; ``index``: namespace, vector or threshold."""
        saved = self._subsystem.saved_features(self._owner(feature)).get((feature, index))
        default = self._default(feature, index)
        if select == Select.CURRENT:
            return self._current(feature).get((feature, index), default if saved is None else saved)
        return saved if select == Select.SAVED and saved is not None else default

    def store(self, feature: int, index: int, value: int, *, save: bool) -> None:
        """Set a current value, and the saved one with ``save``."""
        self._current(feature)[feature, index] = value
        if save:
            self._subsystem.save_feature(self._owner(feature), feature, index, value)

    def set_timestamp(self, data: bytes) -> None:
        stamp = wire.TIMESTAMP.unpack(data)
        self._clock_base = int.from_bytes(stamp.milliseconds, "little")
        self._clock_set, self._clock_origin = self._subsystem.now(), wire.TIMESTAMP_SET_BY_HOST

    def timestamp(self) -> bytes:
        """Milliseconds since the host set it, or since the reset."""
        value = self._clock_base + (self._subsystem.now() - self._clock_set) // MS
        return wire.TIMESTAMP.pack(wire.Timestamp((value % (1 << 48)).to_bytes(6, "little"), self._clock_origin, 0))

    def supports(self, feature: int) -> bool:
        return feature in KINDS and (feature != Feature.VOLATILE_WRITE_CACHE or self.has_write_cache)

    def apply_coalescing(self) -> None:
        """Tell the data plane when to raise interrupts. Call it with the data plane out of compiled code."""
        queues = self._controller.queues
        interrupts.apply(queues.record, queues.cqs, self.value)

    def _current(self, feature: int) -> dict[tuple[int, int], int]:
        return self._subsystem.feature_values if KINDS[feature].scope == _ALL else self._values

    def _owner(self, feature: int) -> int:
        """Whose saved value it is: the subsystem's are kept under controller 0."""
        return 0 if KINDS[feature].scope == _ALL else self._controller.cntlid

    def _default(self, feature: int, index: int) -> int:
        match feature:
            case Feature.TEMPERATURE_THRESHOLD:
                return WARNING_KELVIN if index == OVER else 0
            case Feature.INTERRUPT_VECTOR:
                return index
            case _:
                return KINDS[feature].default


def get_features(controller: Controller, request: Request) -> int:
    """Get Features (0Ah)."""
    dword = GetDword(request.sqe.cdw10)
    features = controller.features
    if not features.supports(dword.fid) or dword.sel > Select.CAPABILITIES:
        raise Refused(Status.INVALID_FIELD, "cdw10")
    kind, select = KINDS[dword.fid], Select(dword.sel)
    if kind.per_namespace:
        if request.nsid == NSID_ALL:
            raise Refused(Status.INVALID_NAMESPACE, "nsid")
        controller.subsystem.namespaces.find_active(request.nsid, controller.cntlid)
    if select == Select.CAPABILITIES:
        return kind.capabilities
    if kind.size:
        request.write(_data(controller, request, select))
        return 0
    return features.value(dword.fid, _index(dword.fid, request, setting=False), select)


def set_features(controller: Controller, request: Request) -> int:
    """Set Features (09h)."""
    dword = SetDword(request.sqe.cdw10)
    if not controller.features.supports(dword.fid):
        raise Refused(Status.INVALID_FIELD, "cdw10")
    kind = KINDS[dword.fid]
    if dword.sv and not kind.saveable:
        raise Refused(Status.FEATURE_NOT_SAVEABLE, "cdw10")
    if not kind.per_namespace and request.nsid not in (0, NSID_ALL):
        raise Refused(Status.FEATURE_NOT_NAMESPACE_SPECIFIC, "nsid")
    if kind.size:
        _set_data(controller, request)
        return 0
    prepare = _PREPARE.get(dword.fid)
    value = request.sqe.cdw11
    if prepare is not None:
        value = prepare(controller, value)
    for index in _indexes(controller, dword.fid, request):
        controller.features.store(dword.fid, index, value & kind.mask, save=bool(dword.sv))
    return _applied(controller, dword.fid, value)


def _index(feature: int, request: Request, *, setting: bool) -> int:
    """Which of several values CDW11 names. :raises Refused: it names none"""
    cdw11 = request.sqe.cdw11
    if feature == Feature.ERROR_RECOVERY:
        return request.nsid
    if feature == Feature.INTERRUPT_VECTOR:
        vector = wire.Interrupt(cdw11).iv
        if vector >= VECTORS:
            raise Refused(Status.INVALID_FIELD, "cdw11")
        return vector
    if feature == Feature.TEMPERATURE_THRESHOLD:
        threshold = wire.TemperatureThreshold(cdw11)
        sensors = (0, _ALL_SENSORS) if setting else (0,)  # the composite temperature is the only sensor
        if threshold.tmpsel not in sensors or threshold.thsel > UNDER:
            raise Refused(Status.INVALID_FIELD, "cdw11")
        return threshold.thsel
    return 0


def _indexes(controller: Controller, feature: int, request: Request) -> list[int]:
    if KINDS[feature].per_namespace:
        return [ns.nsid for ns in controller.subsystem.namespaces.targets(request.nsid, controller.cntlid)]
    return [_index(feature, request, setting=True)]


def _applied(controller: Controller, feature: int, value: int) -> int:
    """Act on a value that was stored. :returns: DW0"""
    match feature:
        case Feature.NUMBER_OF_QUEUES:
            return value
        case Feature.KEEP_ALIVE:
            controller.keep_alive.start(value)
        case Feature.VOLATILE_WRITE_CACHE:
            controller.subsystem.apply_write_cache()
        case Feature.TEMPERATURE_THRESHOLD:
            controller.check_health()
        case Feature.INTERRUPT_COALESCING | Feature.INTERRUPT_VECTOR:
            with controller.drive.plane.paused():
                controller.features.apply_coalescing()
    return 0


def _data(controller: Controller, request: Request, select: Select) -> bytes:
    """A feature's data structure. Their defaults are zeros, and none is saved."""
    features, feature = controller.features, GetDword(request.sqe.cdw10).fid
    size = KINDS[feature].size
    if feature == Feature.HOST_IDENTIFIER and not request.sqe.cdw11 & 1:
        size = 8
    if select != Select.CURRENT:
        return bytes(size)
    match feature:
        case Feature.TIMESTAMP:
            return features.timestamp()
        case Feature.HOST_BEHAVIOR:
            return features.host_behavior
        case _:
            return features.host_identifier[:size]


def _set_data(controller: Controller, request: Request) -> None:
    features = controller.features
    match SetDword(request.sqe.cdw10).fid:
        case Feature.TIMESTAMP:
            features.set_timestamp(request.read(wire.TIMESTAMP.size))
        case Feature.HOST_BEHAVIOR:
            data = request.read(wire.HOST_BEHAVIOR.size)
            behavior = wire.HOST_BEHAVIOR.unpack(data)
            if max(behavior.acre, behavior.etdas, behavior.lbafee, behavior.hdisns) > 1:
                raise Refused(Status.INVALID_FIELD)
            features.host_behavior = data
        case _:
            size = 16 if request.sqe.cdw11 & 1 else 8
            identifier = request.read(size).ljust(16, b"\0")
            if any(features.host_identifier) and features.host_identifier != identifier:
                raise Refused(Status.COMMAND_SEQUENCE_ERROR)  # it may be set once between resets
            features.host_identifier = identifier


def _power_management(controller: Controller, value: int) -> int:
    if value & 0x1F:  # power state 0 is the only one
        raise Refused(Status.INVALID_FIELD, "cdw11")
    return value


def _error_recovery(controller: Controller, value: int) -> int:
    if value & _DEALLOCATED_ERROR:
        raise Refused(Status.INVALID_FIELD, "cdw11")
    return value


def _queues(controller: Controller, value: int) -> int:
    """As many as were asked for, up to 64 of each, before the first is created."""
    wanted = wire.Queues(value)
    if 0xFFFF in (wanted.nsq, wanted.ncq):
        raise Refused(Status.INVALID_FIELD, "cdw11")
    if controller.io_queues.any():
        raise Refused(Status.COMMAND_SEQUENCE_ERROR)
    return int(wire.Queues.of(nsq=min(wanted.nsq, IO_QUEUES - 1), ncq=min(wanted.ncq, IO_QUEUES - 1)))


def _keep_alive(controller: Controller, value: int) -> int:
    """Rounded up to the timer's granularity."""
    return min(-(-value // _KEEP_ALIVE_MS) * _KEEP_ALIVE_MS, 0xFFFF_FFFF // _KEEP_ALIVE_MS * _KEEP_ALIVE_MS)


_PREPARE: dict[int, Callable[[Controller, int], int]] = {
    Feature.POWER_MANAGEMENT: _power_management,
    Feature.ERROR_RECOVERY: _error_recovery,
    Feature.NUMBER_OF_QUEUES: _queues,
    Feature.KEEP_ALIVE: _keep_alive,
}
