"""Networks for images and sequences as data: what a plan may say of them, and their tensors in wire order.

The order is that of `torch.nn.Module.parameters()` of the module that `privacy.architectures` builds. Every
normalisation is over one record's channels (GroupNorm, LayerNorm): batch normalisation would couple patients.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from protocol.identifiers import Frozen
from protocol.media import Shape

Tensors = list[tuple[str, Shape]]
Width = Annotated[int, Field(ge=4, le=1024, multiple_of=4)]
MAX_INTERVALS = 50
MOST_TOKENS = 1024
MOST_AT_ONCE = 1 << 26
"""Numbers in the largest value between two layers, of one record: 256 MiB, of which a private step holds several."""


def group_count(width: int) -> int:
    """Groups of a GroupNorm over `width` channels: up to 8, of two channels or more (Wu and He 2018)."""
    return math.gcd(width // 2, 8)


class PredictingNetwork(Frozen):
    """What the network's outputs are for: the chance of yes (logistic), a number (squared), or `intervals` chances of
    an event in one interval each (hazard)."""

    loss: Literal["logistic", "squared", "hazard"] = "logistic"
    intervals: Annotated[int, Field(ge=0, le=MAX_INTERVALS)] = 0

    @model_validator(mode="after")
    def _intervals_are_hazards(self) -> Self:
        if (self.loss == "hazard") != (self.intervals > 0):
            raise ValueError("intervals belong to the loss hazard, and it needs them")
        return self

    @property
    def outputs(self) -> int:
        """Of one record."""
        return self.intervals or 1


class ConvolutionalNetwork(PredictingNetwork):
    """Images. For each width: 3x3 convolution, GroupNorm, ReLU, 2x2 max-pooling; then the mean over pixels, a logit."""

    architecture: Literal["cnn"]
    widths: Annotated[tuple[Width, ...], Field(min_length=1, max_length=6)] = (16, 32, 64)

    @property
    def smallest(self) -> int:
        """Least height and width."""
        return int(2 ** len(self.widths))

    def largest(self, shape: Shape) -> int:
        """Numbers in the largest value between two layers, of one record."""
        return max(width * math.prod(shape[1:]) >> 2 * stage for stage, width in enumerate(self.widths))

    def tensors(self, shape: Shape) -> Tensors:
        """(name, shape) in wire order for records of `shape` (channels, height, width)."""
        found: Tensors = []
        for stage, (inputs, outputs) in enumerate(pairwise((shape[0], *self.widths))):
            found += _normalised(f"stages.{stage}", (outputs, inputs, 3, 3))
        return found + _linear("head", self.widths[-1], self.outputs)


class ResidualNetwork(PredictingNetwork):
    """Images. ResNet with GroupNorm (He et al. 2016; Wu and He 2018): a stage of basic blocks for each width, each
    stage after the first at half the resolution. (64, 128, 256, 512) with 2 blocks each is ResNet-18.

    stem small: one 3x3 convolution. stem large, for 128 pixels and more: 7x7 with stride 2, and 3x3 max-pooling.
    """

    architecture: Literal["resnet"]
    widths: Annotated[tuple[Width, ...], Field(min_length=1, max_length=5)] = (64, 128, 256, 512)
    blocks: Annotated[int, Field(ge=1, le=4)] = 2
    stem: Literal["small", "large"] = "small"

    @property
    def smallest(self) -> int:
        """Least height and width."""
        return int(2 ** len(self.widths)) * (4 if self.stem == "large" else 1)

    def largest(self, shape: Shape) -> int:
        """Numbers in the largest value between two layers, of one record."""
        pixels = math.prod(shape[1:]) // (4 if self.stem == "large" else 1)
        return max(width * pixels >> 2 * stage for stage, width in enumerate(self.widths))

    def tensors(self, shape: Shape) -> Tensors:
        """(name, shape) in wire order for records of `shape` (channels, height, width)."""
        kernel = 7 if self.stem == "large" else 3
        found = _normalised("stem", (self.widths[0], shape[0], kernel, kernel))
        inputs = self.widths[0]
        for stage, width in enumerate(self.widths):
            for block in range(self.blocks):
                name = f"stages.{stage}.{block}"
                found += _normalised(f"{name}.first", (width, inputs, 3, 3))
                found += _normalised(f"{name}.second", (width, width, 3, 3))
                if block == 0 and stage > 0:
                    found += _normalised(f"{name}.shortcut", (width, inputs, 1, 1))
                inputs = width
        return found + _linear("head", inputs, self.outputs)


class UNet(Frozen):
    """Images, for masks. Two 3x3 convolutions with GroupNorm and ReLU at each width, half the resolution from one to
    the next, and back with what went past (Ronneberger et al. 2015); enlarged by repetition. A logit for each pixel."""

    architecture: Literal["unet"]
    widths: Annotated[tuple[Width, ...], Field(min_length=2, max_length=6)] = (16, 32, 64, 128)

    @property
    def smallest(self) -> int:
        """Least height and width; both are multiples of half of it."""
        return int(2 ** len(self.widths))

    def largest(self, shape: Shape) -> int:
        """Numbers in the largest value between two layers, of one record."""
        joined = (width + below for width, below in pairwise(self.widths))
        return max(width * math.prod(shape[1:]) >> 2 * level for level, width in enumerate(joined))

    def tensors(self, shape: Shape) -> Tensors:
        """(name, shape) in wire order for records of `shape` (channels, height, width)."""
        found: Tensors = []
        for level, (inputs, width) in enumerate(pairwise((shape[0], *self.widths))):
            found += _double(f"down.{level}", inputs, width)
        for level, (width, below) in enumerate(pairwise(self.widths)):
            found += _double(f"up.{level}", below + width, width)
        return [*found, ("head.weight", (1, self.widths[0], 1, 1)), ("head.bias", (1,))]


class TemporalConvolution(PredictingNetwork):
    """Sequences. For each width: 1-D convolution, GroupNorm, ReLU, max-pooling by 2; then the mean over time, one
    logit."""

    architecture: Literal["cnn_1d"]
    widths: Annotated[tuple[Width, ...], Field(min_length=1, max_length=8)] = (16, 32, 64)
    kernel: Annotated[int, Field(ge=3, le=15)] = 5

    @model_validator(mode="after")
    def _odd(self) -> TemporalConvolution:
        if self.kernel % 2 == 0:
            raise ValueError("the kernel must be odd")
        return self

    @property
    def smallest(self) -> int:
        """Least length."""
        return int(2 ** len(self.widths))

    def largest(self, shape: Shape) -> int:
        """Numbers in the largest value between two layers, of one record."""
        return max(width * shape[1] >> stage for stage, width in enumerate(self.widths))

    def tensors(self, shape: Shape) -> Tensors:
        """(name, shape) in wire order for records of `shape` (channels, length)."""
        found: Tensors = []
        for stage, (inputs, outputs) in enumerate(pairwise((shape[0], *self.widths))):
            found += _normalised(f"stages.{stage}", (outputs, inputs, self.kernel))
        return found + _linear("head", self.widths[-1], self.outputs)


class RecurrentNetwork(PredictingNetwork):
    """Sequences. A gated recurrent unit (Cho et al. 2014); one logit of its last state."""

    architecture: Literal["gru"]
    hidden: Annotated[int, Field(ge=2, le=512)] = 32
    layers: Annotated[int, Field(ge=1, le=3)] = 1

    @property
    def smallest(self) -> int:
        """Least length."""
        return 1

    def largest(self, shape: Shape) -> int:
        """Numbers in the largest value between two layers, of one record: the gates of all steps."""
        return 3 * self.hidden * shape[1]

    def tensors(self, shape: Shape) -> Tensors:
        """(name, shape) in wire order for records of `shape` (channels, length). Gates stand as reset, update, new."""
        found: Tensors = []
        for layer in range(self.layers):
            inputs = self.hidden if layer else shape[0]
            found += [
                (f"recurrent.weight_ih_l{layer}", (3 * self.hidden, inputs)),
                (f"recurrent.weight_hh_l{layer}", (3 * self.hidden, self.hidden)),
                (f"recurrent.bias_ih_l{layer}", (3 * self.hidden,)),
                (f"recurrent.bias_hh_l{layer}", (3 * self.hidden,)),
            ]
        return found + _linear("head", self.hidden, self.outputs)


class Transformer(PredictingNetwork):
    """Images or sequences, cut into patches (patch x patch pixels, or `patch` steps), each one token with a learned
    position; pre-norm encoder layers (Xiong et al. 2020) with GELU, the mean over tokens, one logit."""

    architecture: Literal["transformer"]
    patch: Annotated[int, Field(ge=1, le=64)]
    width: Annotated[int, Field(ge=4, le=512, multiple_of=4)] = 64
    heads: Annotated[int, Field(ge=1, le=16)] = 4
    layers: Annotated[int, Field(ge=1, le=12)] = 2
    feedforward: Annotated[int, Field(ge=4, le=2048)] = 128

    @model_validator(mode="after")
    def _divisible(self) -> Transformer:
        if self.width % self.heads:
            raise ValueError("the width must be a multiple of the number of heads")
        return self

    @property
    def smallest(self) -> int:
        """Least height, width and length."""
        return self.patch

    def token_count(self, shape: Shape) -> int:
        """Tokens of one record."""
        return math.prod(size // self.patch for size in shape[1:])

    def largest(self, shape: Shape) -> int:
        """Numbers in the largest value between two layers, of one record: attention's weights, or a wide layer."""
        tokens = self.token_count(shape)
        return tokens * max(self.heads * tokens, 3 * self.width, self.feedforward)

    def tensors(self, shape: Shape) -> Tensors:
        """(name, shape) in wire order for records of `shape`."""
        found = _linear("embed", shape[0] * int(self.patch ** (len(shape) - 1)), self.width)
        found.append(("position.weight", (self.token_count(shape), self.width)))
        for layer in range(self.layers):
            name = f"layers.{layer}"
            found += _norm(f"{name}.attention_norm", self.width)
            found += _linear(f"{name}.queries_keys_values", self.width, 3 * self.width)
            found += _linear(f"{name}.mixed", self.width, self.width)
            found += _norm(f"{name}.feedforward_norm", self.width)
            found += _linear(f"{name}.wide", self.width, self.feedforward)
            found += _linear(f"{name}.narrow", self.feedforward, self.width)
        return found + _norm("norm", self.width) + _linear("head", self.width, self.outputs)


