"""Gradients of all ranks, added as one flat vector and weighted by the samples behind them.

Rank ``r`` has ``n_r`` samples in a step and computes the gradient of ``n_r`` times its mean loss, that is the sum over
its samples. The sums of all ranks, divided by ``sum(n_r)``, are the gradient of the mean over the union: what one
process would have computed on all samples at once, up to the order in which FP32 adds. (Plain averaging of the ranks'
means is that only where all ``n_r`` are equal; Stannis' are not.)

The vector is made once. Parameters' ``grad`` are views into it, so backward writes where the transfer reads:

    [ gradients, last layer first | used: one a parameter | samples, loss sum, correct | seconds: one a rank
      | faulty: one a rank | flags: one a kind ]

It travels in buckets. A bucket leaves as soon as backward has filled it, while layers before it are still computing,
always in the order of the vector: the order is then the same on all ranks. What follows the gradients costs no message
of its own, and gives all ranks the same loss, the same seconds of every rank and the same flags at the same step.
"""

from __future__ import annotations

import enum
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch

from emucsd.stannis.errors import NonFinite
from emucsd.stannis.training.collective import Collective, Pending
from emucsd.stannis.training.errors import LayoutDiffers, ParameterRefused

BUCKET_BYTES = 4 << 20
_MOST_SAMPLES = 1 << 24  # FP32 counts exactly up to here
_CONVERTED = (torch.float16, torch.bfloat16)  # fit into FP32 whole; float64 and complex would lose something


class Flag(enum.IntEnum):
    """What a rank can ask of all; each is an element of the vector, so a step carries how many ranks ask."""

    PAUSE = 0
    STOP = 1
    RETUNE = 2


class Part(NamedTuple):
    """What one rank adds to a step besides gradients.

    :ivar samples: n_r; 0 where the rank has none in this step
    :ivar loss_sum: n_r times its mean loss
    :ivar correct: samples whose largest output is the label's
    :ivar seconds: loading and computing, without waiting for others
    :ivar flags: what it asks of all
    """

    samples: int
    loss_sum: float
    correct: int
    seconds: float
    flags: frozenset[Flag] = frozenset()


class Totals(NamedTuple):
    """The same over all ranks, equal on each.

    :ivar seconds: one a rank
    :ivar faulty: ranks whose own loss was not finite
    """

    samples: int
    loss_sum: float
    correct: int
    seconds: tuple[float, ...]
    faulty: tuple[int, ...]
    flags: frozenset[Flag]


