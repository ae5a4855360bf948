"""Ranks as threads of one process: a ``Collective`` that really adds, for what needs no processes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import torch

from emucsd.stannis.training.collective import Done, Pending

T = TypeVar("T")
SECONDS = 20.0


class Member:
    """One of ``size`` threads."""

    def __init__(self, rank: int, size: int, meeting: threading.Barrier, brought: list[torch.Tensor]) -> None:
        self.rank, self.size = rank, size
        self._meeting, self._brought = meeting, brought

    def begin(self, tensor: torch.Tensor) -> Pending:
        """Added at once: the order in which ranks begin is what counts."""
        self.all_reduce(tensor)
        return Done()

    def all_reduce(self, tensor: torch.Tensor) -> None:
        """Add in rank order."""
        self._brought[self.rank] = tensor.detach().clone()
        self._meeting.wait(SECONDS)
        assert len({(t.shape, t.dtype) for t in self._brought}) == 1, "ranks add different things"
        total = self._brought[0].clone()
        for other in self._brought[1:]:
            total += other
        self._meeting.wait(SECONDS)
        with torch.no_grad():
            tensor.copy_(total)

    def broadcast(self, tensor: torch.Tensor, source: int) -> None:
        """From one."""
        self._brought[self.rank] = tensor.detach().clone()
        self._meeting.wait(SECONDS)
        found = self._brought[source]
        self._meeting.wait(SECONDS)
        tensor.copy_(found)


def together(size: int, run: Callable[[Member], T]) -> list[T]:
    """Call ``run`` on ``size`` ranks at once. :return: what each gave; what one of them raised is raised here"""
    meeting, brought = threading.Barrier(size), [torch.empty(0)] * size
    gave: dict[int, T] = {}
    raised: list[BaseException] = []

    def one(rank: int) -> None:
        try:
            gave[rank] = run(Member(rank, size, meeting, brought))
        except BaseException as problem:
            raised.append(problem)
            meeting.abort()

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    for problem in raised:
        if not isinstance(problem, threading.BrokenBarrierError):
            raise problem
    return [gave[rank] for rank in range(size)]
