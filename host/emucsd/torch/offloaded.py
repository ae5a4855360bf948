"""A DLRM-style model, tables and MLPs, moved into a drive: the same call, computed there."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray

from emucsd.drive import Drive
from emucsd.rm.model import Model
from emucsd.rm.session import Session
from emucsd.rm.shape import Activation, EmbeddingTable, Interaction, Layer
from emucsd.rm.weights import Weights
from emucsd.table import Table
from emucsd.torch.bag import EmbeddingBag
from emucsd.torch.errors import NoGradient, NotOffloadable

_ACTIVATIONS: dict[type, Activation] = {torch.nn.ReLU: "relu", torch.nn.Sigmoid: "sigmoid"}
_NOTHING = (torch.nn.Identity, torch.nn.Dropout)  # what an evaluated model passes through


class _Bag(NamedTuple):
    """What of an embedding bag the host keeps."""

    padding_idx: int | None
    include_last_offset: bool
    weights: NDArray[np.float32] | None  # DLRM's weighted pooling: a learned factor for each row


class OffloadedModel(torch.nn.Module):  # type: ignore[misc]  # torch's types are not looked at
    """What ``offload`` returns. Has no parameters; close it, or use it in a ``with``.

    :ivar session: the session in the drive: ``session.info`` is its mapping, ``session.stream`` its pipeline
    :ivar model: the shape that was found
    """

    def __init__(self, session: Session, bags: Sequence[_Bag], call: _Call, clamp: float, tables: list[Table]) -> None:
        super().__init__()
        self.session, self.model = session, session.model
        self._bags, self._call, self._clamp, self._tables = tuple(bags), call, clamp, tables
        self.eval()

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """The original's arguments, and its result: float32 tensor [samples, outputs].

        :raises NoGradient: in training mode with gradients on, or where the dense features want one
        :raises IndexOutOfRangeOfTable: an id names no row
        """
        dense, pairs = self._call(*arguments, **named)
        if torch.is_grad_enabled() and (self.training or dense.requires_grad):
            raise NoGradient("this model runs in a drive, forward only: call eval(), or use torch.inference_mode()")
        features = dense.detach().to(device="cpu", dtype=torch.float32).contiguous().numpy()
        sparse = [self._bag(bag, *pair) for bag, pair in zip(self._bags, pairs, strict=True)]
        if any(len(item) == 3 for item in sparse):
            sparse = [item if len(item) == 3 else (*item, np.ones(len(item[0]), np.float32)) for item in sparse]
        answer = torch.from_numpy(self.session.infer(features, sparse))
        if 0.0 < self._clamp < 1.0:
            answer = torch.clamp(answer, min=self._clamp, max=1.0 - self._clamp)
        return answer.to(dense.device)

    def _bag(self, bag: _Bag, indices: Any, offsets: Any) -> tuple[Any, ...]:
        """One table's inputs: (indices, offsets), or with weights."""
        ids = indices.detach().cpu().numpy()
        if ids.ndim == 2:
            bounds = np.arange(len(ids) + 1, dtype=np.int64) * ids.shape[1]
            ids = ids.reshape(-1)
        else:
            bounds = offsets.detach().cpu().numpy()
            if not bag.include_last_offset:
                bounds = np.append(bounds, len(ids))
        factors = None
        if bag.weights is not None:
            factors = bag.weights[np.clip(ids, 0, len(bag.weights) - 1)]  # what is out of range, the drive refuses
        if bag.padding_idx is not None:
            ids, bounds, factors = _without(bag.padding_idx, ids, bounds, factors)
        return (ids, bounds) if factors is None else (ids, bounds, factors)

    def close(self) -> None:
        """Close the session, and the tables that were made for it; they stay stored."""
        self.session.close()
        for table in self._tables:
            table.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        model = self.model
        return f"{model.name}: {len(model.tables)} tables, {len(model.layers)} layers, {model.interaction}"


