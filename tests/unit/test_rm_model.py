"""Recommendation models: shapes as published, weights from PyTorch, answers as PyTorch's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from emucsd.rm import EmbeddingTable, InputError, Layer, Model, ModelError, UnknownArgument, Weights, WeightsMissing
from emucsd.rm.errors import IndexOutOfRangeOfTable
from emucsd.rm.shape import stack

Floats = NDArray[np.float32]

KAGGLE = (
    "--arch-sparse-feature-size=16 --arch-embedding-size=100-200-300 --arch-mlp-bot=13-512-256-64-16 "
    "--arch-mlp-top=512-256-1 --arch-interaction-op=dot"
)


def small(interaction: str = "cat", pooling: str = "sum") -> Model:
    """Seven dense features, three tables of eight elements, bags of four."""
    tables = tuple(EmbeddingTable(rows, 8, 4, pooling) for rows in (50, 60, 70))  # type: ignore[arg-type]
    width = 8 + (24 if interaction == "cat" else 6)
    top = stack((width, 12, 2), last="sigmoid")
    return Model("small", 7, stack((7, 16, 8)), tables, interaction, top)  # type: ignore[arg-type]


# -- the published ones


@pytest.mark.parametrize(
    ("name", "lookups", "width", "macs"),
    [("rmc1", 640, 288, 100_416), ("rmc2", 3840, 2112, 319_552), ("rmc3", 200, 352, 3_203_328)],
)
def test_rmc(name: str, lookups: int, width: int, macs: int) -> None:
    """RMC1-3 have the lookups, the widths and the multiplications that follow from DeepRecSys' configurations."""
    model = Model.named(name)
    assert (model.lookups, model.interaction_width, model.macs) == (lookups, width, macs)


@pytest.mark.parametrize(("name", "size"), [("rmc1", 0.385), ("rmc2", 1.220), ("rmc3", 12.228)])
def test_weights_have_the_published_size(name: str, size: float) -> None:
    """The MLPs take the bytes that RM-SSD reports: 0.39, 1.23 and 12.23 MB."""
    assert Model.named(name).parameter_bytes / 2**20 == pytest.approx(size, abs=0.001)


def test_models_without_bottom_layers() -> None:
    """NCF and WnD take their dense features straight into the concatenation."""
    ncf, wnd = Model.ncf(), Model.wnd()
    assert (ncf.bottom, ncf.bottom_width, ncf.interaction_width) == ((), 512, 512 + 4 * 64)
    assert (wnd.bottom, wnd.interaction_width, wnd.outputs) == ((), 512 + 27 * 32, 1)
    assert [table.rows for table in ncf.tables] == [140_000, 140_000, 28_000, 28_000]


def test_rows_are_scaled() -> None:
    """Rows are the caller's choice: one number, or one for each table."""
    assert {table.rows for table in Model.rmc1(rows=1000).tables} == {1000}
    assert [table.rows for table in Model.ncf([4, 3, 2, 1]).tables] == [4, 3, 2, 1]
    assert [table.rows for table in Model.ncf().with_rows(9).tables] == [9] * 4
    assert Model.rmc1().with_lookups(3).lookups == 24
    with pytest.raises(ModelError, match="2 row counts for 4 tables"):
        Model.ncf().with_rows([1, 2])


# -- what makes no model


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tables": ()}, "0 tables"),
        ({"tables": (EmbeddingTable(1, 8),) * 65}, "65 tables"),
        ({"tables": (EmbeddingTable(0, 8),)}, "rows and dim are at least 1"),
        ({"top": ()}, "no top layers"),
        ({"top": (Layer(31, 1),)}, "32 elements come in"),
        ({"bottom": (Layer(7, 9),)}, "33 elements come in"),
        ({"interaction": "sum"}, "use 'cat' or 'dot'"),
        ({"top": (Layer(32, 1, "tanh"),)}, "activation 'tanh'"),  # type: ignore[arg-type]
        ({"top": stack((32, *[4] * 40))}, "a session holds 32"),
    ],
)
def test_a_shape_that_fits_nothing(change: dict[str, Any], words: str) -> None:
    """Layers, tables and interaction are checked against each other when a model is made."""
    model = small()
    shape = {"dense": 7, "bottom": model.bottom, "tables": model.tables, "interaction": "cat", "top": model.top}
    with pytest.raises(ModelError, match=words):
        Model("wrong", **{**shape, **change})


