"""emucsd.torch.offload on a real drive process: a DLRM-style model answers as before, from inside the drive."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from emucsd import Drive
from emucsd.rm import InputError
from emucsd.rm.errors import IndexOutOfRangeOfTable
from emucsd.table import TableClosed

torch = pytest.importorskip("torch")
from emucsd.torch import EmbeddingBag, NoGradient, NotOffloadable, offload  # noqa: E402  (there is PyTorch)

nn = torch.nn

ROWS, DIM = (40, 50, 60), 8


def mlp(*widths: int, last: Any = None) -> Any:
    """Linear layers with ReLU between them, as DLRM makes them."""
    steps: list[Any] = []
    for inputs, outputs in itertools.pairwise(widths):
        steps += [nn.Linear(inputs, outputs), nn.ReLU()]
    steps[-1] = last or nn.ReLU()
    return nn.Sequential(*steps)


class Dlrm(nn.Module):  # type: ignore[misc, name-defined]  # torch's types are not looked at
    """A model with DLRM's attributes, arguments and arithmetic."""

    def __init__(self, interaction: str = "dot", mode: str = "sum", threshold: float = 0.0, **bag: Any) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.arch_interaction_op, self.loss_threshold = interaction, threshold
        self.emb_l = nn.ModuleList(nn.EmbeddingBag(rows, DIM, mode=mode, **bag) for rows in ROWS)
        self.bot_l = mlp(5, 12, DIM)
        self.top_l = mlp(DIM + (6 if interaction == "dot" else 3 * DIM), 16, 1, last=nn.Sigmoid())
        self.v_W_l: Any = None

    def pooled(self, lS_o: Any, lS_i: Any) -> list[Any]:  # noqa: N803 (DLRM's names)
        weights = [None] * 3 if self.v_W_l is None else [w[i] for w, i in zip(self.v_W_l, lS_i, strict=True)]
        return [bag(i, o, per_sample_weights=w) for bag, i, o, w in zip(self.emb_l, lS_i, lS_o, weights, strict=True)]

    def forward(self, dense_x: Any, lS_o: Any, lS_i: Any) -> Any:  # noqa: N803
        lower = self.bot_l(dense_x)
        sums = self.pooled(lS_o, lS_i)
        if self.arch_interaction_op == "cat":
            joined = torch.cat([lower, *sums], dim=1)
        else:
            vectors = torch.stack([lower, *sums], dim=1)
            products = torch.bmm(vectors, vectors.transpose(1, 2))
            rows, columns = torch.tril_indices(4, 4, -1)
            joined = torch.cat([lower, products[:, rows, columns]], dim=1)
        answer = self.top_l(joined)
        if 0.0 < self.loss_threshold < 1.0:
            answer = torch.clamp(answer, min=self.loss_threshold, max=1.0 - self.loss_threshold)
        return answer


@pytest.fixture(scope="module")
def drive() -> Iterator[Drive]:
    with Drive.start("rmssd", size=64 << 20, clock="virtual", memory=128 << 20) as started:
        yield started


def inputs(samples: int = 7, seed: int = 0) -> tuple[Any, Any, list[Any]]:
    """Dense features, offsets and indices, with bags of any length."""
    torch.manual_seed(seed)
    counts = torch.randint(0, 5, (3, samples))
    indices = [torch.randint(0, rows, (int(row.sum()),)) for rows, row in zip(ROWS, counts, strict=True)]
    return torch.randn(samples, 5), torch.cumsum(counts, 1) - counts, indices


