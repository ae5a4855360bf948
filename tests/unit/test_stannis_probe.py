"""The probe: real steps, real peaks, and a refusal before memory ends."""

from __future__ import annotations

import resource
from collections.abc import Iterable
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch

from emucsd.stannis.errors import DoesNotFit, FactoryFailed, MemoryExceeded
from emucsd.stannis.spec import Spec
from emucsd.stannis.training import memory
from emucsd.stannis.training.probe import Probe

MIB = 1 << 20
MODELS = '''
import torch
from torch import nn

def wide(channels=16):
    """16 x 64 x 64 floats a layer and image: 256 KiB, and as much again for gradients."""
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.Tanh(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(channels, 4))

def large(count):
    return nn.Sequential(nn.Flatten(), nn.Linear(12288, count), nn.Linear(count, 4))

class Pairs(nn.Module):
    """Each image against each: what it needs grows with the square of the batch."""
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(8, 4)
    def forward(self, x):
        n = len(x)
        near = (x.mean((1, 2, 3))[:, None] - x.mean((1, 2, 3))[None]).tanh()
        return self.out(near.new_zeros(n, 8) + near.repeat(1, 40).tanh().mean(1, keepdim=True))

def pairs():
    return Pairs()

class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(5, 4)
    def forward(self, x):
        return self.out(x.flatten(1))

def broken():
    return Broken()
'''


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterable[None]:
    """Timings of one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def no_spare_memory() -> None:
    """What earlier tests have freed and the process still has would be used first, and be counted as nothing."""
    memory.release(cycles=True)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """The user's file."""
    path = tmp_path / "models.py"
    path.write_text(MODELS)
    return path


def spec(models: Path, net: str, **arguments: int) -> Spec:
    """A run on images of 64 x 64."""
    return Spec(f"{models}:{net}", arguments, image=(3, 64, 64), lr=0.1)


def test_measures(models: Path) -> None:
    """Time and peak grow with the batch, about in proportion; the weights stay as the seed gave them."""
    with Probe(spec(models, "wide"), memory_bytes=memory.resident() + 2000 * MIB, steps=2) as probe:
        before = memory.resident()
        weights = [p.detach().clone() for p in probe._stepper.model.parameters()]
        small, large = probe(8), probe(64)
        assert (small.batch, large.batch) == (8, 64)
        assert 3 < large.seconds / small.seconds < 24
        # three layers of 256 KiB an image at least, and no more than some copies of them
        assert 56 * 3 * 256 << 10 < large.memory_bytes - small.memory_bytes < 56 * 12 * 256 << 10
        assert small.memory_bytes > before
        assert all(torch.equal(a, b) for a, b in zip(weights, probe._stepper.model.parameters(), strict=True))


def test_refuses_before_it_fails(models: Path) -> None:
    """A batch that would pass the limit is refused, with how much is missing, while the process stays below it."""
    limit = memory.resident() + 150 * MIB
    with Probe(spec(models, "wide"), memory_bytes=limit, steps=1) as probe, memory.Peak() as peak:
        probe(16)
        with pytest.raises(MemoryExceeded, match=r"batch of 5000 needs \d+ bytes, \d+ too many") as raised:
            probe(5000)
        assert probe(24).batch == 24
    assert peak.bytes < limit
    problem = raised.value
    assert (problem.batch, problem.limit) == (5000, limit)
    assert problem.missing == problem.needed - limit > 0
    assert 5000 * 3 * 256 << 10 < problem.needed < 5000 * 14 * 256 << 10


def test_prediction_that_is_wrong(models: Path) -> None:
    """Memory that grows with the square of the batch passes the prediction: the kernel refuses, nobody is killed, and
    the process has all its memory back."""
    with Probe(spec(models, "pairs"), memory_bytes=memory.resident() + 160 * MIB, steps=1) as probe:
        probe(16)
        before = memory.resident()
        with pytest.raises(MemoryExceeded, match="batch of 1200 needs"):
            probe(1200)
        assert resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY
        assert memory.resident() < before + 30 * MIB
        assert probe(16).seconds > 0


def test_model_too_large(models: Path) -> None:
    """Not even the model, or not even two samples: leave this engine out."""
    limit = memory.resident() + 60 * MIB
    with pytest.raises(DoesNotFit, match="the model itself") as raised:
        Probe(spec(models, "large", count=2500), memory_bytes=limit)
    assert raised.value.limit == limit
    del raised  # its traceback holds the model
    memory.release(cycles=True)
    limit = memory.resident() + 60 * MIB
    with Probe(spec(models, "wide", channels=4000), memory_bytes=limit) as probe, pytest.raises(DoesNotFit):
        probe(64)


def test_model_that_raises(models: Path) -> None:
    """A model for other shapes is the user's mistake, and found before any data is read."""
    with Probe(spec(models, "broken")) as probe, pytest.raises(FactoryFailed, match=r"models\.py:\d+.*shapes"):
        probe(4)


def test_limits_of_this_process() -> None:
    """What the system says: some memory is there, and not more than the machine has."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    assert memory.resident() < memory.available() <= int(fields["MemTotal"].split()[0]) * 1024
    with memory.Peak() as peak:
        block = torch.ones(20 * MIB // 4)
    assert peak.bytes >= memory.resident() - MIB
    del block
