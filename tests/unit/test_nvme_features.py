"""Get and Set Features (Base 5.1.11, 5.1.25)."""

from __future__ import annotations

from pathlib import Path

import pytest

from emucsd_firmware.nvme.features import KINDS
from emucsd_firmware.profile import load
from emucsd_wire.features import HOST_BEHAVIOR, TIMESTAMP, Capability, Feature, HostBehavior, Select, Timestamp
from emucsd_wire.identify import Oaes
from emucsd_wire.logs import FeatureScope
from emucsd_wire.nvme import NSID_ALL, Admin, Status
from tests.unit.nvme_host import DATA_AT, MIB, Bench, Host

SIMPLE = [
    (Feature.ARBITRATION, 0x0102_0304, 7),
    (Feature.POWER_MANAGEMENT, 0x20, 0),
    (Feature.INTERRUPT_COALESCING, 0x0A05, 0),
    (Feature.WRITE_ATOMICITY, 1, 0),
    (Feature.SANITIZE_CONFIG, 1, 0),
    (Feature.SOFTWARE_PROGRESS, 0x42, 0),
]


@pytest.mark.parametrize(("feature", "value", "default"), SIMPLE)
def test_current_default_saved(bench: Bench, feature: Feature, value: int, default: int) -> None:
    """A value is current until the reset, and starts the next life when it was saved; the default never moves."""
    host = bench.hosts[0].enable()
    assert host.get_feature(feature) == default
    assert host.set_feature(feature, value).status == 0
    assert host.get_feature(feature) == value
    assert [host.get_feature(feature, select=s) for s in (Select.DEFAULT, Select.SAVED)] == [default, default]
    bench.subsystem.reset()
    host.enable()
    assert host.get_feature(feature) == default
    assert host.set_feature(feature, value, save=True).status == 0
    host.disable()
    host.enable()
    assert [host.get_feature(feature, select=s) for s in (0, 1, 2)] == [value, default, value]


@pytest.mark.parametrize(
    "feature", [f for f, kind in KINDS.items() if kind.saveable and f != Feature.VOLATILE_WRITE_CACHE]
)
def test_saved_values_survive_power(bench: Bench, feature: Feature) -> None:
    """What was saved is there after the drive was opened anew; it is kept by controller, or for the subsystem."""
    nsid = 1 if feature == Feature.ERROR_RECOVERY else 0
    value = 0 if feature == Feature.POWER_MANAGEMENT else 1
    assert bench.hosts[0].enable().set_feature(feature, value, nsid=nsid, save=True).status == 0
    again = Bench(bench.folder)
    first, second = (h.enable() for h in again.hosts)
    assert first.get_feature(feature, nsid=nsid) == value
    shared = KINDS[feature].scope == FeatureScope.SUBSYSTEM
    assert second.get_feature(feature, nsid=nsid, select=Select.SAVED) == (
        value if shared else second.get_feature(feature, nsid=nsid, select=Select.DEFAULT)
    )
    again.close()


@pytest.mark.parametrize("feature", [f for f in KINDS if f != Feature.VOLATILE_WRITE_CACHE])
def test_capabilities(host: Host, feature: Feature) -> None:
    """SEL 3 tells what a feature can do, and Set Features with SV does as it says."""
    nsid = 1 if feature == Feature.ERROR_RECOVERY else 0
    found = Capability.CHANGEABLE | Capability.NAMESPACE_SPECIFIC * (nsid == 1)
    capabilities = host.get_feature(feature, nsid=nsid, select=Select.CAPABILITIES)
    assert capabilities & ~Capability.SAVEABLE == found
    if not capabilities & Capability.SAVEABLE:
        assert host.set_feature(feature, 0, nsid=nsid, save=True).status == Status.FEATURE_NOT_SAVEABLE


@pytest.mark.parametrize("feature", [0, 0x03, 0x06, 0x0C, 0x0D, 0x10, 0x11, 0x12, 0x18, 0x19, 0x7D, 0x82, 0xD0, 0xFF])
def test_unknown_features(host: Host, feature: int) -> None:
    """A feature that is not there is Invalid Field both ways (06h: there is no write cache in this profile)."""
    assert host.set_feature(feature, 0).status == Status.INVALID_FIELD
    assert host.refused(Admin.GET_FEATURES, cdw10=feature) == Status.INVALID_FIELD


