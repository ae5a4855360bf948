"""Sums over all ranks, at the rate of the tunnel."""

from __future__ import annotations

from typing import Any

BUCKET_BYTES = 4 << 20


def all_reduce(group: Any, tensor: Any) -> None:
    """Add a tensor up over all ranks, in place. Each of them gets the same bits.

    :param group: a ``torch.distributed.ProcessGroupGloo``
    :param tensor: contiguous, on the processor; the same shape and dtype on every rank
    :raises RuntimeError: a rank has gone, or did not come within the group's timeout; Gloo says which call failed
    """
    flat = tensor.view(-1)
    step = max(1, BUCKET_BYTES // flat.element_size())
    under_way = [group.allreduce([flat[at : at + step]]) for at in range(0, flat.numel(), step)]
    for work in under_way:
        work.wait()
