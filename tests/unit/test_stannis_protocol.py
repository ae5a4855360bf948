"""What coordinator and workers may say to each other, and everything else that a peer might send."""

from __future__ import annotations

import io
import json
import threading
from dataclasses import fields as fields_of
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emucsd.stannis.errors import (
    DataFormat,
    DoesNotFit,
    GroupViolation,
    MemoryExceeded,
    NotAdmitted,
    ShardMissing,
    SpecError,
    VersionMismatch,
)
from emucsd.stannis.group import options, protocol, versions
from emucsd.stannis.group.cluster import Cluster, Member, Place
from emucsd.stannis.group.events import Events, merged
from emucsd.stannis.group.failures import FATAL, WorkerFailed, error_of, failure_of
from emucsd.stannis.group.inventory import Inventory
from emucsd.stannis.group.protocol import FROM_COORDINATOR, FROM_WORKER, Failure, Hello, Lines, pack, parse, same_token

HELLO = {"is": "hello", "token": "t", "node": "a", "protocol": 1, "versions": {}}
STEP = {
    "is": "step", "generation": 1, "step": 1, "epoch": 0, "samples": 4, "total": 9, "loss": 1.5, "accuracy": 0.5,
    "lr": 0.1, "load": 0.0, "compute": 0.1, "wait": 0.0, "transfer": 0.0,
}  # fmt: skip

MESSAGES: list[protocol.Message] = [
    Hello("token", "a", 1, {"torch": "2.6"}, "x86_64", "id", 4, 1 << 30, "10.77.0.2", 17),
    protocol.Beat(),
    protocol.Answer(3, {"count": 4}),
    protocol.Failure(3, "FactoryFailed", "text", "net.py:3", {"batch": 4}),
    protocol.Step(1, 1, 0, 4, 9, 1.5, 0.5, 0.1, 0.0, 0.1, 0.0, 0.0),
    protocol.Epoch(1, 0, 8, 72, 1.0, 0.5, 3.0),
    protocol.Store(1, 4711),
    protocol.Broken(1, "text"),
    protocol.Saved(8, "/kept", 4711, 0.1),
    protocol.Planned(1, 9, {"steps": 4}, "why"),
    protocol.Welcome({"factory": "m:f"}, checkpoint="ns:3"),
    protocol.Refused("NotAdmitted", "text", True),
    protocol.Request(1, "bench", {"batch": 16}),
    protocol.StoreAt(1, "10.77.0.1", 4711),
    protocol.Abandon(1, "text"),
    protocol.Pause(1, True),
    protocol.Stop("text", 1),
    protocol.Pulse(),
]  # fmt: skip


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_round_trip(message: protocol.Message) -> None:
    """Every message comes back from its line as it was, to the side that may hear it and to no other."""
    line = pack(message)
    name = type(message).__name__.lower()
    ours, others = (FROM_WORKER, FROM_COORDINATOR) if name in FROM_WORKER else (FROM_COORDINATOR, FROM_WORKER)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert parse(line, ours) == message
    with pytest.raises(GroupViolation):
        parse(line, others)


def test_all_are_tried() -> None:
    """No kind of message is left out above."""
    assert {type(message).__name__.lower() for message in MESSAGES} == {*FROM_WORKER, *FROM_COORDINATOR}


