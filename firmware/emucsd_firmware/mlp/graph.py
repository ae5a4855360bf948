"""The graph that the MLP engine computes: bottom layers, interaction with the embedding sums, top layers.

As facebookresearch/dlrm and DeepRecSys have it: dense features go through the bottom layers; their output and the
tables' sums are concatenated (CAT) or their pairwise dot products are taken (DOT: behind the bottom's output, the
strictly lower triangle of T T^T row by row, where T's rows are the bottom's output and the sums in the tables' order;
dlrm's ``interact_features``, without itself); the top layers make the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from emucsd_firmware.errors import GraphError
from emucsd_wire.rm import MAX_LAYERS, MAX_SESSION_TABLES, MAX_WIDTH, Activation, Interaction

__all__ = ["Activation", "Graph", "Interaction", "Layer"]  # the wire's enums are this module's words as well


@dataclass(frozen=True, slots=True)
class Layer:
    """y = activation(W x + b): W is FP32[outputs, inputs], as torch.nn.Linear has it."""

    inputs: int
    outputs: int
    activation: Activation = Activation.RELU

    @property
    def macs(self) -> int:
        """Multiply-adds for a sample."""
        return self.inputs * self.outputs

    @property
    def words(self) -> int:
        """FP32 parameters: weight, then bias."""
        return self.outputs * (self.inputs + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """A model's MLPs. Without bottom layers the dense features themselves meet the sums.

    :param dense: dense features of a sample; 0: none
    :param dims: each table's vector, in elements
    :raises GraphError: widths that do not fit one another, or beyond the limits
    """

    dense: int
    bottom: tuple[Layer, ...] = ()
    dims: tuple[int, ...] = ()
    interaction: Interaction = Interaction.CAT
    top: tuple[Layer, ...] = ()

    def __post_init__(self) -> None:
        if len(self.layers) > MAX_LAYERS or len(self.dims) > MAX_SESSION_TABLES:
            raise GraphError(
                f"{len(self.layers)} layers and {len(self.dims)} tables: at most {MAX_LAYERS} and "
                f"{MAX_SESSION_TABLES}; split the model over sessions"
            )
        widths = [
            self.dense or 1,
            *self.dims,
            self.width or 1,
            *(n for x in self.layers for n in (x.inputs, x.outputs)),
        ]
        if not all(1 <= width <= MAX_WIDTH for width in widths) or not self.width:
            raise GraphError(f"widths {sorted(set(widths))}: each must be 1 to {MAX_WIDTH}, and something must go in")
        if self.bottom and self.bottom[0].inputs != self.dense:
            raise GraphError(
                f"the first bottom layer takes {self.bottom[0].inputs} inputs, there are {self.dense} dense features; "
                "they must be equal"
            )
        self._check_interaction()
        for group, name in ((self.bottom, "bottom"), (self.top, "top")):
            for place, (one, two) in enumerate(pairwise(group)):
                if one.outputs != two.inputs:
                    raise GraphError(
                        f"{name} layer {place} has {one.outputs} outputs, layer {place + 1} takes {two.inputs}; "
                        "they must be equal"
                    )

    def _check_interaction(self) -> None:
        if self.interaction == Interaction.DOT and len({*self.dims, self.bottom_width} - {0}) != 1:
            raise GraphError(
                f"dot interaction of {self.bottom_width} bottom outputs and tables of {sorted(set(self.dims))}: all "
                "must be equally wide; use cat, or another last bottom layer"
            )
        if self.interaction == Interaction.DOT and not self.interacted:
            raise GraphError("dot interaction of a single vector has no pairs; use cat, or more tables")
        if self.top and self.top[0].inputs != self.interacted:
            raise GraphError(
                f"the first top layer takes {self.top[0].inputs} inputs, the interaction makes {self.interacted} "
                f"({self.interaction.name} of {self.bottom_width} and {sum(self.dims)}); they must be equal"
            )

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Bottom layers, then top layers: the order in which they are numbered."""
        return self.bottom + self.top

    @property
    def bottom_width(self) -> int:
        """What of an interaction's input is not from tables."""
        return self.bottom[-1].outputs if self.bottom else self.dense

    @property
    def width(self) -> int:
        """Elements of an input row of the interaction: the bottom's output, then each table's sum."""
        return self.bottom_width + sum(self.dims)

    @property
    def vectors(self) -> int:
        """Rows of T, for DOT."""
        return len(self.dims) + (1 if self.bottom_width else 0)

    @property
    def interacted(self) -> int:
        """Elements that the interaction makes."""
        if self.interaction == Interaction.CAT:
            return self.width
        return self.bottom_width + self.vectors * (self.vectors - 1) // 2

    @property
    def outputs(self) -> int:
        """Elements of a sample's result."""
        return self.top[-1].outputs if self.top else self.interacted

    @property
    def macs(self) -> int:
        """Multiply-adds of all layers for a sample, as fully connected layers count them; DOT's not included."""
        return sum(layer.macs for layer in self.layers)

    @property
    def weight_bytes(self) -> int:
        """All layers' weights and biases."""
        return 4 * sum(layer.words for layer in self.layers)
