"""emucsd.stannis.group.allreduce: sums over real Gloo groups, whose ranks are threads here."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch.distributed import HashStore, ProcessGroupGloo  # noqa: E402  (there is PyTorch)

from emucsd.stannis.group.allreduce import AHEAD, CHUNK_BYTES, all_reduce  # noqa: E402

SECONDS = 30.0
Meet = Callable[..., list[Any]]


@pytest.fixture
def meet() -> Iterator[Meet]:
    """`meet(n, work, seconds)`: what `work(group)` returns or raises on each of n ranks."""
    with ThreadPoolExecutor(8) as pool:

        def all_of(ranks: int, work: Callable[[Any], Any], seconds: float = SECONDS) -> list[Any]:
            store, formed = HashStore(), threading.Barrier(ranks)

            def one(rank: int) -> Any:
                options = ProcessGroupGloo._Options()
                options._timeout = timedelta(seconds=seconds)
                options._devices = [ProcessGroupGloo.create_device(interface="lo")]
                group = ProcessGroupGloo(store, rank, ranks, options)
                formed.wait(SECONDS)
                try:
                    return work(group)
                except RuntimeError as problem:
                    return problem

            return list(pool.map(one, range(ranks)))

        yield all_of


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_sums(meet: Meet, ranks: int) -> None:
    """Exact sums of any length around the chunk's, whole numbers and floats; the same bits on every rank."""
    chunk = CHUNK_BYTES // 4
    lengths = [0, 1, chunk - 1, chunk, chunk + 1, AHEAD * chunk, (AHEAD + 1) * chunk + 7]

    def work(group: Any) -> list[Any]:
        tensors = [torch.arange(length, dtype=torch.int32) * (group.rank() + 1) for length in lengths]
        tensors.append(torch.randn(3, chunk, generator=torch.Generator().manual_seed(group.rank())))
        for tensor in tensors:
            all_reduce(group, tensor)
        return tensors

    each = meet(ranks, work)
    factor = ranks * (ranks + 1) // 2
    for length, tensor in zip(lengths, each[0], strict=False):
        assert torch.equal(tensor, torch.arange(length, dtype=torch.int32) * factor)
    alone = sum(torch.randn(3, chunk, generator=torch.Generator().manual_seed(rank)).double() for rank in range(ranks))
    assert torch.allclose(each[0][-1].double(), alone, atol=1e-5)
    for tensors in each[1:]:
        assert all(torch.equal(one, other) for one, other in zip(each[0], tensors, strict=True))


@pytest.mark.parametrize("absent", [0, 2])
def test_a_rank_that_does_not_come(meet: Meet, absent: int) -> None:
    """The others wait no longer than the group's timeout, whether the host's rank or another one is missing."""
    left = threading.Event()
    begun = time.monotonic()

    def work(group: Any) -> float:
        if group.rank() == absent:
            left.wait(SECONDS)  # there, and silent, as a suspended machine is
            return 0.0
        try:
            all_reduce(group, torch.zeros(3 * CHUNK_BYTES // 4))
        finally:
            if group.rank() == 1:
                left.set()
        return 0.0

    told = meet(3, work, 0.5)
    assert all(isinstance(one, RuntimeError) for rank, one in enumerate(told) if rank != absent), told
    assert time.monotonic() - begun < 10
