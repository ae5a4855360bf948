"""Sums over all ranks, for a network whose every packet passes the host.

The drives of a host reach each other through the tunnel's host end. Gloo's ring sends 2 (n - 1) / n of the tensor
from each of n ranks, and between two drives each byte crosses two tunnels: 4 (n - 1)^2 / n tensors cross one in all.
Here the drives send to the host, which adds and sends back: 2 (n - 1). With two ranks both are the same, and Gloo's
own is used.

14 MB (the gradients of MobileNetV2) over real tunnels, two busy cores for everything, medians of runs in ms:

    ranks             2        3         4
    Gloo's ring     26-57    77-87    217-422
    over the host   31-49    63-96     90-135

With two ranks the best of these is 8.6 Gbit/s carried, both directions together, where iperf3 had 7.4 in one
direction and 9.8 in both. What limits is the two cores, which ranks, drive and both ends share. Buckets of 4 and 16
MiB, buckets in turn, halves exchanged by send and receive were no faster with two ranks; buckets below 1 MiB were
slower; each rank sending all it has and adding what it gets took 8 % less on average, less than two runs differ by.
"""

from __future__ import annotations

from typing import Any

CHUNK_BYTES = 512 << 10  # added and sent back while the next ones arrive
AHEAD = 4  # chunks that the host has asked each rank for; so much memory, and no more, it takes for each
ROOT = 0  # the rank on the host
_UP, _DOWN = 1, 2  # tags


def all_reduce(group: Any, tensor: Any) -> None:
    """Add a tensor up over all ranks, in place. Each of them gets the same bits.

    :param group: a ``torch.distributed.ProcessGroupGloo``, rank 0 of which is on the host
    :param tensor: contiguous, on the processor; the same shape and dtype on every rank
    :raises RuntimeError: a rank has gone, or did not come within the group's timeout; Gloo says which call failed. The
        group is of no use afterwards, the tensor's content undefined
    """
    flat = tensor.view(-1)
    if group.size() == 2:
        group.allreduce([flat]).wait()
    elif group.size() > 2:
        step = max(1, CHUNK_BYTES // flat.element_size())
        chunks = [flat[at : at + step] for at in range(0, flat.numel(), step)]
        (_add if group.rank() == ROOT else _hand_in)(group, chunks)


def _add(group: Any, chunks: list[Any]) -> None:
    """The host's part: rank after rank, so that sums do not depend on who was first."""
    ranks = [rank for rank in range(group.size()) if rank != ROOT]
    arrived = {rank: [chunks[0].new_empty(len(chunks[0])) for _ in range(AHEAD)] for rank in ranks} if chunks else {}

    def ask(at: int) -> list[Any]:
        return [group.recv([arrived[rank][at % AHEAD][: len(chunks[at])]], rank, _UP) for rank in ranks]

    asked = [ask(at) for at in range(min(AHEAD, len(chunks)))]
    sent = []
    for at, chunk in enumerate(chunks):
        for rank, work in zip(ranks, asked[at], strict=True):
            work.wait()
            chunk += arrived[rank][at % AHEAD][: len(chunk)]
        if at + AHEAD < len(chunks):
            asked.append(ask(at + AHEAD))
        sent += [group.send([chunk], rank, _DOWN) for rank in ranks]
    for work in sent:
        work.wait()


def _hand_in(group: Any, chunks: list[Any]) -> None:
    """A drive's part: everything to the host; a chunk that has left is overwritten by its sum."""
    sent = [group.send([chunk], ROOT, _UP) for chunk in chunks]
    sums = []
    for chunk, work in zip(chunks, sent, strict=True):
        work.wait()
        sums.append(group.recv([chunk], ROOT, _DOWN))
    for work in sums:
        work.wait()