@pytest.mark.parametrize("select", [4, 5, 6, 7])
def test_reserved_select(host: Host, select: int) -> None:
    """SEL above 3 is reserved."""
    assert host.refused(Admin.GET_FEATURES, cdw10=Feature.ARBITRATION | select << 8) == Status.INVALID_FIELD


def test_namespace_given_to_a_controller_feature(host: Host) -> None:
    """Setting a controller's feature for one namespace is refused; for all, or none, it is meant for the controller."""
    status = host.set_feature(Feature.ARBITRATION, 1, nsid=1).status
    assert status == Status.FEATURE_NOT_NAMESPACE_SPECIFIC
    assert host.set_feature(Feature.ARBITRATION, 1, nsid=NSID_ALL).status == 0


def test_error_recovery_is_per_namespace(host: Host) -> None:
    """TLER is kept by namespace: impossible and inactive ids are refused, FFFFFFFFh sets all and gets none."""
    feature = Feature.ERROR_RECOVERY
    assert host.set_feature(feature, 7, nsid=NSID_ALL).status == 0
    assert host.get_feature(feature, nsid=1) == 7
    assert host.refused(Admin.GET_FEATURES, NSID_ALL, cdw10=feature) == Status.INVALID_NAMESPACE
    for nsid, status in ((0, Status.INVALID_NAMESPACE), (40, Status.INVALID_NAMESPACE), (5, Status.INVALID_FIELD)):
        assert host.set_feature(feature, 1, nsid=nsid).status == status
        assert host.refused(Admin.GET_FEATURES, nsid, cdw10=feature) == status
    assert host.set_feature(feature, 1 << 16, nsid=1).status == Status.INVALID_FIELD  # DULBE is not offered


def test_one_power_state(host: Host) -> None:
    """Power state 0 is the only one."""
    assert host.set_feature(Feature.POWER_MANAGEMENT, 1).status == Status.INVALID_FIELD


def test_temperature_thresholds(host: Host) -> None:
    """Over and under are two values of the composite temperature; there are no other sensors."""
    feature, under = Feature.TEMPERATURE_THRESHOLD, 1 << 20
    assert (host.get_feature(feature), host.get_feature(feature, cdw11=under)) == (343, 0)
    assert host.set_feature(feature, 350).status == 0
    assert host.set_feature(feature, under | 280).status == 0
    assert (host.get_feature(feature), host.get_feature(feature, cdw11=under)) == (350, 280)
    assert host.set_feature(feature, 15 << 16 | 345).status == 0
    assert host.get_feature(feature) == 345
    for wrong in (1 << 16, 8 << 16, 2 << 20):
        assert host.set_feature(feature, wrong | 300).status == Status.INVALID_FIELD
        assert host.refused(Admin.GET_FEATURES, cdw10=feature, cdw11=wrong) == Status.INVALID_FIELD


def test_interrupt_vectors(host: Host) -> None:
    """Every vector has its own coalescing switch; one past the table is Invalid Field."""
    feature = Feature.INTERRUPT_VECTOR
    assert host.get_feature(feature, cdw11=5) == 5
    assert host.set_feature(feature, 1 << 16 | 5).status == 0
    assert host.get_feature(feature, cdw11=5) == 1 << 16 | 5
    assert host.get_feature(feature, cdw11=6) == 6
    assert host.set_feature(feature, 65).status == Status.INVALID_FIELD
    assert host.refused(Admin.GET_FEATURES, cdw10=feature, cdw11=65) == Status.INVALID_FIELD


def test_async_event_configuration(host: Host) -> None:
    """Only the events that exist here can be turned on."""
    host.set_feature(Feature.ASYNC_EVENTS, 0xFFFF_FFFF)
    assert host.get_feature(Feature.ASYNC_EVENTS) == Oaes.NAMESPACE_ATTRIBUTE | 0xFF