class Gradients:
    """The flat vector of one model on one rank of ``world``.

    :param bucket_bytes: a transfer's size; small ones start earlier, large ones cost fewer round trips
    :param overlap: send buckets during backward. Off where the model itself makes collective calls in backward
        (synchronised batch norm): two orders that depend on each other's timing would meet
    :raises ParameterRefused: a trainable parameter is complex, FP64, or not on the CPU; or there is none
    """

    def __init__(
        self, model: torch.nn.Module, world: int, *, bucket_bytes: int = BUCKET_BYTES, overlap: bool = True
    ) -> None:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        _check(named)
        self._frozen = [(name, p) for name, p in model.named_parameters() if not p.requires_grad]
        named.reverse()  # about the order of backward
        self.names = [name for name, _ in named]
        self.parameters = [p for _, p in named]
        self.world = world
        self.overlap = overlap
        self.count = sum(p.numel() for p in self.parameters)
        self._used_at = self.count
        self._about_at = self._used_at + len(self.parameters)
        self.flat = torch.zeros(self._about_at + 3 + 2 * world + len(Flag))
        self._views: list[torch.Tensor] = []
        at = 0
        for p in self.parameters:
            self._views.append(self.flat[at : at + p.numel()].view(p.shape))
            at += p.numel()
        self._cut(max(1, bucket_bytes // 4))
        self._hooks = [p.register_post_accumulate_grad_hook(self._hook(i)) for i, p in enumerate(self.parameters)]
        self._attach()

    def _cut(self, elements: int) -> None:
        """Buckets of one size over the whole vector, and which of them each parameter fills."""
        self._elements = elements
        total = self.flat.numel()
        self._buckets = [self.flat[at : min(at + elements, total)] for at in range(0, total, elements)]
        self._fills: list[range] = []
        at = 0
        for p in self.parameters:
            end = at + p.numel()
            self._fills.append(range(at // elements, (max(end, at + 1) - 1) // elements + 1))
            at = end
        # a bucket with elements behind the gradients waits for `reduce`
        self._full = [0] * len(self._buckets)
        for fills in self._fills:
            for bucket in fills:
                self._full[bucket] += 1
        for bucket in range(min(self.count // elements, len(self._buckets)), len(self._buckets)):
            self._full[bucket] += 1
        self._missing: list[int] = []
        self._pending: list[Pending] = []
        self._group: Collective | None = None

    def close(self) -> None:
        """Let the model go: its parameters keep no hooks and no gradients."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        for p in self.parameters:
            p.grad = None

    @property
    def bytes(self) -> int:
        """What a rank gives to the network in a step, before the all-reduce's own factor."""
        return 4 * int(self.flat.numel())

    def agree(self, group: Collective) -> None:
        """Make sure, once, that all ranks' vectors mean the same.

        :raises LayoutDiffers: names, shapes or types of parameters differ between ranks; on all ranks alike
        """
        text = ";".join(f"{n}{tuple(p.shape)}{p.dtype}" for n, p in zip(self.names, self.parameters, strict=True))
        mine = hashlib.blake2b(f"{text};{self.flat.numel()}".encode(), digest_size=24).digest()
        theirs = torch.tensor(list(mine), dtype=torch.int64)
        group.broadcast(theirs, 0)
        differ = torch.zeros(group.size, dtype=torch.int64)
        differ[group.rank] = int(theirs.tolist() != list(mine))
        group.all_reduce(differ)
        if differ.any():
            raise LayoutDiffers(
                f"the model of ranks {differ.nonzero().flatten().tolist()} is not rank 0's: names, shapes or types of "
                f"its parameters differ; this rank has {len(self.names)} of {self.count} elements. Does the factory "
                "decide by something that differs between nodes?"
            )

    # -- one step ----------------------------------------------------------------------------------------------------

    def begin(self, group: Collective) -> None:
        """Before backward: everything is zero, nothing was sent.

        :raises ParameterRefused: a parameter that was frozen is not any more
        """
        for name, p in self._frozen:
            if p.requires_grad:
                raise ParameterRefused(
                    f"{name} requires a gradient now and did not when training began; its gradient has no place among "
                    "the others: train in two runs, the second from the first one's checkpoint"
                )
        self.flat.zero_()
        self._attach()
        self._missing = list(self._full)
        self._pending = []
        self._group = group

    def reduce(self, part: Part) -> tuple[Totals, bool]:
        """After backward: add up all ranks' vectors. ``grad`` then is the gradient of the mean over all samples.

        :return: the sums, and whether loss and gradients are finite; equal on all ranks
        :raises PeerLost: a rank is gone; gradients are undefined, parameters untouched
        """
        assert self._group is not None, "begin() comes first"
        assert part.samples < _MOST_SAMPLES, f"{part.samples} samples a step: FP32 counts to {_MOST_SAMPLES}"
        self._describe(part, self._group.rank)
        while len(self._pending) < len(self._buckets):
            self._send()
        finite = True
        for bucket, pending in enumerate(self._pending):
            pending.wait()
            finite &= self._finite(bucket)  # while those behind it are on their way
        self._group, self._pending = None, []
        totals = self._read()
        if totals.samples:
            self.flat[: self.count].mul_(1 / totals.samples)
        for p, view in zip(self.parameters, self._views, strict=True):
            if p.dtype != torch.float32:
                p.grad = view.to(p.dtype)
        return totals, finite and math.isfinite(totals.loss_sum)

    def blame(self, totals: Totals, prefix: str = "") -> NonFinite:
        """Which parameters' gradients are not finite, after ``reduce`` said so; on which ranks the loss already was."""
        bad = [name for name, v in zip(self.names, self._views, strict=True) if not bool(torch.isfinite(v).all())]
        bad.reverse()
        what = f"the gradients of {', '.join(bad[:3])}" if bad else "the loss"
        rest = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        whose = f"; the loss of ranks {list(totals.faulty)} already was" if totals.faulty else ""
        return NonFinite(
            f"{prefix}{what}{rest}: infinite or NaN{whose}; a lower lr, a longer warm-up or a spec with clip may help",
            bad[0] if bad else "",
        )

    def abandon(self) -> None:
        """The group broke in the middle of a step: what is pending is nobody's any more."""
        self._group, self._pending = None, []

    @contextmanager
    def applied(self) -> Iterator[None]:
        """For the optimizer's step: parameters that no rank used have no gradient, as in one process, so that neither
        momentum nor weight decay moves them."""
        unused = (self.flat[self._used_at : self._about_at] == 0).nonzero().flatten().tolist()
        for index in unused:
            self.parameters[index].grad = None
        try:
            yield
        finally:
            for index in unused:
                self._attach_one(index)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _hook(self, index: int) -> Callable[[torch.Tensor], None]:
        def accumulated(parameter: torch.Tensor) -> None:
            if self._group is None:
                return  # a backward of somebody else's: an evaluation, a probe
            view = self._views[index]
            found = parameter.grad
            if found is not None and (found.is_sparse or found.data_ptr() != view.data_ptr()):
                view.copy_(found.to_dense() if found.is_sparse else found)
                if parameter.dtype == torch.float32:
                    parameter.grad = view
            self.flat[self._used_at + index] = 1
            self._filled(index)

        return accumulated

    def _filled(self, index: int) -> None:
        if not self.overlap:
            return
        if any(bucket < len(self._pending) for bucket in self._fills[index]):
            raise ParameterRefused(
                f"{self.names[index]}: its gradient came twice in one backward, the second time after it was sent; "
                "is it used inside of torch.utils.checkpoint? give it use_reentrant=False, or overlap=False here"
            )
        for bucket in self._fills[index]:
            self._missing[bucket] -= 1
        while len(self._pending) < len(self._buckets) and not self._missing[len(self._pending)]:
            self._send()

    def _send(self) -> None:
        assert self._group is not None
        self._pending.append(self._group.begin(self._buckets[len(self._pending)]))

    def _finite(self, bucket: int) -> bool:
        """Whether the gradients in a bucket are."""
        gradients = self._buckets[bucket][: max(self.count - bucket * self._elements, 0)]
        return not gradients.numel() or all(math.isfinite(one) for one in torch.aminmax(gradients))  # NaN comes through

    def _describe(self, part: Part, rank: int) -> None:
        if not part.samples:
            self.flat[: self._about_at].zero_()  # a rank that only keeps others company has used nothing
        about = [float(part.samples), part.loss_sum, float(part.correct)]
        seconds, faulty = [0.0] * self.world, [0.0] * self.world
        seconds[rank] = part.seconds
        faulty[rank] = 0.0 if math.isfinite(part.loss_sum) else 1.0
        flags = [1.0 if flag in part.flags else 0.0 for flag in Flag]
        self.flat[self._about_at :] = torch.tensor(about + seconds + faulty + flags)

    def _read(self) -> Totals:
        about = self.flat[self._about_at :].tolist()
        seconds, faulty = about[3 : 3 + self.world], about[3 + self.world : 3 + 2 * self.world]
        return Totals(
            samples=round(about[0]),
            loss_sum=about[1],
            correct=round(about[2]),
            seconds=tuple(seconds),
            faulty=tuple(rank for rank, one in enumerate(faulty) if one),
            flags=frozenset(flag for flag in Flag if about[3 + 2 * self.world + flag]),
        )

    def _attach(self) -> None:
        for index in range(len(self.parameters)):
            self._attach_one(index)

    def _attach_one(self, index: int) -> None:
        p = self.parameters[index]
        p.grad = self._views[index] if p.dtype == torch.float32 else None


def _check(named: Sequence[tuple[str, torch.Tensor]]) -> None:
    if not named:
        raise ParameterRefused("the model has no parameter that requires a gradient; there is nothing to train")
    for name, p in named:
        if isinstance(p, torch.nn.parameter.UninitializedParameter):
            raise ParameterRefused(f"{name} has no shape yet: let the factory run the model once, on zeros")
        if p.dtype != torch.float32 and p.dtype not in _CONVERTED:
            raise ParameterRefused(
                f"{name} is {p.dtype}; gradients travel as FP32, which would lose some of it: model.float() first"
            )
        if p.device.type != "cpu":
            raise ParameterRefused(f"{name} is on {p.device}; ranks compute on the CPU: model.cpu() first")