_Call = Callable[
    ..., tuple[Any, list[tuple[Any, Any]]]
]  # the original's arguments -> dense, (indices, offsets) a table


def offload(
    module: Any,
    drive: Drive,
    *,
    bottom: str = "bot_l",
    top: str = "top_l",
    tables: str = "emb_l",
    interaction: Interaction | None = None,
    adapt: _Call | None = None,
    lookups: int = 1,
    name: str | None = None,
    nsid: int = 1,
    dtype: str = "float32",
    **options: Any,
) -> OffloadedModel:
    """Move a model's tables and MLPs into a drive.

    :param module: a ``torch.nn.Module`` built as DLRM's: a Sequential over the dense features, EmbeddingBags, their
        interaction, a Sequential over that
    :param bottom, top, tables: its attributes, dots for nested ones. ``bottom`` may be missing or empty
    :param interaction: ``cat`` or ``dot``; None: the module's ``arch_interaction_op``
    :param adapt: takes the forward pass's arguments and returns (dense, [(indices, offsets) for each table]); None: the
        arguments are dense features, offsets and indices, or indices and offsets, as their names say
    :param lookups: ids a bag, as expected: the kernel search plans for that many
    :param name: of the tables, with their numbers; default: the class's
    :param dtype: that the tables' rows are stored as: float32, float16, int8 or int4
    :param options: of ``Session.open``: ``depth``, ``decompose``, ``fpga`` …
    :returns: a module that is called as the original; close it
    :raises NotOffloadable: a part is built otherwise; the text names it
    :raises RmError: the drive can't take the model
    """
    call = adapt or _call_of(module)
    shape = interaction or getattr(module, "arch_interaction_op", None)
    if shape not in ("cat", "dot"):
        raise NotOffloadable("the module does not say how it joins its parts: give interaction='cat' or 'dot'")
    if getattr(module, "arch_interaction_itself", False):
        raise NotOffloadable("arch_interaction_itself: products of a vector with itself are not computed in the drive")
    bags = list(_part(module, tables) or ())
    first, lower = _stack(_part(module, bottom), bottom)
    second, upper = _stack(_part(module, top), top)
    pooling = [_checked_bag(number, bag) for number, bag in enumerate(bags)]
    embeddings = tuple(
        EmbeddingTable(bag.num_embeddings, bag.embedding_dim, lookups, mode)
        for bag, mode in zip(bags, pooling, strict=True)
    )
    dense = lower[0].inputs if lower else _dense_width(upper, embeddings, shape)
    called = name or type(module).__name__.lower()
    model = Model(called, dense, tuple(lower), embeddings, shape, tuple(upper))
    weights = Weights.of(model, [*first, *second])
    own: list[Table] = []
    try:
        opened = [_table_of(bag, drive, f"{called}.{n}", nsid, dtype, own) for n, bag in enumerate(bags)]
        session = Session.open(drive, model, tables=opened, weights=weights, **options)
    except BaseException:
        for table in own:
            table.close()
        raise
    kept = [_Bag(b.padding_idx, b.include_last_offset, _pooling_weights(module, n)) for n, b in enumerate(bags)]
    return OffloadedModel(session, kept, call, float(getattr(module, "loss_threshold", 0.0) or 0.0), own)


def _part(module: Any, path: str) -> Any:
    """An attribute by its path; None where there is none."""
    for step in path.split("."):
        module = getattr(module, step, None)
    return module


def _stack(sequence: Any, path: str) -> tuple[list[tuple[Any, Any]], list[Layer]]:
    """(weight, bias) and shape of the layers of a Sequential. :raises NotOffloadable: something else is in it"""
    weights: list[tuple[Any, Any]] = []
    layers: list[Layer] = []
    for number, step in enumerate(sequence if sequence is not None else ()):
        if isinstance(step, torch.nn.Linear):
            weights.append((step.weight, step.bias))
            layers.append(Layer(step.in_features, step.out_features, "none"))
        elif type(step) in _ACTIVATIONS and layers and layers[-1].activation == "none":
            layers[-1] = layers[-1]._replace(activation=_ACTIVATIONS[type(step)])
        elif not isinstance(step, _NOTHING):
            raise NotOffloadable(
                f"{path}[{number}] is {type(step).__name__}; the drive computes Linear layers, each followed by ReLU, "
                "Sigmoid or nothing"
            )
    return weights, layers


