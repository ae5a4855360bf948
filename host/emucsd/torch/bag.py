"""``torch.nn.EmbeddingBag`` whose rows lie in a drive, which adds them up."""

from __future__ import annotations

import uuid
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray

from emucsd.drive import Drive
from emucsd.errors import InvalidArgument
from emucsd.table import Table
from emucsd.torch.errors import NoGradient

Mode = Literal["sum", "mean"]
Ids = NDArray[np.int64]

_CHUNK = 64 << 20  # bytes of random rows made at a time


class EmbeddingBag(torch.nn.Module):  # type: ignore[misc]  # torch's types are not looked at
    """Drops into a model in place of ``torch.nn.EmbeddingBag``; sums are equal bit for bit.

    It has no parameters: rows are read from and written to the drive by ``state_dict`` and ``load_state_dict`` under
    the name ``weight``, and no gradient reaches them.

    :param where: a drive, on which a table is made with random rows; or an open table
    :param num_embeddings, embedding_dim: its shape; of an open table they may be left out
    :param mode: ``sum`` or ``mean``
    :param padding_idx: the row that does not count; counted from the end where negative
    :param include_last_offset: ``offsets`` ends with the number of ids
    :param sparse: accepted; there is no gradient that it could be about
    :param freeze: the rows are not to be learned. Otherwise a forward pass in training mode raises NoGradient, rather
        than leave rows as they are in silence
    :param name: of the table that is made; default: one that is not in use
    :param nsid: namespace of the table that is made
    :param dtype: that its rows are stored as: ``float32``, ``float16``, ``int8``, ``int4``, or ``torch.float16`` …;
        answers are float32 whatever they are
    :raises InvalidArgument: arguments that an embedding bag in a drive can't follow, by name
    """

    def __init__(
        self,
        where: Drive | Table,
        num_embeddings: int | None = None,
        embedding_dim: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: Mode = "sum",
        sparse: bool = False,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        *,
        freeze: bool = False,
        name: str | None = None,
        nsid: int = 1,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if mode not in ("sum", "mean"):
            raise InvalidArgument(f"mode {mode!r}: the drive computes 'sum' and 'mean'")
        if max_norm is not None or scale_grad_by_freq:
            raise InvalidArgument("max_norm and scale_grad_by_freq change rows or gradients; the drive does neither")
        del norm_type, sparse  # without max_norm and without gradients they say nothing
        made = not isinstance(where, Table)
        if isinstance(where, Table):
            table = where
            asked = (len(table) if num_embeddings is None else num_embeddings, embedding_dim or table.dim)
            if asked != (len(table), table.dim):
                raise InvalidArgument(
                    f"{asked[0]} rows of {asked[1]}; table {table.name!r} has {len(table)} of {table.dim}"
                )
        else:
            if num_embeddings is None or embedding_dim is None:
                raise InvalidArgument("a new table needs num_embeddings and embedding_dim")
            padding = _padding(padding_idx, num_embeddings)
            table = _random_table(where, name, num_embeddings, embedding_dim, padding, nsid, dtype)
        self.table, self._own = table, made
        self.num_embeddings, self.embedding_dim = len(table), table.dim
        self.mode, self.include_last_offset, self.freeze = mode, include_last_offset, freeze
        self.padding_idx = _padding(padding_idx, len(table))

    @classmethod
    def from_pretrained(
        cls,
        embeddings: Any,
        where: Drive,
        freeze: bool = True,
        *,
        name: str | None = None,
        nsid: int = 1,
        dtype: Any = None,
        **options: Any,
    ) -> Self:
        """Store rows as a new table.

        :param embeddings: float tensor or array [num_embeddings, embedding_dim]
        :param name, nsid, dtype: of the table, as for the class
        :param options: ``mode``, ``padding_idx``, ``include_last_offset``, ``sparse``, as for the class
        :raises TableShapeError: it has other than two dimensions
        :raises NameTaken: the volume has that name
        """
        rows = _rows(embeddings)
        table = Table.create(where, name or _unused_name(), rows, nsid=nsid, dtype=_stored_as(dtype))
        bag = cls(table, freeze=freeze, **options)
        bag._own = True
        return bag

    @classmethod
    def from_module(cls, module: Any, where: Drive, *, name: str | None = None, nsid: int = 1) -> Self:
        """A ``torch.nn.EmbeddingBag``'s rows and options. :raises InvalidArgument: some that the drive can't follow"""
        return cls.from_pretrained(
            module.weight,
            where,
            not module.weight.requires_grad,
            name=name,
            nsid=nsid,
            max_norm=module.max_norm,
            scale_grad_by_freq=module.scale_grad_by_freq,
            mode=module.mode,
            include_last_offset=module.include_last_offset,
            padding_idx=module.padding_idx,
        )

    # -- forward

    def forward(self, input: Any, offsets: Any = None, per_sample_weights: Any = None) -> Any:
        """As ``torch.nn.EmbeddingBag.forward``.

        :param input: ids: one row of them with ``offsets``, or [bags, n]
        :param per_sample_weights: a factor for each id; with mode ``sum`` only
        :returns: float32 tensor [bags, embedding_dim], on the device of ``input``
        :raises IndexOutOfRange: an id names no row
        :raises NoGradient: in training mode with gradients on, unless frozen; or the weights want one
        """
        self._check_gradients(per_sample_weights)
        ids, bounds = self._bags(input, offsets)
        factors: NDArray[np.float32] | None = None
        if per_sample_weights is not None:
            if self.mode != "sum":
                raise InvalidArgument(f"per_sample_weights with mode {self.mode!r}; PyTorch has them for 'sum' only")
            if tuple(per_sample_weights.shape) != tuple(input.shape):
                raise InvalidArgument(
                    f"per_sample_weights {list(per_sample_weights.shape)} for ids {list(input.shape)}; give one each"
                )
            factors = per_sample_weights.detach().cpu().numpy().astype(np.float32, copy=False).reshape(-1)
        sums = self.table.lookup(
            ids,
            bounds,
            include_last_offset=True,
            mode=self.mode,
            per_sample_weights=factors,
            padding_idx=self.padding_idx,
        )
        return torch.from_numpy(sums.copy()).to(input.device)  # the drive's memory is for the next lookup

    def _check_gradients(self, weights: Any) -> None:
        if not torch.is_grad_enabled():
            return
        if weights is not None and weights.requires_grad:
            raise NoGradient("per_sample_weights want a gradient; the drive computes forward only: detach() them")
        if self.training and not self.freeze:
            raise NoGradient(
                "these rows lie in a drive and are not learned: call eval(), or use torch.inference_mode(), or make "
                "the module with freeze=True where the rest of the model is trained"
            )

    def _bags(self, ids: Any, offsets: Any) -> tuple[Ids, Ids]:
        """Ids in one row, and bags + 1 offsets."""
        if ids.dim() == 2:
            if offsets is not None:
                raise InvalidArgument("offsets are for ids in one row; ids [bags, n] have none")
            bounds = np.arange(ids.shape[0] + 1, dtype=np.int64) * ids.shape[1]
        elif ids.dim() == 1:
            if offsets is None:
                raise InvalidArgument("ids in one row need offsets: where each bag starts")
            bounds = offsets.detach().cpu().numpy().astype(np.int64, copy=False)
            if not self.include_last_offset:
                bounds = np.append(bounds, ids.numel())
        else:
            raise InvalidArgument(f"ids of {ids.dim()} dimensions; give one row with offsets, or [bags, n]")
        return ids.detach().cpu().numpy().reshape(-1), bounds

    # -- rows

    @property
    def weight(self) -> Any:
        """A copy of all rows, read from the drive."""
        return torch.from_numpy(self.table.read_rows())

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        key = f"{prefix}weight"
        rest = {name: value for name, value in state_dict.items() if name != key}
        super()._load_from_state_dict(rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        weight = state_dict.get(key)
        if weight is None:
            if strict:
                missing_keys.append(key)
        elif tuple(weight.shape) != (self.num_embeddings, self.embedding_dim):
            error_msgs.append(
                f"size mismatch for {key}: {list(weight.shape)} in the state_dict, "
                f"{[self.num_embeddings, self.embedding_dim]} in the drive"
            )
        else:
            self.table.write_rows(0, _rows(weight))

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """:raises NoGradient: True; the drive computes forward only"""
        if requires_grad:
            raise NoGradient("rows in a drive have no gradient; train them in torch.nn.EmbeddingBag, then load them")
        self.freeze = True
        return self

    def close(self) -> None:
        """Close the table, where this module opened it. It stays stored."""
        if self._own:
            self.table.close()

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}, mode={self.mode!r}{padding}, table={self.table.name!r}"


def _padding(padding_idx: int | None, rows: int) -> int | None:
    if padding_idx is None:
        return None
    if not -rows <= padding_idx < rows:
        raise InvalidArgument(f"padding_idx {padding_idx}: the rows are {-rows} to {rows - 1}")
    return padding_idx % rows


def _unused_name() -> str:
    return f"embedding-bag-{uuid.uuid4().hex[:12]}"


def _rows(weight: Any) -> NDArray[np.float32]:
    if isinstance(weight, np.ndarray):
        return np.ascontiguousarray(weight, np.float32)
    rows: NDArray[np.float32] = weight.detach().to(device="cpu", dtype=torch.float32).contiguous().numpy()
    return rows


def _random_table(
    drive: Drive, name: str | None, rows: int, dim: int, padding: int | None, nsid: int, dtype: Any
) -> Table:
    """Rows as torch.nn.EmbeddingBag makes them: normal, of variance 1, from torch's own generator; padding is zeros."""
    step = max(1, _CHUNK // (4 * max(dim, 1)))

    def chunks() -> Any:
        for first in range(0, rows, step):
            piece = torch.empty((min(step, rows - first), dim), dtype=torch.float32).normal_()
            if padding is not None and first <= padding < first + len(piece):
                piece[padding - first] = 0
            yield piece.numpy()

    return Table.create(drive, name or _unused_name(), (rows, dim), chunks(), nsid=nsid, dtype=_stored_as(dtype))


def _stored_as(dtype: Any) -> str:
    """The table's name for a row type; PyTorch's are understood."""
    return "float32" if dtype is None else str(dtype).removeprefix("torch.")