# (what is wrong, the line): one place for everything malformed
MALFORMED: list[tuple[str, bytes]] = [
    ("nothing", b""),
    ("no JSON", b"hello"),
    ("not UTF-8", b'{"is": "\xff\xfe"}'),
    ("half an object", b'{"is": "beat"'),
    ("two objects", b'{"is": "beat"}{"is": "beat"}'),
    ("a list", b"[]"),
    ("a number", b"7"),
    ("null", b"null"),
    ("nested deeply", b"[" * 100_000),
    ("a long number", b'{"is": "beat", "x": ' + b"9" * 10_000 + b"}"),
    ("no kind", b"{}"),
    ("kind is no text", b'{"is": 3}'),
    ("kind is a list", b'{"is": []}'),
    ("unknown kind", b'{"is": "reboot"}'),
    ("the coordinator's kind", b'{"is": "stop"}'),
    ("a class of Python's", b'{"is": "__class__"}'),
    ("unknown field", json.dumps({"is": "beat", "more": 1}).encode()),
    ("hello without a token", json.dumps({k: v for k, v in HELLO.items() if k != "token"}).encode()),
    ("hello without a name", json.dumps({**HELLO, "node": ""}).encode()),
    ("a long name", json.dumps({**HELLO, "node": "a" * 201}).encode()),
    ("a name that is a number", json.dumps({**HELLO, "node": 4}).encode()),
    ("no cores", json.dumps({**HELLO, "cores": 0}).encode()),
    ("half a core", json.dumps({**HELLO, "cores": 0.5}).encode()),
    ("cores that are true", json.dumps({**HELLO, "cores": True}).encode()),
    ("negative memory", json.dumps({**HELLO, "memory_bytes": -1}).encode()),
    ("versions in a list", json.dumps({**HELLO, "versions": ["torch"]}).encode()),
    ("too many versions", json.dumps({**HELLO, "versions": {str(n): "" for n in range(17)}}).encode()),
    ("a version that is none", json.dumps({**HELLO, "versions": {"torch": None}}).encode()),
    ("a long version", json.dumps({**HELLO, "versions": {"torch": "x" * 201}}).encode()),
    ("a step before the first", json.dumps({**STEP, "step": -1}).encode()),
    ("a step without a loss", json.dumps({k: v for k, v in STEP.items() if k != "loss"}).encode()),
    ("a loss that is text", json.dumps({**STEP, "loss": "low"}).encode()),
    ("a loss that is NaN", json.dumps({**STEP, "loss": float("nan")}).encode()),
    ("endless waiting", json.dumps({**STEP, "wait": float("inf")}).encode()),
    ("negative computing", json.dumps({**STEP, "compute": -1.0}).encode()),
    ("huge counts", json.dumps({**STEP, "total": 1 << 60}).encode()),
    ("port 0", b'{"is": "store", "generation": 1, "port": 0}'),
    ("port 65536", b'{"is": "store", "generation": 1, "port": 65536}'),
    ("an answer to nothing", b'{"is": "answer"}'),
    ("an answer that is a list", b'{"is": "answer", "request": 1, "value": []}'),
    ("a long text", json.dumps({"is": "failure", "request": 1, "error": "E", "text": "x" * 4001}).encode()),
    ("too many facts", json.dumps({"is": "failure", "request": 1, "error": "E", "text": "",
                                   "facts": {str(n): 1 for n in range(17)}}).encode()),
    ("a checkpoint of minus one byte", b'{"is": "saved", "step": 1, "bytes": -1}'),
    ("a name twice", b'{"is": "beat", "is": "hello"}'),
]  # fmt: skip


@pytest.mark.parametrize(("what", "line"), MALFORMED, ids=[what for what, _ in MALFORMED])
def test_malformed(what: str, line: bytes) -> None:
    """Whatever a worker sends that is no message is a GroupViolation, never another exception."""
    with pytest.raises(GroupViolation):
        parse(line, FROM_WORKER)


@given(st.binary(max_size=200))
def test_any_bytes(line: bytes) -> None:
    """No bytes do more than that."""
    with pytest.raises(GroupViolation):
        parse(line, FROM_WORKER)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.data())
def test_any_fields(data: st.DataObject) -> None:
    """Any values in a message's own fields give that message or a GroupViolation."""
    kind = data.draw(st.sampled_from(sorted(FROM_WORKER)))
    body = {field.name: data.draw(JSON) for field in fields_of(FROM_WORKER[kind])}
    try:
        found = parse(json.dumps({"is": kind, **body}).encode(), FROM_WORKER)
    except GroupViolation:
        return
    assert isinstance(found, FROM_WORKER[kind])


@given(st.lists(st.binary(max_size=30).filter(lambda line: b"\n" not in line), max_size=8), st.data())
def test_lines_in_pieces(lines: list[bytes], data: st.DataObject) -> None:
    """However a stream is cut, the same lines come out of it."""
    stream = b"".join(line + b"\n" for line in lines)
    cutter, found = Lines(100), []
    while stream:
        count = data.draw(st.integers(1, len(stream)))
        found += cutter.feed(stream[:count])
        stream = stream[count:]
    assert found == lines


@pytest.mark.parametrize("sent", [b"x" * 11, b"x" * 11 + b"\n", b"short\n" + b"x" * 11, b"x" * 11 + b"\nshort\n"])
def test_line_too_long(sent: bytes) -> None:
    """A line that passes the limit is refused, whether or not it ever ends."""
    with pytest.raises(GroupViolation, match="10 bytes"):
        Lines(10).feed(sent)
    assert Lines(11).feed(b"x" * 11 + b"\n") == [b"x" * 11]


def test_tokens() -> None:
    """Only the run's own token is that; what can't be encoded isn't."""
    assert same_token("secret", "secret")
    assert not any(same_token(other, "secret") for other in ("", "Secret", "secret ", "\ud800"))


