"""Batch norm over the samples of all ranks, for unequal batches, on the CPU.

``torch.nn.SyncBatchNorm`` needs CUDA. Here every rank adds its count, sum and sum of squares, once forward, and two
sums once backward; ``k`` ranks then normalise as one process would with all samples, and keep equal running statistics.

Forward. Each rank takes its variance around its own mean; what is added are counts, sums and sums of squares, in FP64.
For FP32 samples the difference ``E[x^2] - E[x]^2`` keeps 7 digits even where the mean is 10^4 times the deviation.

Backward, with ``M`` values a channel in all, ``y = (x - mean) / std * weight + bias``:

    dx = weight / std * (dy - sum(dy) / M - (x - mean) / var * sum(dy * (x - mean)) / M)

where both sums are over all ranks; ``weight``'s and ``bias``' own gradients stay this rank's, for they are added with
all others later (``gradients``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from emucsd.stannis.training.collective import Collective
from emucsd.stannis.training.errors import BatchNormRefused


class Bond:
    """What all synchronised layers of a model share.

    :ivar group: the ranks; replaced when they regroup
    :ivar ghost: this rank has no samples in this step. It still joins every layer's additions, with a batch that
        counts for nothing
    """

    def __init__(self, group: Collective) -> None:
        self.group = group
        self.ghost = False


class _Normalise(torch.autograd.Function):  # type: ignore[misc]  # torch is Any here
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float, bond: Bond
    ) -> Any:
        channels = x.shape[1]
        sums = torch.zeros(2 * channels + 1, dtype=torch.float64)
        if not bond.ghost and x.numel():
            count = x.numel() // channels
            # as nn.BatchNorm takes them: in two passes, with sums in FP64
            mean, variance = (found.double() for found in torch.batch_norm_update_stats(x, None, None, 0.0))
            sums[:channels] = mean * count
            sums[channels:-1] = (variance + mean * mean) * count
            sums[-1] = count
        bond.group.all_reduce(sums)
        total = int(sums[-1])
        if total < 2:
            raise BatchNormRefused(
                f"{total} value a channel on all ranks together: a variance needs two; use larger batches"
            )
        mean = sums[:channels] / total
        variance = (sums[channels:-1] / total - mean * mean).clamp_(min=0)
        mean, variance = mean.to(x.dtype), variance.to(x.dtype)
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.bond, ctx.ghost, ctx.total, ctx.eps = bond, bond.ghost, total, eps
        ctx.mark_non_differentiable(mean, variance)
        y = torch.batch_norm(x, weight, bias, mean, variance, False, 0.0, eps, False)
        return y, mean, variance, total

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, dy: torch.Tensor, *_: Any) -> Any:
        x, weight, mean, variance = ctx.saved_tensors
        channels = x.shape[1]
        shape = [1, channels] + [1] * (x.dim() - 2)
        scale = torch.rsqrt(variance + ctx.eps)  # 1 / std
        # backward through fixed statistics: dy * weight / std, sum(dy * (x - mean) / std), sum(dy)
        dx, d_weight, d_bias = torch.ops.aten.native_batch_norm_backward(
            dy, x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        sums = torch.cat([d_bias, d_weight]).double()
        if ctx.ghost:
            sums.zero_()
        ctx.bond.group.all_reduce(sums)
        needs_weight, needs_bias = ctx.needs_input_grad[1:3]
        if ctx.ghost:
            dx.zero_()
        else:
            both = (sums / ctx.total).to(x.dtype)
            factor = scale if weight is None else scale * weight
            dx.addcmul_(x - mean.view(shape), (-factor * scale * both[channels:]).view(shape))
            dx -= (factor * both[:channels]).view(shape)
        return dx, d_weight if needs_weight else None, d_bias if needs_bias else None, None, None


class SyncBatchNorm(_BatchNorm):  # type: ignore[misc]
    """BatchNorm1d, 2d or 3d over the samples of all ranks: same parameters, buffers and names in ``state_dict``.

    :raises BatchNormRefused: in forward: fewer than two values a channel on all ranks together
    """

    def __init__(self, like: _BatchNorm, bond: Bond) -> None:
        torch.nn.Module.__init__(self)
        self.num_features, self.eps, self.momentum = like.num_features, like.eps, like.momentum
        self.affine, self.track_running_stats = like.affine, like.track_running_stats
        self.weight, self.bias = like.weight, like.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(like, name))
        self.training = like.training
        self.bond = bond

    def _check_input_dim(self, x: torch.Tensor) -> None:
        if x.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, (n, channels, ...), got {x.dim()}")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise ``x`` [n, C, ...]; in training by all ranks' statistics."""
        if not self.training:
            return super().forward(x)
        self._check_input_dim(x)
        y, mean, variance, total = _Normalise.apply(x, self.weight, self.bias, self.eps, self.bond)
        if self.running_mean is not None:
            with torch.no_grad():
                self._keep(mean, variance * (total / (total - 1)))
        return y

    def _keep(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        self.num_batches_tracked.add_(1)
        factor = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), factor)
        self.running_var.lerp_(variance.to(self.running_var.dtype), factor)


_CONVERTIBLE = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d, torch.nn.SyncBatchNorm)


def convert(model: torch.nn.Module, bond: Bond) -> torch.nn.Module:
    """Replace every batch norm of ``model`` in place; a model that is one itself comes back replaced.

    :raises BatchNormRefused: a layer has a class of its own, whose statistics can't be known, or no shape yet
    """
    if type(model) in _CONVERTIBLE:
        return SyncBatchNorm(model, bond)
    done: dict[int, SyncBatchNorm] = {}  # a layer used at two places stays one layer
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if not isinstance(module, _BatchNorm) or isinstance(module, SyncBatchNorm):
            continue
        if type(module) not in _CONVERTIBLE:
            raise BatchNormRefused(
                f"{name} is a {type(module).__name__}, which can't be synchronised: torch.nn.BatchNorm1d, 2d and 3d "
                "can, once they have seen their shape; or train without sync_batchnorm"
            )
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, done.setdefault(id(module), SyncBatchNorm(module, bond)))
    return model


def synchronised(model: torch.nn.Module) -> bool:
    """Whether the model makes collective calls of its own in forward and backward."""
    return any(isinstance(module, SyncBatchNorm) for module in model.modules())


def average_statistics(model: torch.nn.Module, group: Collective, samples: int) -> None:
    """Where batch norm is not synchronised: replace all ranks' running statistics by their mean, weighted by samples.

    :param samples: how many this rank trained on since the last time. Where nobody did, nothing changes
    """
    buffers = [
        buffer
        for module in model.modules()
        if isinstance(module, _BatchNorm) and not isinstance(module, SyncBatchNorm)
        for buffer in (module.running_mean, module.running_var)
        if buffer is not None
    ]
    if not buffers or group.size == 1:
        return
    flat = torch.cat([b.detach().double().flatten() for b in buffers] + [torch.ones(1, dtype=torch.float64)])
    flat.mul_(samples) if samples else flat.zero_()
    group.all_reduce(flat)
    total = float(flat[-1])
    if not total:
        return
    at = 0
    with torch.no_grad():
        for buffer in buffers:
            buffer.copy_((flat[at : at + buffer.numel()] / total).view(buffer.shape))
            at += buffer.numel()