def _checked_bag(number: int, bag: Any) -> Any:
    """How it pools. :raises NotOffloadable: no embedding bag, or one that the drive can't follow"""
    if not isinstance(bag, torch.nn.EmbeddingBag | EmbeddingBag):
        raise NotOffloadable(f"table {number} is {type(bag).__name__}; the drive sums up EmbeddingBags")
    if bag.mode not in ("sum", "mean") or getattr(bag, "max_norm", None) is not None:
        raise NotOffloadable(f"table {number} has mode {bag.mode!r}, max_norm {bag.max_norm}; sum and mean can be had")
    return bag.mode


def _dense_width(upper: Sequence[Layer], tables: Sequence[EmbeddingTable], interaction: str) -> int:
    """Dense features of a model without bottom layers: what the first top layer takes beside the sums."""
    if not upper or not tables:
        raise NotOffloadable("no layers and tables were found: give bottom=, top= and tables= the attributes' names")
    if interaction == "dot":
        return tables[0].dim
    return max(upper[0].inputs - sum(table.dim for table in tables), 0)


def _table_of(bag: Any, drive: Drive, name: str, nsid: int, dtype: str, own: list[Table]) -> Table:
    """Its table in the drive: there already, or made now."""
    if isinstance(bag, EmbeddingBag):
        return bag.table
    rows = bag.weight.detach().to(device="cpu", dtype=torch.float32).contiguous().numpy()
    table = Table.create(drive, name, rows, nsid=nsid, dtype=dtype)
    own.append(table)
    return table


def _without(
    padding: int, ids: NDArray[np.int64], bounds: NDArray[np.int64], factors: NDArray[np.float32] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32] | None]:
    """NDArray[np.int64], offsets and factors with the padding row's ids taken out."""
    keep = ids != padding
    if keep.all():
        return ids, bounds, factors
    left = np.concatenate([[0], np.cumsum(keep)])
    if len(bounds) and (int(bounds.max()) > len(ids) or int(bounds.min()) < 0):
        return ids, bounds, factors  # the lookup says what is wrong with them
    return ids[keep], left[bounds].astype(np.int64), None if factors is None else factors[keep]


def _pooling_weights(module: Any, number: int) -> NDArray[np.float32] | None:
    """DLRM's --weighted-pooling: ``v_W_l[number]``, a factor for each row."""
    factors = getattr(module, "v_W_l", None)
    if factors is None or factors[number] is None:
        return None
    taken: NDArray[np.float32] = factors[number].detach().to(device="cpu", dtype=torch.float32).numpy()
    return taken


def _call_of(module: Any) -> _Call:
    """How to read the forward pass's arguments. :raises NotOffloadable: their names do not say it"""
    signature = inspect.signature(module.forward)
    names = list(signature.parameters)
    offsets = [n for n in names if n.lower().endswith("_o") or "offset" in n.lower()]
    indices = [n for n in names if n.lower().endswith("_i") or "indic" in n.lower() or "ids" in n.lower()]
    rest = [n for n in names if n not in (*offsets, *indices)]
    if (len(names), len(offsets), len(indices)) != (3, 1, 1) or rest != names[:1]:
        raise NotOffloadable(
            f"forward({', '.join(names)}): which are dense features, indices and offsets? Give adapt=, a function of "
            "the same arguments that returns (dense, [(indices, offsets) for each table])"
        )

    def call(*arguments: Any, **named: Any) -> tuple[Any, list[tuple[Any, Any]]]:
        bound = signature.bind(*arguments, **named).arguments
        return bound[rest[0]], list(zip(bound[indices[0]], bound[offsets[0]], strict=True))

    return call