# -- errors on their way


def test_failure_keeps_what_may_be_told() -> None:
    """Our errors travel with text and figures; others by class and place alone: their text may quote a sample."""
    lost = failure_of(1, ShardMissing("pool 'p', sample 4: not there", "p", 4))
    assert (lost.error, lost.facts) == ("ShardMissing", {"pool": "p", "index": 4})
    with pytest.raises(KeyError) as raised:
        raise KeyError("cat0001.jpg")
    strange = failure_of(2, raised.value)
    assert "cat0001" in failure_of(2, raised.value, debug=True).trace
    assert "cat0001" not in strange.text + strange.trace
    assert "test_stannis_protocol.py" in strange.text


def test_errors_come_back() -> None:
    """Memory errors are themselves again, for the tuner; others say their node, kind and whether they end the run."""
    text = failure_of(1, DoesNotFit("too large", 1, 300, 100))
    found = error_of("isp0", text)
    assert isinstance(found, DoesNotFit)
    assert (found.batch, found.needed, found.missing, found.node) == (1, 300, 200, "isp0")
    assert type(error_of("a", failure_of(1, MemoryExceeded("", 4)))) is MemoryExceeded
    gone = error_of("a", Failure(1, "DriveGone", "the drive does not answer"))
    bad = error_of("a", Failure(1, "NonFinite", "the loss is NaN", facts={"parameter": "fc"}))
    assert isinstance(gone, WorkerFailed)
    assert not gone.fatal
    assert isinstance(bad, WorkerFailed)
    assert bad.fatal
    assert bad.facts == {"parameter": "fc"}
    nonsense = Failure(1, "MemoryExceeded", "", facts={"batch": "many", "needed": None})
    assert error_of("a", nonsense).batch == 0  # type: ignore[attr-defined]


def test_fatal_errors_exist() -> None:
    """Each name of an error that ends a run is one of Stannis'."""
    from emucsd.stannis import errors
    from emucsd.stannis.data import errors as of_data
    from emucsd.stannis.training import errors as of_training

    for name in FATAL:
        assert any(hasattr(module, name) for module in (errors, of_data, of_training)), name


# -- descriptions


def cluster(**more: Any) -> dict[str, Any]:
    """A cluster's JSON object."""
    return {"nodes": [{"name": "a"}, {"name": "b"}], "pools": [{"name": "p", "at": {"a": "/x"}}], **more}


@pytest.mark.parametrize(
    "more",
    [
        {"nodes": []},
        {"nodes": [{"name": "a"}, {"name": "a"}]},
        {"nodes": [{"name": ""}]},
        {"nodes": [{"name": "a", "memory_bytes": 0}]},
        {"pools": []},
        {"pools": [{"name": "p", "at": {}}]},
        {"pools": [{"name": "p", "at": {"z": "/x"}}]},
        {"pools": [{"name": "p", "at": {"a": "/x"}}, {"name": "p", "at": {"b": "/x"}}]},
        {"test": [{"name": "t", "at": {"z": "/x"}}]},
        {"pools": [{"name": "p", "at": {"a": 7}}]},
        {"more": 1},
    ],
)
def test_cluster_refused(more: dict[str, Any]) -> None:
    """A description that doesn't hold together is refused before anything listens."""
    with pytest.raises(SpecError):
        Cluster.from_json(json.dumps(cluster(**more)))
    assert Cluster.from_json(json.dumps(cluster())).names == ("a", "b")


def test_command_lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Addresses, batches and tokens are checked before they are used."""
    assert options.endpoint("10.77.0.1:0", "--listen") == ("10.77.0.1", 0)
    for text in ("", "7078", ":7078", "host:", "host:x", "host:70000"):
        with pytest.raises(SpecError):
            options.endpoint(text, "--listen")
    assert options.batches_of("1,2,16") == (1, 2, 16)
    for text in ("", "0,1", "2,1", "1,1", "a", "1,,2"):
        with pytest.raises(SpecError):
            options.batches_of(text)
    monkeypatch.delenv(options.TOKEN_VARIABLE, raising=False)
    (tmp_path / "short").write_text("short\n")
    for file in (None, tmp_path / "gone", tmp_path / "short"):
        with pytest.raises(NotAdmitted):
            options.token_of(file)


# -- what nodes say that they have


def seen(count: int = 4, digest: str | None = "d", classes: tuple[str, ...] = ("cat", "dog")) -> dict[str, Any]:
    """A node's word on one pool."""
    return {"count": count, "sample_bytes": 10, "classes": list(classes), "digest": digest}