def check(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("interaction", ["cat", "dot"])
def test_same_answer(drive: Drive, interaction: str, mode: str) -> None:
    """The module is called as before and answers as before, within 1e-5; its tables are in the drive."""
    model = Dlrm(interaction, mode).eval()
    with torch.no_grad(), offload(model, drive, name=f"same-{interaction}-{mode}") as fast:
        for samples in (1, 40):
            check(fast(*inputs(samples)), model(*inputs(samples)))
        dense, offsets, indices = inputs(3)
        check(fast(dense, lS_i=indices, lS_o=offsets), model(dense, offsets, indices))
        assert [len(table) for table in fast.session.tables] == list(ROWS)
        assert f"3 tables, 4 layers, {interaction}" in repr(fast)
    with pytest.raises(TableClosed):
        fast.session.tables[0].lookup([0], [0])


def test_options_of_bags(drive: Drive) -> None:
    """Padding rows do not count, offsets may end with the number of ids, and answers are clamped as DLRM does."""
    model = Dlrm(threshold=0.45, padding_idx=3).eval()
    ended = Dlrm(include_last_offset=True).eval()
    with torch.no_grad():
        with offload(model, drive, name="padded") as fast:
            dense, offsets, indices = inputs(30)
            indices[1][::3] = 3
            check(fast(dense, offsets, indices), model(dense, offsets, indices))
        with offload(ended, drive, name="ended") as fast:
            dense, offsets, indices = inputs(4)
            last = torch.tensor([[len(ids)] for ids in indices])
            offsets = torch.cat([offsets, last], dim=1)
            check(fast(dense, offsets, indices), ended(dense, offsets, indices))


def test_weighted_pooling(drive: Drive) -> None:
    """DLRM's --weighted-pooling: a learned factor for each row."""
    model = Dlrm().eval()
    model.v_W_l = nn.ParameterList(nn.Parameter(torch.rand(rows)) for rows in ROWS)
    with torch.no_grad(), offload(model, drive, name="weighted") as fast:
        check(fast(*inputs(9)), model(*inputs(9)))


def test_other_names_and_arguments(drive: Drive) -> None:
    """A model with other names is told by its attributes' paths, one with other arguments by a function."""

    class Other(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, inner: Dlrm) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, batch: dict[str, Any]) -> Any:
            return self.inner(batch["dense"], batch["offsets"], batch["ids"])

    def adapt(batch: dict[str, Any]) -> tuple[Any, list[tuple[Any, Any]]]:
        return batch["dense"], list(zip(batch["ids"], batch["offsets"], strict=True))

    other = Other(Dlrm("cat")).eval()
    names: dict[str, Any] = {"bottom": "inner.bot_l", "top": "inner.top_l", "tables": "inner.emb_l"}
    dense, offsets, ids = inputs()
    batch = {"dense": dense, "offsets": offsets, "ids": ids}
    with torch.no_grad(), offload(other, drive, adapt=adapt, interaction="cat", name="other", **names) as fast:
        check(fast(batch), other(batch))
    with pytest.raises(NotOffloadable, match="Give adapt="):
        offload(other, drive, interaction="cat", **names)


def test_tables_that_are_there_already(drive: Drive) -> None:
    """Embedding bags that lie in the drive are used where they are, and stay open."""
    model = Dlrm().eval()
    moved = Dlrm().eval()
    moved.emb_l = nn.ModuleList(EmbeddingBag.from_module(bag, drive) for bag in model.emb_l)
    with torch.no_grad():
        check(moved(*inputs()), model(*inputs()))
        with offload(moved, drive) as fast:
            check(fast(*inputs()), model(*inputs()))
        check(moved(*inputs()), model(*inputs()))
    for bag in moved.emb_l:
        bag.close()


def test_without_bottom_layers(drive: Drive) -> None:
    """Dense features may go straight into the interaction."""
    model = Dlrm("cat").eval()
    model.bot_l = nn.Sequential()
    model.top_l = mlp(5 + 3 * DIM, 4, 2, last=nn.Identity())
    with torch.no_grad(), offload(model, drive, name="flat") as fast:
        check(fast(*inputs()), model(*inputs()))


def test_forward_only(drive: Drive) -> None:
    """No gradient is promised, and bad ids are told by their table."""
    with offload(Dlrm().eval(), drive, name="forward") as fast:
        dense, offsets, indices = inputs(3)
        fast(dense, offsets, indices)
        with pytest.raises(NoGradient, match=r"eval\(\)"):
            fast(dense.requires_grad_(), offsets, indices)
        fast.train()
        with pytest.raises(NoGradient, match="forward only"):
            fast(dense.detach(), offsets, indices)
        with torch.inference_mode():
            fast(dense, offsets, indices)
            with pytest.raises(IndexOutOfRangeOfTable, match="table 2"):
                fast(dense, offsets, [*indices[:2], torch.full_like(indices[2], 60)])
            with pytest.raises(InputError, match=r"takes \[samples, 5\]"):
                fast(dense[:, 1:], offsets, indices)


def test_what_can_t_be_moved(drive: Drive) -> None:
    """A part that the drive can't compute is named; nothing is left open."""
    tanh, bag, nothing, itself = Dlrm(), Dlrm(), nn.Module(), Dlrm()
    tanh.top_l[1] = nn.Tanh()
    bag.emb_l[1] = nn.EmbeddingBag(50, DIM, mode="max")
    nothing.forward = Dlrm().forward
    itself.arch_interaction_itself = True
    for module, words in (
        (tanh, r"top_l\[1\] is Tanh"),
        (bag, "table 1 has mode 'max'"),
        (nothing, "interaction='cat' or 'dot'"),
        (itself, "itself"),
    ):
        with pytest.raises(NotOffloadable, match=words):
            offload(module, drive)
    with pytest.raises(NotOffloadable, match="no layers and tables were found"):
        offload(nothing, drive, interaction="cat")
