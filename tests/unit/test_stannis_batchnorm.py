"""Batch norm over unequal batches of several ranks is batch norm over all of them."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from torch import nn

from emucsd.stannis.training.batchnorm import Bond, SyncBatchNorm, convert, synchronised
from emucsd.stannis.training.collective import Alone
from emucsd.stannis.training.errors import BatchNormRefused
from tests.unit.stannis_threads import Member, together

CLOSE = 1e-5
SHAPES = {"2d": (nn.BatchNorm2d, (4, 5, 3)), "1d": (nn.BatchNorm1d, (4,)), "1d of lengths": (nn.BatchNorm1d, (4, 6))}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterable[None]:
    """Tiny layers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def layer(kind: Any, **options: Any) -> Any:
    """A layer of 4 channels with weights of its own."""
    torch.manual_seed(6)
    norm = kind(4, **options)
    if norm.affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return norm


def passes(norm: Any, x: torch.Tensor, dy: torch.Tensor) -> dict[str, torch.Tensor]:
    """Two training steps, and all that they leave."""
    outputs, inputs = [], []
    for _ in range(2):
        mine = x.clone().requires_grad_()
        y = norm(mine)
        (y * dy).sum().backward()
        outputs.append(y.detach())
        inputs.append(mine.grad)
    left = {"y": outputs[1], "dx": inputs[1]}
    left |= {name: p.grad for name, p in norm.named_parameters()}
    return left | {name: b.clone() for name, b in norm.named_buffers()}


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"momentum": None}, {"eps": 0.1, "momentum": 0.3}], ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_equals_one_process(name: str, options: dict[str, Any]) -> None:
    """Output, gradients and running statistics of batches of 6, 3, 1 and none equal those of one batch of 10."""
    kind, shape = SHAPES[name]
    counts = (6, 3, 1, 0)
    torch.manual_seed(7)
    x, dy = torch.randn(10, *shape) * 3 + 2, torch.randn(10, *shape)
    norm = layer(kind, **options)
    expected = passes(deepcopy(norm), x, dy)

    def run(group: Member) -> dict[str, torch.Tensor]:
        bond = Bond(group)
        bond.ghost = not counts[group.rank]
        rows = slice(sum(counts[: group.rank]), sum(counts[: group.rank + 1]))
        mine, theirs = (x[:1], dy[:1] * 0) if bond.ghost else (x[rows], dy[rows])
        return passes(convert(deepcopy(norm), bond), mine, theirs)

    found = together(4, run)
    for key, value in expected.items():
        if key in ("y", "dx"):
            joined = torch.cat([found[rank][key] for rank in range(3)])
        elif key in ("weight", "bias"):
            joined = sum((one[key] for one in found), torch.zeros(()))
        else:  # running statistics: each rank has them, the one without samples too
            assert all(torch.equal(one[key], found[0][key]) for one in found)
            joined = found[3][key]
        assert torch.allclose(joined.double(), value.double(), rtol=CLOSE, atol=CLOSE), key


@pytest.mark.parametrize("affine", [True, False])
def test_gradient(affine: bool) -> None:
    """The layer's backward is its forward's derivative, by finite differences."""
    norm = convert(layer(nn.BatchNorm2d, affine=affine).double(), Bond(Alone()))
    x = torch.randn(3, 4, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(8), requires_grad=True)
    assert torch.autograd.gradcheck(norm, (x,))
    if affine:
        assert torch.autograd.gradcheck(
            lambda w, b: torch.func.functional_call(norm, {"weight": w, "bias": b}, (x.detach(),)),
            (norm.weight.detach().requires_grad_(), norm.bias.detach().requires_grad_()),
        )


def test_large_mean() -> None:
    """A mean 10^4 times the deviation, whose square FP32 can't hold beside the variance: right to what FP32 gives x."""
    torch.manual_seed(9)
    x = torch.randn(12, 4, 8, 8) + torch.tensor([1e4, -1e4, 3e3, 0.0]).view(1, 4, 1, 1)
    exact = nn.BatchNorm2d(4, dtype=torch.float64)(x.double()).detach()
    squares = (x * x).mean((0, 2, 3)) - x.mean((0, 2, 3)) ** 2
    assert float((squares - 1).abs().max()) > 1  # what one sum of squares in FP32 would have made of it

    def run(group: Member) -> torch.Tensor:
        rows = slice(0, 9) if group.rank == 0 else slice(9, 12)
        return convert(layer(nn.BatchNorm2d, affine=False), Bond(group))(x[rows]).detach()

    assert float((torch.cat(together(2, run)).double() - exact).abs().max()) < 2e-3


def test_one_value() -> None:
    """One value a channel on each of two ranks is a batch of two; one on all ranks together is refused."""

    def run(group: Member) -> torch.Tensor:
        return convert(nn.BatchNorm1d(4), Bond(group))(torch.full((1, 4), float(group.rank)))

    assert [round(float(y.detach().mean()), 3) for y in together(2, run)] == [-1, 1]
    with pytest.raises(BatchNormRefused, match="1 value a channel"):
        convert(nn.BatchNorm1d(4), Bond(Alone()))(torch.ones(1, 4))


def test_convert() -> None:
    """Every layer is replaced, one used twice by one; names and tensors stay; evaluation mode is PyTorch's own."""
    twice = nn.BatchNorm2d(4)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), twice, nn.Sequential(nn.BatchNorm2d(4), twice), nn.BatchNorm2d(4).eval())
    before, x = dict(model.state_dict()), torch.randn(2, 3, 4, 4)
    expected = model.eval()(x)
    model.train()
    assert not synchronised(model)
    converted = convert(model, Bond(Alone()))
    assert converted is model
    assert synchronised(model)
    assert converted[1] is converted[2][1]
    assert sum(isinstance(module, SyncBatchNorm) for module in model.modules()) == 3
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(after[name].data_ptr() == value.data_ptr() for name, value in before.items())
    assert torch.equal(model.eval()(x), expected)
    assert isinstance(convert(nn.BatchNorm1d(2), Bond(Alone())), SyncBatchNorm)


def test_unknown_kinds() -> None:
    """A batch norm with a class of its own, or without a shape yet, is refused by name."""

    class Own(nn.BatchNorm2d):  # type: ignore[misc]
        pass

    for norm in (Own(4), nn.LazyBatchNorm2d()):
        with pytest.raises(BatchNormRefused, match=rf"0\.1 is a {type(norm).__name__}"):
            convert(nn.Sequential(nn.Sequential(nn.ReLU(), norm)), Bond(Alone()))
