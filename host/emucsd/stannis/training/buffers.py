"""A model's buffers as they were at the last step boundary."""

from __future__ import annotations

import torch


class Buffers:
    """Running statistics move in forward, before anybody knows whether the step counts. ``restore`` takes that back.

    :param model: its buffers are found once
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._places = [
            (module, name)
            for module in model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        self._kept: list[torch.Tensor] = []

    def keep(self) -> None:
        """Remember them as they are."""
        now = [module._buffers[name].detach() for module, name in self._places]
        if len(self._kept) == len(now) and all(a.shape == b.shape for a, b in zip(self._kept, now, strict=True)):
            for kept, buffer in zip(self._kept, now, strict=True):
                kept.copy_(buffer)
        else:
            self._kept = [buffer.clone() for buffer in now]

    def restore(self) -> None:
        """Put back what ``keep`` saw."""
        for (module, name), kept in zip(self._places, self._kept, strict=True):
            buffer = module._buffers[name]
            if buffer is not None and buffer.shape == kept.shape:
                buffer.detach().copy_(kept)
            else:
                module._buffers[name] = kept.clone()
