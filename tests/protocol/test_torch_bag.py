"""emucsd.torch.EmbeddingBag on a real drive process: a torch.nn.EmbeddingBag whose rows are elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from emucsd import Drive
from emucsd.errors import InvalidArgument
from emucsd.lookup import IndexOutOfRange
from emucsd.table import Table

torch = pytest.importorskip("torch")
from emucsd.torch import EmbeddingBag, NoGradient  # noqa: E402  (there is PyTorch)

ROWS, DIM = 500, 24


@pytest.fixture(scope="module")
def drive() -> Iterator[Drive]:
    with Drive.start("rmssd", size=32 << 20, clock="virtual", memory=128 << 20) as started:
        yield started


@pytest.fixture(scope="module")
def weight() -> Any:
    """Rows whose sums depend on the order of additions."""
    torch.manual_seed(1)
    return torch.randn(ROWS, DIM) * 10.0 ** torch.randint(-3, 4, (ROWS, 1))


@pytest.fixture(scope="module")
def bag(drive: Drive, weight: Any) -> Iterator[EmbeddingBag]:
    made = EmbeddingBag.from_pretrained(weight, drive, name="shared")
    yield made
    made.close()


def beside(bag: EmbeddingBag, **options: Any) -> EmbeddingBag:
    """Another module over the same table."""
    return EmbeddingBag(bag.table, freeze=True, **options)


def inputs(lengths: list[int], seed: int = 0) -> tuple[Any, Any]:
    torch.manual_seed(seed)
    counts = torch.tensor(lengths)
    return torch.randint(0, ROWS, (int(counts.sum()),)), torch.cumsum(counts, 0) - counts


def equal(ours: Any, theirs: Any) -> bool:
    """Bit for bit."""
    return bool(torch.equal(ours.view(torch.int32), theirs.view(torch.int32)))


@pytest.mark.parametrize("ids_type", ["int64", "int32"])
def test_sums_equal_torch(bag: EmbeddingBag, weight: Any, ids_type: str) -> None:
    """Ids with offsets, and ids [bags, n], give torch's sums bit for bit; empty bags are zeros."""
    theirs = torch.nn.EmbeddingBag.from_pretrained(weight, mode="sum")
    ids, offsets = (tensor.to(getattr(torch, ids_type)) for tensor in inputs([3, 0, 40, 1, 0]))
    assert equal(bag(ids, offsets), theirs(ids, offsets))
    square = ids[:42].reshape(6, 7)
    assert equal(bag(square), theirs(square))


def test_include_last_offset(bag: EmbeddingBag, weight: Any) -> None:
    """Offsets may end with the number of ids."""
    ids, offsets = inputs([3, 0, 5])
    ended = torch.cat([offsets, torch.tensor([8])])
    theirs = torch.nn.EmbeddingBag.from_pretrained(weight, mode="sum", include_last_offset=True)
    assert equal(beside(bag, include_last_offset=True)(ids, ended), theirs(ids, ended))


@pytest.mark.parametrize("padding", [7, -3])
def test_padding_row_does_not_count(bag: EmbeddingBag, weight: Any, padding: int) -> None:
    """The padding row is left out of every bag, also where it is counted from the end."""
    ids, offsets = inputs([3, 4, 5, 2])
    ids[[0, 3, 4, 5, 6, 9]] = padding % ROWS
    theirs = torch.nn.EmbeddingBag.from_pretrained(weight, mode="sum", padding_idx=padding)
    assert equal(beside(bag, padding_idx=padding)(ids, offsets), theirs(ids, offsets))


def test_mean(bag: EmbeddingBag, weight: Any) -> None:
    """Means are torch's within rounding; padding counts neither way, and an empty bag is zeros."""
    ids, offsets = inputs([3, 0, 40, 1])
    ids[2] = 9
    for options in ({}, {"padding_idx": 9}):
        theirs = torch.nn.EmbeddingBag.from_pretrained(weight, mode="mean", **options)
        torch.testing.assert_close(beside(bag, mode="mean", **options)(ids, offsets), theirs(ids, offsets))


def test_per_sample_weights(bag: EmbeddingBag, weight: Any) -> None:
    """A factor for each id, as torch applies it; with means it is refused, as torch does."""
    ids, offsets = inputs([3, 0, 40, 1])
    factors = torch.rand(len(ids))
    theirs = torch.nn.EmbeddingBag.from_pretrained(weight, mode="sum")
    torch.testing.assert_close(bag(ids, offsets, factors), theirs(ids, offsets, factors), rtol=1e-5, atol=1e-6)
    square = ids.reshape(4, 11)
    torch.testing.assert_close(
        bag(square, None, factors.reshape(4, 11)), theirs(square, None, factors.reshape(4, 11)), rtol=1e-5, atol=1e-6
    )
    with pytest.raises(InvalidArgument, match="for 'sum' only"):
        beside(bag, mode="mean")(ids, offsets, factors)
    with pytest.raises(InvalidArgument, match="give one each"):
        bag(ids, offsets, factors[:3])