def test_dot_needs_one_width() -> None:
    """Dot products of vectors of different widths are refused, with the widths."""
    with pytest.raises(ModelError, match=r"\[8, 9\]"):
        Model("wrong", 7, stack((7, 8)), (EmbeddingTable(5, 9),), "dot", (Layer(9, 1),))


# -- facebookresearch/dlrm


def test_dlrm_arguments() -> None:
    """DLRM's own script for Criteo Kaggle gives its model: the top layers' input is 16 + 6 dot products here."""
    model = Model.from_dlrm_args(KAGGLE)
    assert [(layer.inputs, layer.outputs) for layer in model.bottom] == [(13, 512), (512, 256), (256, 64), (64, 16)]
    assert [(layer.inputs, layer.outputs) for layer in model.top] == [(22, 512), (512, 256), (256, 1)]
    assert [layer.activation for layer in model.top] == ["relu", "relu", "sigmoid"]
    assert [table[:3] for table in model.tables] == [(100, 16, 10), (200, 16, 10), (300, 16, 10)]


def test_dlrm_inputs() -> None:
    """Arguments of inputs are read as well, in either spelling; a bag's ids are distinct, as DLRM draws them."""
    more = "--num-indices-per-lookup 5 --mini-batch-size=8 --max-ind-range=150 --data-size=20"
    said = Model.dlrm_arguments([*KAGGLE.split(), *more.split(), "--num-indices-per-lookup-fixed", "true"])
    assert (said.inputs.lookups, said.inputs.batch, said.inputs.batches, said.inputs.fixed) == (5, 8, 3, True)
    assert [table.rows for table in said.model.tables] == [100, 150, 150]
    batches = list(said.random_batches())
    assert len(batches) == 3
    dense, sparse = batches[0]
    assert dense.shape == (8, 13)
    for indices, offsets in sparse:
        for bag in np.split(indices, offsets[1:]):
            assert 1 <= len(bag) <= 5
            assert len(set(bag.tolist())) == len(bag)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("--arch-mlp-bott=3-2 --lr 0.1", ("arch-mlp-bott", "lr")),
        ("--arch-interaction-op=sum", ("arch-interaction-op",)),
        ("--arch-interaction-itself", ("arch-interaction-itself",)),
        ("--arch-mlp-bot=3-x", ("arch-mlp-bot",)),
        ("--quantize-emb-with-bit=5", ("quantize-emb-with-bit",)),
        ("--arch-mlp-bot", ("arch-mlp-bot",)),
    ],
)
def test_unknown_dlrm_arguments(text: str, names: tuple[str, ...]) -> None:
    """What means nothing here is refused, all of it at once and by name."""
    with pytest.raises(UnknownArgument, match=names[0]) as found:
        Model.dlrm_arguments(text)
    assert found.value.names == names


# -- weights


def state_of(weights: Weights, tables: Sequence[Floats], model: Model) -> dict[str, Floats]:
    """DLRM's names: a Sequential counts the activations between the layers."""
    state = {}
    for number, layer in enumerate(weights.layers):
        group, place = ("bot_l", number) if number < len(model.bottom) else ("top_l", number - len(model.bottom))
        state[f"{group}.{2 * place}.weight"], state[f"{group}.{2 * place}.bias"] = layer
    return {**state, **{f"emb_l.{n}.weight": rows for n, rows in enumerate(tables)}}


def test_weights_from_a_state_dict() -> None:
    """DLRM's names, other prefixes and one plain Sequential all give the same weights; tables come along."""
    model = small()
    weights = model.random_weights(3)
    tables = [model.random_table(n, 3) for n in range(3)]
    state = state_of(weights, tables, model)
    renamed = {name.replace("bot_l", "deep.a").replace("top_l", "deep.b"): value for name, value in state.items()}
    plain = {f"{3 * n}.{kind}": v for n, layer in enumerate(weights.layers) for kind, v in layer._asdict().items()}
    for found in (
        model.weights_from_state_dict(state),
        model.weights_from_state_dict(renamed, bottom="deep.a", top="deep.b"),
        model.weights_from_state_dict(plain),
    ):
        for layer, wanted in zip(found.layers, weights.layers, strict=True):
            assert np.array_equal(layer.weight, wanted.weight)
            assert np.array_equal(layer.bias, wanted.bias)
    assert all(np.array_equal(a, b) for a, b in zip(model.weights_from_state_dict(state).tables, tables, strict=True))


