"""One state for all ranks: the newest that any of them has."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import torch

from emucsd.stannis.training.collective import Collective


def newest(
    group: Collective, step: int, state: Callable[[], dict[str, Any]], load: Callable[[dict[str, Any]], None]
) -> int:
    """Give all ranks the state of the rank that has taken most steps; of several the lowest rank's.

    When a rank is lost in the middle of an addition, some of the others may have finished that step and some not. A
    rank that comes anew has taken none, one that resumes from a checkpoint has taken those.

    :param step: how many steps this rank has taken
    :param state: gives this rank's state, if it is the newest
    :param load: takes the newest state, if it is another rank's
    :return: the rank that it came from
    :raises PeerLost: a rank is gone; this one's state is as it was
    """
    if group.size == 1:
        return group.rank
    steps = torch.zeros(group.size, dtype=torch.int64)
    steps[group.rank] = step
    group.all_reduce(steps)
    source = int(steps.argmax())
    data = pack(state()) if group.rank == source else torch.empty(0, dtype=torch.uint8)
    length = torch.tensor([data.numel()], dtype=torch.int64)
    group.broadcast(length, source)
    if group.rank != source:
        data = torch.empty(int(length), dtype=torch.uint8)
    group.broadcast(data, source)
    if group.rank != source:
        load(unpack(data))
    return source


def pack(state: dict[str, Any]) -> torch.Tensor:
    """A state as bytes, UINT8 [n]."""
    stream = io.BytesIO()
    torch.save(state, stream)
    return torch.frombuffer(stream.getbuffer(), dtype=torch.uint8)


def unpack(data: torch.Tensor) -> dict[str, Any]:
    """A state from ``pack``'s bytes; nothing but tensors and plain values is made from them."""
    found: dict[str, Any] = torch.load(io.BytesIO(data.numpy().data), map_location="cpu", weights_only=True)
    return found