def test_state_dict_round_trip(drive: Drive, weight: Any) -> None:
    """A model's state_dict has the rows under torch's name; loading writes them to the drive, for torch and for us."""
    ours = torch.nn.Sequential(EmbeddingBag(drive, ROWS, DIM, freeze=True), torch.nn.Linear(DIM, 2))
    theirs = torch.nn.Sequential(torch.nn.EmbeddingBag(ROWS, DIM, mode="sum"), torch.nn.Linear(DIM, 2))
    with torch.no_grad():
        theirs[0].weight.copy_(weight)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    assert equal(ours[0].weight, weight)
    back = torch.nn.Sequential(torch.nn.EmbeddingBag(ROWS, DIM, mode="sum"), torch.nn.Linear(DIM, 2))
    back.load_state_dict(ours.state_dict())
    ids = torch.randint(0, ROWS, (5, 6))
    assert torch.equal(ours(ids), back(ids))
    with pytest.raises(RuntimeError, match=r"size mismatch for 0.weight"):
        ours.load_state_dict({**theirs.state_dict(), "0.weight": weight[1:]})
    with pytest.raises(RuntimeError, match=r"Missing key.*0.weight"):
        ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if k != "0.weight"})
    ours[0].close()


@pytest.mark.parametrize(("stored", "step"), [("float16", 0.01), ("int8", 0.06), ("int4", 0.9)])
def test_narrow_rows(drive: Drive, stored: str, step: float) -> None:
    """Rows may be stored narrower: sums are within their quantisation of torch's, and float32."""
    torch.manual_seed(2)
    weight = torch.randn(40, DIM)
    ids, offsets = torch.randint(0, 40, (6,)), torch.tensor([0, 1, 3])
    ours = EmbeddingBag.from_pretrained(weight, drive, dtype=torch.float16 if stored == "float16" else stored)
    theirs = torch.nn.EmbeddingBag.from_pretrained(weight, mode="sum")
    torch.testing.assert_close(ours(ids, offsets), theirs(ids, offsets), rtol=0, atol=step)
    assert float((ours.weight - weight).abs().max()) <= step
    ours.close()


def test_new_rows_are_torch_s(drive: Drive) -> None:
    """A new bag's rows come from torch's generator, as torch.nn.EmbeddingBag's do, with zeros at the padding row."""
    torch.manual_seed(5)
    theirs = torch.nn.EmbeddingBag(60, 8, padding_idx=3)
    torch.manual_seed(5)
    ours = EmbeddingBag(drive, 60, 8, padding_idx=3, name="fresh")
    assert equal(ours.weight, theirs.weight.detach())
    ours.close()
    again = Table.open(drive, "fresh")
    assert equal(EmbeddingBag(again).weight, theirs.weight.detach())
    again.close()


def test_no_gradient_is_promised(bag: EmbeddingBag, drive: Drive) -> None:
    """Training rows in a drive is refused in words; inference, and training the rest of a model, work."""
    learning = EmbeddingBag(bag.table)
    ids, offsets = inputs([2, 2])
    with pytest.raises(NoGradient, match="freeze=True"):
        learning(ids, offsets)
    with torch.inference_mode():
        learning(ids, offsets)
    learning.eval()(ids, offsets)
    with pytest.raises(NoGradient, match="have no gradient"):
        learning.requires_grad_()
    with pytest.raises(NoGradient, match="detach"):
        bag(ids, offsets, torch.rand(4, requires_grad=True))
    rest = torch.nn.Linear(DIM, 1)
    rest(bag(ids, offsets)).sum().backward()
    assert rest.weight.grad is not None


def test_arguments_that_can_t_be_followed(bag: EmbeddingBag, drive: Drive, weight: Any) -> None:
    """Modes, norms, shapes and ids that the drive has no answer to are refused by name."""
    wrong: dict[str, dict[str, Any]] = {
        "'max'": {"mode": "max"},
        "max_norm": {"max_norm": 1.0},
        "rows are": {"padding_idx": ROWS},
    }
    for words, options in wrong.items():
        with pytest.raises(InvalidArgument, match=words):
            beside(bag, **options)
    with pytest.raises(InvalidArgument, match="500 rows of 9"):
        EmbeddingBag(bag.table, ROWS, 9)
    with pytest.raises(InvalidArgument, match="num_embeddings"):
        EmbeddingBag(drive)
    ids, offsets = inputs([2, 2])
    with pytest.raises(InvalidArgument, match="need offsets"):
        bag(ids)
    with pytest.raises(InvalidArgument, match="have none"):
        bag(ids.reshape(2, 2), offsets)
    with pytest.raises(InvalidArgument, match="3 dimensions"):
        bag(ids.reshape(1, 2, 2))
    with pytest.raises(IndexOutOfRange, match="500"):
        bag(torch.tensor([1, ROWS]), torch.tensor([0]))
    assert "shared" in repr(bag)
