"""What a run is: the model, how it is trained, for how long: all that is true of every rank alike.

    spec = Spec("emucsd.stannis.models:mobilenet_v2", {"num_classes": 10}, image=(3, 32, 32), epochs=5)
    Spec.from_json(spec.to_json()) == spec

Standard library alone: the coordinator has no torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from emucsd.stannis import fields
from emucsd.stannis.errors import SpecError
from emucsd.stannis.plan.plan import Asked

Decay = Literal["constant", "milestones", "cosine"]
OnDamage = Literal["fail", "skip"]

CHANNELS_MAX, SIDE_MAX, STEPS_MAX = 64, 1 << 13, 1 << 31
_FUNCTION = re.compile(r"[^:\s][^:\n]*:[A-Za-z_][\w.]*")  # module:function or path/file.py:function
OPTIMIZERS, LOSSES, TRANSFORMS = ("sgd", "adam"), ("cross_entropy",), ("standard", "flip", "none")


@dataclass(frozen=True)
class Spec:
    """A run's description.

    :ivar factory: ``module:function`` or ``path/to/file.py:function``, which gives a torch.nn.Module
    :ivar arguments: keywords for the factory; JSON values
    :ivar loss: ``cross_entropy``, or a function (outputs, targets) -> the batch's mean, a scalar tensor
    :ivar optimizer: ``sgd``, ``adam``, or a function (parameters, lr) -> torch.optim.Optimizer
    :ivar lr: learning rate at a global batch of ``base_batch``; a run's is lr * global batch / base_batch (linear
        scaling, Goyal et al., "Accurate, Large Minibatch SGD", 2017)
    :ivar warmup_epochs: the learning rate climbs linearly over so many epochs, from ``lr`` as it stands
    :ivar decay: ``constant``; ``milestones``: times ``gamma`` at each of ``milestones`` (epochs); ``cosine``: to 0
    :ivar clip: the gradient's norm at most, of the mean over all ranks; None: as it is
    :ivar label_smoothing: of ``cross_entropy``
    :ivar epochs: passes over the data
    :ivar steps: stop after so many steps, however many epochs that is; None: at the last epoch's end
    :ivar seed: of weights, order and augmentation
    :ivar image: a sample's (channels, height, width)
    :ivar transform: ``standard`` (crop and flip), ``flip``, ``none``, or a function of the user's
    :ivar mean: per channel, subtracted from images in 0 .. 1; empty: the usual ones
    :ivar std: per channel; images are divided by it; empty: the usual ones
    :ivar sync_batchnorm: batch norm over the global batch: ranks equal one process exactly, at two all-reduces a layer
    :ivar checkpoint_every: steps; 0: at each epoch's end alone
    :ivar evaluate_every: epochs; 0: at the end alone
    :ivar retune: batches follow the engines' speeds while the run goes on
    :ivar tune: find batches by benchmark; without, ``batches`` must have all
    :ivar batches: node -> batch, as the user wants it; those nodes are not tuned
    :ivar global_batch: samples a step over all ranks; None: what the engines' best batches sum up to
    :ivar strategy: what fills ranks that have too few samples; see emucsd.stannis.plan.balancer
    :ivar threads: of torch, per rank; node -> number; others use all their cores
    :ivar allow_missing: begin without engines that the model does not fit, or that fail while they are tuned
    :ivar on_damage: a sample that can't be read: ``fail``, or ``skip`` it and count
    :raises SpecError: a value out of range
    """

    factory: str
    arguments: dict[str, Any] = field(default_factory=dict)
    loss: str = "cross_entropy"
    optimizer: str = "sgd"
    lr: float = 0.1
    base_batch: int = 256
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    warmup_epochs: float = 0.0
    decay: Decay = "constant"
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    clip: float | None = None
    label_smoothing: float = 0.0
    epochs: int = 1
    steps: int | None = None
    seed: int = 0
    image: tuple[int, int, int] = (3, 32, 32)
    transform: str = "standard"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    sync_batchnorm: bool = False
    checkpoint_every: int = 0
    evaluate_every: int = 1
    retune: bool = False
    tune: bool = True
    batches: dict[str, int] = field(default_factory=dict)
    global_batch: int | None = None
    strategy: Asked = "auto"
    threads: dict[str, int] = field(default_factory=dict)
    allow_missing: bool = False
    on_damage: OnDamage = "fail"

    def __post_init__(self) -> None:
        self._check_functions()
        self._check_numbers()
        if self.decay == "milestones" and list(self.milestones) != sorted(set(self.milestones)):
            raise SpecError(f"milestones are {self.milestones}; epochs that rise, each once")
        for name, limit in (("batches", 1), ("threads", 1)):
            for node, value in getattr(self, name).items():
                if value < limit:
                    raise SpecError(f"{name} of {node!r} is {value}; at least {limit}")
        if not self.tune and not self.batches:
            raise SpecError("tune is off and batches is empty; name each node's batch, or let them be tuned")

    def _check_functions(self) -> None:
        for name, known in (("factory", ()), ("loss", LOSSES), ("optimizer", OPTIMIZERS), ("transform", TRANSFORMS)):
            value = getattr(self, name)
            if value not in known and _FUNCTION.fullmatch(value) is None:
                builtin = f"{', '.join(map(repr, known))}, " if known else ""
                raise SpecError(f"{name} is {value!r}; use {builtin}'module:function' or 'path/file.py:function'")

    def _check_numbers(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise SpecError(f"{name} is {value}; {low} to {high}")
        channels, height, width = self.image
        if not (1 <= channels <= CHANNELS_MAX and 1 <= height <= SIDE_MAX and 1 <= width <= SIDE_MAX):
            raise SpecError(f"image is {self.image}; (channels to {CHANNELS_MAX}, height, width to {SIDE_MAX})")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values and len(values) != channels:
                raise SpecError(f"{name} has {len(values)} values; one for each of {channels} channels, or none")
        if any(value <= 0 for value in self.std):
            raise SpecError(f"std is {self.std}; each above 0")

    def to_json(self, indent: int | None = None) -> str:
        """:raises SpecError: an argument of the factory that JSON has no form for"""
        try:
            return fields.to_json(self, indent)
        except fields.FieldError as problem:
            raise SpecError(str(problem)) from None

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """:raises SpecError: no JSON, a field unknown, missing, of another type or out of range"""
        try:
            return fields.from_json(cls, text)
        except fields.FieldError as problem:
            raise SpecError(f"spec: {problem}") from None

    @property
    def model_hash(self) -> str:
        """What decides an engine's speed, in 16 hex digits: the tuner's cache is kept by it.

        A factory's *source* isn't part of it; pass that to the tuner where it is at hand.
        """
        said = [self.factory, self.arguments, self.loss, self.optimizer, list(self.image), self.sync_batchnorm]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


_RANGES: dict[str, tuple[float, float]] = {
    "lr": (0.0, 1e6),
    "base_batch": (1, 1 << 24),
    "momentum": (0.0, 1.0),
    "weight_decay": (0.0, 1e6),
    "warmup_epochs": (0.0, 1e6),
    "gamma": (0.0, 1.0),
    "clip": (1e-12, 1e12),
    "label_smoothing": (0.0, 1.0),
    "epochs": (1, 1 << 20),
    "steps": (1, STEPS_MAX),
    "seed": (0, (1 << 63) - 1),
    "checkpoint_every": (0, STEPS_MAX),
    "evaluate_every": (0, 1 << 20),
    "global_batch": (1, 1 << 24),
}
