"""The flat vector: weighted sums, buckets, and parameters of all kinds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from emucsd.stannis.training.collective import Alone, Collective, Metered, Pending
from emucsd.stannis.training.errors import ParameterRefused
from emucsd.stannis.training.gradients import Flag, Gradients, Part
from tests.unit.stannis_threads import Member, together

COUNTS = (5, 2, 0)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterable[None]:
    """Tiny networks."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network() -> nn.Module:
    """Three layers; the same weights every time."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 3))


def samples() -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and labels of all ranks."""
    generator = torch.Generator().manual_seed(2)
    n = sum(COUNTS)
    return torch.randn(n, 6, generator=generator), torch.randint(0, 3, (n,), generator=generator)


def own(rank: int) -> slice:
    """Which of them are a rank's."""
    return slice(sum(COUNTS[:rank]), sum(COUNTS[: rank + 1]))


def flat(model: nn.Module) -> torch.Tensor:
    """All gradients."""
    return torch.cat([p.grad.float().flatten() for p in model.parameters() if p.grad is not None])


def whole(model: nn.Module) -> torch.Tensor:
    """The gradient of the mean over all samples, in one process."""
    x, y = samples()
    nn.functional.cross_entropy(model(x), y).backward()
    return flat(model)


def shared(group: Collective, model: nn.Module, **more: Any) -> tuple[torch.Tensor, Any]:
    """The same by several ranks. :return: gradients and totals"""
    gradients = Gradients(model, group.size, **more)
    gradients.begin(group)
    x, y = (part[own(group.rank)] for part in samples())
    loss_sum = 0.0
    if len(y):
        loss = nn.functional.cross_entropy(model(x), y) * len(y)
        loss.backward()
        loss_sum = float(loss.detach())
    flags = frozenset({Flag.STOP}) if group.rank == 1 else frozenset()
    totals, finite = gradients.reduce(Part(len(y), loss_sum, group.rank, 0.5 + group.rank, flags))
    assert finite
    return flat(model), totals


@pytest.mark.parametrize("bucket_bytes", [4, 60, 1000, 1 << 20])
@pytest.mark.parametrize("overlap", [False, True])
def test_weighted_sum(bucket_bytes: int, overlap: bool) -> None:
    """5, 2 and 0 samples: the gradient of the mean over all 7, whatever the buckets; the rest of the vector adds up."""
    models = [network() for _ in range(3)]  # not by the threads: they share torch's generator
    expected = whole(network())

    def run(group: Member) -> tuple[torch.Tensor, Any]:
        return shared(group, models[group.rank], bucket_bytes=bucket_bytes, overlap=overlap)

    for mine, totals in together(3, run):
        assert torch.allclose(mine, expected, rtol=1e-6, atol=1e-7)
        assert (totals.samples, totals.correct) == (7, 3)
        assert totals.seconds == (0.5, 1.5, 2.5)
        assert totals.flags == {Flag.STOP}
        x, y = samples()
        assert totals.loss_sum == pytest.approx(7 * float(nn.functional.cross_entropy(network()(x), y).detach()))


class Watched(Metered):
    """Tells when additions begin."""

    def __init__(self, group: Collective) -> None:
        super().__init__(group)
        self.log: list[str] = []

    def begin(self, tensor: torch.Tensor) -> Pending:
        self.log.append("sent")
        return super().begin(tensor)