def test_weights_that_do_not_fit() -> None:
    """Missing layers and other shapes are named."""
    model = small()
    state = state_of(model.random_weights(), [], model)
    with pytest.raises(WeightsMissing, match="bottom layer 1") as missing:
        model.weights_from_state_dict({k: v for k, v in state.items() if not k.startswith("bot_l.2")})
    assert missing.value.layers == ("bottom layer 1",)
    with pytest.raises(WeightsMissing, match="give bottom="):
        model.weights_from_state_dict({"fc1.weight": np.zeros((3, 3), np.float32)})
    with pytest.raises(ModelError, match=r"top layer 0's weight is \[3, 3\]; the model's is \[12, 32\]"):
        model.weights_from_state_dict({**state, "top_l.0.weight": np.zeros((3, 3), np.float32)})


def test_random_numbers_are_seeded() -> None:
    """One seed, one set of weights, tables and inputs."""
    model = small()
    for one, two, other in (
        (model.random_weights(1).layers[0].weight, model.random_weights(1).layers[0].weight,
         model.random_weights(2).layers[0].weight),
        (model.random_table(1, 1), model.random_table(1, 1), model.random_table(2, 1)[:60]),
        (model.random_batch(5, 1)[0], model.random_batch(5, 1)[0], model.random_batch(5, 2)[0]),
    ):  # fmt: skip
        assert np.array_equal(one, two)
        assert not np.array_equal(one, other)


# -- answers


def in_torch(model: Model, weights: Weights, tables: Sequence[Floats], batch: Any) -> Floats:
    """DLRM's forward pass, written with torch's own functions."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    dense, sparse = batch

    def layers(values: Any, first: int, last: int) -> Any:
        for number in range(first, last):
            weight, bias = (torch.from_numpy(part) for part in weights.layers[number])
            values = functional.linear(values, weight, bias)
            activation = model.layers[number].activation
            values = torch.relu(values) if activation == "relu" else torch.sigmoid(values)
        return values

    bottom = layers(torch.from_numpy(dense), 0, len(model.bottom))
    sums = [
        functional.embedding_bag(torch.from_numpy(i), torch.from_numpy(t), torch.from_numpy(o), mode=shape.pooling)
        for (i, o), t, shape in zip(sparse, tables, model.tables, strict=True)
    ]
    if model.interaction == "cat":
        joined = torch.cat([bottom, *sums], dim=1)
    else:
        vectors = torch.stack([bottom, *sums], dim=1)
        products = torch.bmm(vectors, vectors.transpose(1, 2))
        count = vectors.shape[1]
        rows = [i for i in range(count) for _ in range(i)]
        columns = [j for i in range(count) for j in range(i)]
        joined = torch.cat([bottom, products[:, rows, columns]], dim=1)
    answer: Floats = layers(joined, len(model.bottom), len(model.layers)).numpy()
    return answer


@pytest.mark.parametrize("pooling", ["sum", "mean"])
@pytest.mark.parametrize("interaction", ["cat", "dot"])
def test_reference_equals_torch(interaction: str, pooling: str) -> None:
    """The NumPy answer is PyTorch's within 1e-5, with bags of any length, empty ones too."""
    model = small(interaction, pooling)
    weights, tables = model.random_weights(1), [model.random_table(n, 1) for n in range(3)]
    dense, _ = model.random_batch(9, 1)
    rng = np.random.default_rng(1)
    lengths = rng.integers(0, 6, (3, 9))
    sparse = [
        (rng.integers(0, table.rows, counts.sum()), np.cumsum(counts) - counts)
        for table, counts in zip(model.tables, lengths, strict=True)
    ]
    ours = model.reference(weights, tables, dense, sparse)
    np.testing.assert_allclose(ours, in_torch(model, weights, tables, (dense, sparse)), rtol=1e-5)


def test_reference_refuses_bad_inputs() -> None:
    """Ids out of range are named by table, position and value; other shapes by what was wanted."""
    model = small()
    weights, tables = model.random_weights(), [model.random_table(n) for n in range(3)]
    dense, sparse = model.random_batch(4)
    sparse[1][0][5] = 60
    with pytest.raises(
        IndexOutOfRangeOfTable, match=r"table 1: indices\[5\] = 60; the table's rows are 0 to 59"
    ) as bad:
        model.reference(weights, tables, dense, sparse)
    assert (bad.value.table, bad.value.position, bad.value.value) == (1, 5, 60)
    with pytest.raises(InputError, match="rows of 2 tables"):
        model.reference(weights, tables[:2], dense, sparse)