def test_inventory() -> None:
    """Copies are told from other samples; pools are known by those that were seen to have them."""
    places = Place("p", {"a": "/p", "b": "/q"}), Place("own", {"b": "ns:2"}, True)
    here = Inventory(Cluster((Member("a"), Member("b")), places))
    assert here.wanted("b")["pools"] == {
        "p": {"location": "/q", "private": False},
        "own": {"location": "ns:2", "private": True},
    }
    here.take("a", {"pools": {"p": seen()}, "tests": {}})
    assert [pool.at for pool in here.of(["a", "b"])] == [{"a": "/p"}]
    for bad in (seen(5), seen(digest="e"), seen(classes=("cat", "cow"))):
        with pytest.raises(DataFormat, match="no copy"):
            here.take("b", {"pools": {"p": bad, "own": seen(digest=None)}, "tests": {}})
    here.frozen = True
    with pytest.raises(DataFormat, match="cow"):
        here.take("b", {"pools": {"p": seen(), "own": seen(3, None, ("cow",))}, "tests": {}})
    here.take("b", {"pools": {"p": seen(), "own": seen(3, None, ("dog",))}, "tests": {}})
    assert [(pool.name, pool.count, sorted(pool.at)) for pool in here.of(["a", "b"])] == [
        ("p", 4, ["a", "b"]),
        ("own", 3, ["b"]),
    ]
    assert [pool.name for pool in here.of(["a"])] == ["p"]
    assert here.classes == ("cat", "dog")


@pytest.mark.parametrize(
    "said",
    [{}, {"pools": None}, {"pools": {"p": None}}, {"pools": {"p": {}}}, {"pools": {"p": seen(-1)}},
     {"pools": {"p": {**seen(), "classes": [1]}}}, {"pools": {"p": {**seen(), "digest": 3}}}],
)  # fmt: skip
def test_inventory_of_nonsense(said: dict[str, Any]) -> None:
    """What is no inspection is a GroupViolation."""
    here = Inventory(Cluster((Member("a"),), (Place("p", {"a": "/p"}),)))
    with pytest.raises(GroupViolation):
        here.take("a", said)


def test_versions_compare() -> None:
    """Releases of PyTorch that speak alike are equal; other programs are not, and both are named."""
    one = {"program": "x", "torch": "2.6.0+debian"}
    versions.check("a", one, "b", {"program": "x", "torch": "2.6.1+cpu"})
    versions.check("a", one, "b", {"program": "x", "torch": ""})
    with pytest.raises(VersionMismatch, match=r"a has 2\.6\.0.*b has 2\.13\.0"):
        versions.check("a", one, "b", {"program": "x", "torch": "2.13.0"})
    with pytest.raises(VersionMismatch, match="sources"):
        versions.check("a", one, "b", {"program": "y", "torch": "2.6.0"})


def test_steps_add_up() -> None:
    """Step events that nobody takes in time are added up: no image or second is lost."""
    lists = {name: [1, 2] for name in ("images", "compute", "load", "wait", "transfer", "left_out", "sent")}
    one = {"step": 4, "loss": 2.0, "total": 3, "steps": 1, "nodes": ["a", "b"], **lists}
    both = merged(one, {**one, "step": 5, "loss": 1.0})
    assert (both["step"], both["loss"], both["total"], both["steps"]) == (5, 1.0, 6, 2)
    assert both["images"] == both["wait"] == [2, 4]


class Slow(io.StringIO):
    """A reader that takes nothing until it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.taking = threading.Event()

    def write(self, text: str) -> int:
        self.taking.wait(60.0)
        return super().write(text)


def test_events_never_wait() -> None:
    """While nobody reads, telling returns at once and memory stays bounded; then all comes, in order, steps summed."""
    file = Slow()
    events = Events(file)
    lists = {name: [1] for name in ("images", "compute", "load", "wait", "transfer", "left_out", "sent")}
    for number in range(1, 1001):
        events.tell("step", step=number, total=3, nodes=["a"], loss=1.0, **lists)
        if number == 500:
            events.tell("lost", node="b")
    events.tell("done")
    assert len(events._waiting) < 200
    file.taking.set()
    events.close(60.0)
    told = [json.loads(line) for line in file.getvalue().splitlines()]
    steps = [event for event in told if event["event"] == "step"]
    assert sum(event["steps"] for event in steps) == sum(event["images"][0] for event in steps) == 1000
    assert [event["step"] for event in steps] == sorted(event["step"] for event in steps)
    before = told[: [event["event"] for event in told].index("lost")]
    assert before[-1]["step"] == 500
    assert told[-1]["event"] == "done"