def test_transfer_during_backward() -> None:
    """Buckets of late layers leave while early layers still compute; without overlap none does."""
    for overlap, early in ((True, True), (False, False)):
        group, model = Watched(Alone()), network()
        gradients = Gradients(model, 1, bucket_bytes=100, overlap=overlap)
        model[0].weight.register_hook(lambda _, log=group.log: log.append("first layer"))
        gradients.begin(group)
        model(torch.randn(4, 6)).sum().backward()
        done = len(group.log)
        gradients.reduce(Part(4, 0.0, 0, 0.0))
        assert ("sent" in group.log[: group.log.index("first layer")]) is early
        assert group.log.count("sent") == -(-gradients.flat.numel() // 25)
        assert len(group.log) > done  # what follows the gradients leaves when they are done


def test_no_copies() -> None:
    """Gradients are written where they travel, step after step."""
    model, group = network(), Alone()
    gradients = Gradients(model, 1)
    begin, end = gradients.flat.data_ptr(), gradients.flat.data_ptr() + gradients.bytes
    for _ in range(3):
        gradients.begin(group)
        model(torch.randn(4, 6)).sum().backward()
        gradients.reduce(Part(4, 0.0, 0, 0.0))
        assert all(begin <= p.grad.data_ptr() < end for p in model.parameters())
        with gradients.applied():
            pass


def test_gradient_that_comes_elsewhere() -> None:
    """A parameter whose gradient the user replaced, a sparse one and a shared one end up in the vector as well."""

    class Words(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(3)
            self.words = nn.Embedding(8, 4, sparse=True)
            self.out = nn.Linear(4, 8, bias=False)
            self.out.weight = nn.Parameter(self.out.weight)
            self.twice = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.twice(self.twice(self.words(x))))

    def grads(model: nn.Module) -> torch.Tensor:
        return torch.cat([p.grad.to_dense().flatten() for p in model.parameters()])

    x = torch.tensor([1, 3, 3])
    expected = Words()
    expected(x).pow(2).mean().backward()
    model, group = Words(), Alone()
    gradients = Gradients(model, 1)
    for replaced in (False, True):
        gradients.begin(group)
        if replaced:
            for p in model.parameters():
                p.grad = None
        (model(x).pow(2).mean() * 3).backward()
        gradients.reduce(Part(3, 0.0, 0, 0.0))
        assert torch.allclose(grads(model), grads(expected), rtol=1e-5)


def test_kinds_of_parameters() -> None:
    """BF16 travels as FP32 and comes back; FP64, complex and none at all are refused by name; frozen ones stay out."""
    model = network()
    model[2].bfloat16()
    model[0].weight.requires_grad_(False)
    gradients = Gradients(model, 1)
    assert "0.weight" not in gradients.names
    gradients.begin(Alone())
    hidden = model[1](model[0](torch.ones(2, 6)))
    model[4](model[2](hidden.bfloat16()).float()).sum().backward()
    before = model[2].weight.grad.clone()
    gradients.reduce(Part(2, 0.0, 0, 0.0))
    assert model[2].weight.grad.dtype == torch.bfloat16
    assert torch.equal(model[2].weight.grad, before / 2)
    assert model[0].weight.grad is None
    for bad, word in ((network().double(), "float64"), (nn.Linear(2, 2, dtype=torch.complex64), "complex")):
        with pytest.raises(ParameterRefused, match=word):
            Gradients(bad, 1)
    with pytest.raises(ParameterRefused, match="nothing to train"):
        Gradients(nn.ReLU(), 1)
    with pytest.raises(ParameterRefused, match="meta"):
        Gradients(nn.Linear(2, 2, device="meta"), 1)
    with pytest.raises(ParameterRefused, match="weight has no shape"):
        Gradients(nn.LazyLinear(2), 1)
    model[0].weight.requires_grad_(True)
    with pytest.raises(ParameterRefused, match=r"0\.weight requires a gradient now"):
        gradients.begin(Alone())


def test_gradient_that_comes_twice() -> None:
    """Reentrant checkpointing adds to a gradient that was sent already: refused; right without overlap."""

    class Again(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(4)
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(2):
                x = checkpoint(self.layer, x, use_reentrant=True)
            return x

    x = torch.ones(2, 4, requires_grad=True)
    expected = Again()
    expected(x).sum().backward()
    for overlap in (False, True):
        model = Again()
        gradients = Gradients(model, 1, bucket_bytes=4, overlap=overlap)
        gradients.begin(Alone())
        if overlap:
            with pytest.raises(ParameterRefused, match=r"layer\..*twice"):
                model(x).sum().backward()
        else:
            (model(x).sum() * 2).backward()
            gradients.reduce(Part(2, 0.0, 0, 0.0))
            assert torch.allclose(flat(model), flat(expected))


def test_unused_parameters() -> None:
    """What no rank used has no gradient while the optimizer runs, and a view again afterwards."""
    model = network()
    model.append(nn.Linear(5, 5))
    gradients = Gradients(model, 1)
    gradients.begin(Alone())
    model[:5](torch.ones(2, 6)).sum().backward()
    gradients.reduce(Part(2, 0.0, 0, 0.0))
    with gradients.applied():
        assert model[5].weight.grad is None
        assert model[4].weight.grad is not None
    assert model[5].weight.grad is not None


def test_not_finite() -> None:
    """All ranks hear which parameters and which rank, and no number of anybody's."""

    models = [network(), network()]

    def run(group: Member) -> str:
        model = models[group.rank]
        gradients = Gradients(model, group.size)
        gradients.begin(group)
        factor = torch.tensor(float("nan") if group.rank == 1 else 1.0)
        (model[4](model[:4](torch.ones(2, 6)).detach()).sum() * factor).backward()
        totals, finite = gradients.reduce(Part(2, float("inf") if group.rank == 1 else 1.0, 0, 0.0))
        assert not finite
        assert totals.faulty == (1,)
        problem = gradients.blame(totals)
        assert problem.parameter == "4.weight"
        return str(problem)

    texts = together(2, run)
    assert texts[0] == texts[1]
    assert "4.weight, 4.bias" in texts[0]
    assert "ranks [1]" in texts[0]