def test_timestamp(bench: Bench, host: Host) -> None:
    """The timestamp counts milliseconds from the reset, then from what the host set; it says which."""
    bench.wall.ns += 5_000_000_000
    assert host.get_feature(Feature.TIMESTAMP) == 0
    stamp = TIMESTAMP.unpack(host.peek(DATA_AT, 8))
    assert (int.from_bytes(stamp.milliseconds, "little"), stamp.attributes) == (5000, 0)
    host.poke(DATA_AT, TIMESTAMP.pack(Timestamp((1_700_000_000_000).to_bytes(6, "little"), 0, 0)))
    assert host.set_feature(Feature.TIMESTAMP, 0).status == 0
    bench.wall.ns += 250_000_000
    host.get_feature(Feature.TIMESTAMP)
    stamp = TIMESTAMP.unpack(host.peek(DATA_AT, 8))
    assert (int.from_bytes(stamp.milliseconds, "little"), stamp.attributes) == (1_700_000_000_250, 2)
    host.get_feature(Feature.TIMESTAMP, select=Select.DEFAULT)
    assert host.peek(DATA_AT, 8) == bytes(8)
    host.disable()
    host.enable()
    host.get_feature(Feature.TIMESTAMP)
    assert TIMESTAMP.unpack(host.peek(DATA_AT, 8)).attributes == 0


def test_host_behavior(host: Host) -> None:
    """Host Behavior Support is kept as given; a switch that is neither on nor off is refused."""
    good = HOST_BEHAVIOR.pack(HostBehavior(acre=1, lbafee=1))
    host.poke(DATA_AT, good)
    assert host.set_feature(Feature.HOST_BEHAVIOR, 0).status == 0
    for wrong in (HostBehavior(acre=2), HostBehavior(etdas=3), HostBehavior(lbafee=255), HostBehavior(hdisns=2)):
        host.poke(DATA_AT, HOST_BEHAVIOR.pack(wrong))
        assert host.set_feature(Feature.HOST_BEHAVIOR, 0).status == Status.INVALID_FIELD
    host.get_feature(Feature.HOST_BEHAVIOR)
    assert host.peek(DATA_AT, 512) == good


def test_host_identifier(host: Host) -> None:
    """8 or 16 bytes; once set it stays until the reset."""
    host.poke(DATA_AT, bytes(range(1, 17)))
    assert host.set_feature(Feature.HOST_IDENTIFIER, 1).status == 0
    assert host.set_feature(Feature.HOST_IDENTIFIER, 1).status == 0
    host.poke(DATA_AT, bytes(range(2, 18)))
    assert host.set_feature(Feature.HOST_IDENTIFIER, 1).status == Status.COMMAND_SEQUENCE_ERROR
    host.get_feature(Feature.HOST_IDENTIFIER, cdw11=1)
    assert host.peek(DATA_AT, 16) == bytes(range(1, 17))
    host.poke(DATA_AT, b"\xee" * 16)
    host.get_feature(Feature.HOST_IDENTIFIER)
    assert host.peek(DATA_AT, 16) == bytes(range(1, 9)) + b"\xee" * 8


def test_keep_alive_rounds_up(host: Host) -> None:
    """KATO is rounded up to whole seconds, the granularity that Identify tells."""
    for given, kept in ((0, 0), (1, 1000), (1000, 1000), (1001, 2000), (0xFFFF_FFFF, 4_294_967_000)):
        assert host.set_feature(Feature.KEEP_ALIVE, given).status == 0
        assert host.get_feature(Feature.KEEP_ALIVE) == kept


def test_write_cache(folder: Path) -> None:
    """The cache of the drive is on while neither controller turns it off; a reset takes a controller's wish back."""
    bench = Bench(folder, load("null", **{"capacity_bytes": 64 * MIB, "buffer.pages": 64}))
    host, engine = (h.enable() for h in bench.hosts)
    assert host.get_feature(Feature.VOLATILE_WRITE_CACHE) == 1

    def asked() -> list[object]:
        return [value for name, value in bench.drive.calls if name == "write_cache"]

    host.set_feature(Feature.VOLATILE_WRITE_CACHE, 0)
    assert asked() == [False]
    engine.set_feature(Feature.VOLATILE_WRITE_CACHE, 0)
    host.disable()
    assert asked() == [False, False, False]
    engine.set_feature(Feature.VOLATILE_WRITE_CACHE, 1, save=True)
    assert asked()[-1] is True
    bench.close()