NetworkModel = ConvolutionalNetwork | ResidualNetwork | UNet | TemporalConvolution | RecurrentNetwork | Transformer
NETWORKS = (ConvolutionalNetwork, ResidualNetwork, UNet, TemporalConvolution, RecurrentNetwork, Transformer)
_TAKES = {"cnn": (3,), "resnet": (3,), "unet": (3,), "cnn_1d": (2,), "gru": (2,), "transformer": (2, 3)}
_KINDS = {1: "a table", 2: "a sequence", 3: "an image"}


def misfit(model: NetworkModel, shape: Shape) -> str | None:
    """Why the network can't take records of this shape; None where it can."""
    takes = _TAKES[model.architecture]
    if len(shape) not in takes:
        wanted = " or ".join(_KINDS[rank] for rank in takes)
        return f"{model.architecture} takes {wanted}, and the data set holds {_KINDS[len(shape)]}"
    if min(shape[1:]) < model.smallest:
        return f"{model.architecture} needs at least {model.smallest} along each axis, and a record has {shape[1:]}"
    if isinstance(model, UNet) and any(size % (model.smallest // 2) for size in shape[1:]):
        return f"unet needs height and width to be multiples of {model.smallest // 2}, and a record has {shape[1:]}"
    if isinstance(model, Transformer):
        if any(size % model.patch for size in shape[1:]):
            return f"a patch of {model.patch} does not divide a record of {shape[1:]}"
        if model.token_count(shape) > MOST_TOKENS:
            return f"{model.token_count(shape)} patches; a transformer takes at most {MOST_TOKENS}: make them larger"
    if (numbers := model.largest(shape)) > MOST_AT_ONCE:
        return f"{model.architecture} makes {numbers} numbers of one record; at most {MOST_AT_ONCE} are taken"
    return None


def _norm(name: str, width: int) -> Tensors:
    return [(f"{name}.weight", (width,)), (f"{name}.bias", (width,))]


def _linear(name: str, inputs: int, outputs: int) -> Tensors:
    return [(f"{name}.weight", (outputs, inputs)), (f"{name}.bias", (outputs,))]


def _double(name: str, inputs: int, width: int) -> Tensors:
    first = _normalised(f"{name}.first", (width, inputs, 3, 3))
    return first + _normalised(f"{name}.second", (width, width, 3, 3))


def _normalised(name: str, kernel: Shape) -> Tensors:
    """A convolution without bias and the GroupNorm after it."""
    return [(f"{name}.convolution.weight", kernel), *_norm(f"{name}.norm", kernel[0])]
