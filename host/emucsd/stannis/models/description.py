"""What a network costs to train, found by running it once without data: sizes, multiplications, memory.

The run is on PyTorch's ``meta`` device, which has shapes and no numbers: milliseconds for any size of image. A model
that makes tensors of its own on the processor can't run there; it is run on zeros instead.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

_SUMMING = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_SPREADING = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_IMAGES = 2  # of the trial: batch norm takes no single one where a plane has one pixel


@dataclass(frozen=True)
class Description:
    """Counts are of the whole network; MACs and activations are for one image."""

    image: tuple[int, ...]  # C, H, W
    parameters: int
    parameter_bytes: int  # those that are trained
    buffer_bytes: int  # running means and variances of batch norm
    macs: int  # multiply-accumulates of convolutions and linear layers, forward; backward takes twice as many
    activation_bytes: int  # what autograd keeps from forward to backward
    largest_bytes: int  # the largest single tensor of these

    def training_bytes(self, batch: int, *, copies: int = 4) -> int:
        """Memory that training takes beside the interpreter and the loader.

        :param copies: of the parameters: themselves, gradients, momentum, the buffer that is all-reduced; Adam has 5
        :returns: parameters, kept activations, and two gradients of the largest activation
        """
        fixed = self.parameter_bytes * copies + self.buffer_bytes
        return fixed + batch * (self.activation_bytes + 2 * self.largest_bytes)

    def largest_batch(self, memory_bytes: int, *, copies: int = 4) -> int:
        """The largest batch that ``training_bytes`` lets into so much memory; 0: not one image fits."""
        left = memory_bytes - self.training_bytes(0, copies=copies)
        return max(0, left // (self.activation_bytes + 2 * self.largest_bytes))

    def to_json(self) -> dict[str, Any]:
        """The fields by their names."""
        return {**asdict(self), "image": list(self.image)}


def describe(model: nn.Module, image: Sequence[int] = (3, 224, 224)) -> Description:
    """Run a model forward once, in training mode, and count.

    The model is left as it was: parameters, buffers, mode and random state.

    :param image: shape C, H, W of what it takes; f32
    :raises Exception: what the model raises when it is given such images
    """
    try:
        kept, macs = _trial(model, image, "meta")
    except RuntimeError:  # "expected on cpu", "no meta kernel"; a wrong shape fails again below
        kept, macs = _trial(model, image, "cpu")
    trained = [one for one in model.parameters() if one.requires_grad]
    return Description(
        image=tuple(image),
        parameters=sum(one.numel() for one in model.parameters()),
        parameter_bytes=sum(one.numel() * one.element_size() for one in trained),
        buffer_bytes=sum(one.numel() * one.element_size() for one in model.buffers()),
        macs=macs // _IMAGES,
        activation_bytes=sum(kept) // _IMAGES,
        largest_bytes=max(kept, default=0) // _IMAGES,
    )


def _trial(model: nn.Module, image: Sequence[int], device: str) -> tuple[list[int], int]:
    """Sizes of what one forward pass keeps in bytes, without parameters and buffers; its multiplications."""
    state = {name: _stand_in(one, device) for name, one in _tensors(model)}
    own = {_place(one) for one in state.values()}
    kept: dict[int, Any] = {}  # the storages themselves: one that was freed could have its address used again

    def keep(tensor: Any) -> Any:
        if _place(tensor) not in own:
            kept[_place(tensor)] = tensor.untyped_storage()
        return tensor

    images = torch.zeros(_IMAGES, *image, device=device)
    with _training(model), _counting(model) as counted, torch.random.fork_rng(devices=[]):
        with saved_tensors_hooks(keep, lambda tensor: tensor), torch.enable_grad():
            outputs = torch.func.functional_call(model, state, (images,))
        del outputs
    return [storage.nbytes() for storage in kept.values()], sum(counted)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Any]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _stand_in(tensor: Any, device: str) -> Any:
    """A tensor that takes a parameter's or buffer's place for the trial: forward changes buffers."""
    if device == "meta":
        return torch.empty_like(tensor, device="meta").requires_grad_(tensor.requires_grad)
    return tensor if isinstance(tensor, nn.Parameter) else tensor.clone()


def _place(tensor: Any) -> int:
    """The memory that a tensor lies in; views of one tensor have the same. Meta tensors have no address."""
    return int(tensor.untyped_storage()._cdata)


@contextlib.contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    """In training mode for a while; each module gets its own mode back."""
    modes = {module: module.training for module in model.modules()}
    model.train()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextlib.contextmanager
def _counting(model: nn.Module) -> Iterator[list[int]]:
    """Collect the multiplications of each call of a convolution or linear layer."""
    counted: list[int] = []

    def count(module: Any, inputs: Any, output: Any) -> None:
        # a weight's last dimensions are what one output is summed over; of a transposed one, what one input spreads to
        counted.append((inputs[0] if isinstance(module, _SPREADING) else output).numel() * module.weight[0].numel())

    kinds = (*_SUMMING, *_SPREADING)
    handles = [module.register_forward_hook(count) for module in model.modules() if isinstance(module, kinds)]
    try:
        yield counted
    finally:
        for handle in handles:
            handle.remove()
