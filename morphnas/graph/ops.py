"""The ops that networks are made of, one class per kind.

An op is a small frozen value without weights. Given the shapes of its inputs, it defines the output shape, the weights,
the cost, the PyTorch module or code, and how channels pass through it when a morph widens a tensor.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from morphnas.graph.kinds import describe_kinds, register, type_name

Shape = tuple[int, ...]
"""Channels first, without the batch axis: (channels, *spatial) for 1 to 3 spatial axes, or (features,)."""

Weights = dict[str, Tensor]
"""State dict of a network, by ``<node>.<tensor>``, e.g. ``conv_3.weight``."""


MAX_SIZE = 2**31 - 1
"""Largest value of an op's integer settings: PyTorch's integers are of limited size."""
HALF_KERNEL = -1
"""Value of `padding` for half of the kernel, rounded down, which preserves the resolution with stride 1."""


class ShapeError(ValueError):
    """An op cannot take inputs of the given shape."""


@dataclass(frozen=True)
class Route:
    """The origin of the channels of a tensor that a morph has widened.

    source: (width,) int64, the old channel that each channel repeats, or -1 for a new channel.
    share: (width,) float64, factor on the weights with which readers of the tensor read the channel. The shares of all
        repetitions of a channel sum to 1 and new channels have 0, so that the readers compute the same as before.
    """

    source: Tensor
    share: Tensor

    @staticmethod
    def identity(width: int) -> Route:
        return Route(torch.arange(width), torch.ones(width, dtype=torch.float64))

    @staticmethod
    def concat(*parts: tuple[Route, int]) -> Route:
        """Concatenation of routes, each given with the width of its tensor before the widening."""
        sources, offset = [], 0
        for route, old_width in parts:
            sources.append(torch.where(route.source < 0, route.source, route.source + offset))
            offset += old_width
        return Route(torch.cat(sources), torch.cat([route.share for route, _ in parts]))


_ALLOWED_TYPES: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,)}


def _check_positive(op: Op, *names: str) -> None:
    for name in names:
        value = getattr(op, name)
        if not 1 <= value <= MAX_SIZE:
            raise ValueError(f"{op.tag}: {name} must be a positive integer, not {value!r:.40}")


def _spatial_sizes(op: Op, shape: Shape) -> Shape:
    if not 2 <= len(shape) <= 4:
        raise ShapeError(f"{op.tag} needs (channels, *spatial) with 1 to 3 spatial axes, but its input is {shape}")
    return shape[1:]


def _check_flat(op: Op, shape: Shape) -> None:
    if len(shape) != 1:
        raise ShapeError(f"{op.tag} needs flat features, but its input is {shape}: flatten or pool it first")


def _window_positions(op: Op, shape: Shape, size: int, stride: int, padding: int, ceil: bool = False) -> Shape:
    """Number of positions of a sliding window along each spatial axis, as PyTorch counts them: rounded down, or up if
    `ceil`, but no window starts beyond the last input position."""
    extra = stride - 1 if ceil else 0
    positions = tuple(
        min((n + 2 * padding - size + extra) // stride + 1, (n + padding - 1) // stride + 1)
        for n in _spatial_sizes(op, shape)
    )
    if min(positions) < 1:
        raise ShapeError(f"{op.tag}: a window of {size} with padding {padding} does not fit into {shape}")
    return positions


KINDS: dict[str, type[Op]] = {}
"""All op classes, user-defined ones included, by tag."""


@dataclass(frozen=True)
class Op:
    """Base class of all ops. A subclass is one kind; its fields are its settings: integers, floats and booleans.

    A kind is a frozen dataclass with a `tag` of its own, by which stored networks name it. Defining the class registers
    it.
    """

    tag: ClassVar[str]
    arity: ClassVar[tuple[int, int]] = (1, 1)
    """The smallest and the largest number of inputs."""
    commutative: ClassVar[bool] = False
    """Whether the order of the inputs does not matter."""
    mixes: ClassVar[bool] = False
    """Whether output channels mix input channels, so that the output width is set by the op, not by its input."""
    normalises: ClassVar[bool] = False
    """Whether the output does not depend on the scale of the input."""
    resolution_settings: ClassVar[frozenset[str]] = frozenset()
    """Settings that only affect the resolution of the output."""
    axes: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """For every weight tensor the meaning of its leading axes: "out" or "in" channels."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        register(KINDS, cls)

    def __post_init__(self) -> None:
        """ValueError for settings of another type, so that every op that can be constructed can be read from JSON."""
        for f in fields(self):
            value, kind = getattr(self, f.name), type_name(f)
            allowed = _ALLOWED_TYPES.get(kind)
            if allowed and (not isinstance(value, allowed) or isinstance(value, bool) != (kind == "bool")):
                raise ValueError(f"{self.tag}: {f.name} must be {kind}, not {value!r:.40}")
            if kind == "float":
                with suppress(OverflowError):
                    object.__setattr__(self, f.name, float(value))

    def shape(self, *inputs: Shape) -> Shape:
        """Shape of the output; ShapeError if the op cannot take these inputs."""
        return inputs[0]

    def tensors(self, *inputs: Shape) -> dict[str, Shape]:
        """Names and shapes of the weight tensors, running statistics included."""
        return {}

    def init(self, *inputs: Shape, generator: torch.Generator) -> Weights:
        """Initial weights, by the names of `tensors`."""
        return {}

    def flops(self, *inputs: Shape) -> int:
        """Floating point operations of a forward pass of one example; a multiply-add counts as two."""
        return math.prod(self.shape(*inputs))

    def module(self, *inputs: Shape) -> nn.Module | None:
        """The PyTorch module (on the current default device); None if ``emit`` adds a function call instead."""
        return None

    def emit(self, graph: fx.Graph, name: str, args: tuple[fx.Node, ...], *inputs: Shape) -> fx.Node:
        """Add the op, for inputs of the given shapes, to an fx graph as a node of this name."""
        return graph.call_module(name, args)

    @property
    def fixed_channels(self) -> bool:
        """Whether the channels of its inputs and output cannot change."""
        return False

    def route(self, *inputs: tuple[Route, Shape]) -> Route:
        """Route of the output's channels, given for every input its route and its shape before the widening."""
        return inputs[0][0]

    def shortcut_op(self) -> Op | None:
        """An op without weights that changes the resolution in the same way, for a parallel branch; None if there is
        none, or the resolution does not change."""
        return None

    def default_of(self, setting: str) -> Any:
        """The default of a setting; `dataclasses.MISSING` if it has none."""
        return next(f.default for f in fields(self) if f.name == setting)

    def to_json(self) -> dict[str, Any]:
        return {"op": self.tag} | {f.name: getattr(self, f.name) for f in fields(self)}

    def __str__(self) -> str:
        settings = ", ".join(f"{f.name} {getattr(self, f.name)}" for f in fields(self))
        return f"{self.tag} {settings}".strip()


@dataclass(frozen=True)
class Input(Op):
    """The input examples: pixels or features of one fixed shape, `size`."""

    size: tuple[int, ...]
    tag = "input"
    arity = (0, 0)

    def __post_init__(self) -> None:
        size = tuple(self.size) if isinstance(self.size, Iterable) else ()
        valid = all(isinstance(n, int) and not isinstance(n, bool) and 0 < n <= MAX_SIZE for n in size)
        if not (1 <= len(size) <= 4 and valid):
            raise ValueError(f"input: size must be 1 to 4 positive integers, channels first, not {self.size!r}")
        object.__setattr__(self, "size", size)

    def shape(self, *inputs: Shape) -> Shape:
        return self.size

    def flops(self, *inputs: Shape) -> int:
        return 0

    def emit(self, graph: fx.Graph, name: str, args: tuple[fx.Node, ...], *inputs: Shape) -> fx.Node:
        return graph.placeholder(name)

    def to_json(self) -> dict[str, Any]:
        return {"op": self.tag, "size": list(self.size)}


def _he_init(shapes: Mapping[str, Shape], generator: torch.Generator) -> Weights:
    """Normal weights with variance 2 / fan-in (He et al. 2015, arXiv:1502.01852, eq. 10), zero biases."""
    scale = math.sqrt(2 / math.prod(shapes["weight"][1:]))
    weights = {"weight": torch.randn(shapes["weight"], generator=generator) * scale}
    return weights | {name: torch.zeros(shape) for name, shape in shapes.items() if name != "weight"}


class Producer(Op):
    """An op that mixes channels: its weights are (out, in, ...), its width is a setting."""

    mixes = True
    axes = {"weight": ("out", "in"), "bias": ("out",)}

    @property
    def width(self) -> int:
        raise NotImplementedError

    def widened(self, width: int) -> Op:
        """The same op with another number of output channels."""
        raise NotImplementedError

    def init(self, *inputs: Shape, generator: torch.Generator) -> Weights:
        return _he_init(self.tensors(*inputs), generator)

    def identity(self, *inputs: Shape) -> Weights:
        """Weights (float64) with which the output is the input; needs as many output as input channels."""
        shapes = self.tensors(*inputs)
        weight = torch.zeros(shapes["weight"], dtype=torch.float64)
        centre = tuple(size // 2 for size in shapes["weight"][2:])
        channel = torch.arange(shapes["weight"][0])
        diagonal: tuple[Tensor | int, ...] = (channel, channel, *centre)
        weight[diagonal] = 1
        return {"weight": weight} | {
            name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items() if name != "weight"
        }


class _Sliding(Op):
    """An op with a kernel that slides over 1 to 3 spatial axes."""

    kernel: int
    stride: int
    padding: int
    bias: bool
    resolution_settings = frozenset({"padding"})

    def __post_init__(self) -> None:
        """Sets the default padding and checks the settings.

        A stride above the kernel is refused: it would skip pixels, and with kernel 1 and few channels it corrupts
        memory in oneDNN, PyTorch's CPU library (uxlfoundation/oneDNN issue 6035).
        """
        super().__post_init__()
        _check_positive(self, "kernel", "stride")
        if self.padding == HALF_KERNEL:
            if self.kernel % 2 == 0:
                raise ValueError(f"{self.tag}: kernel must be odd, not {self.kernel}, where no padding is given")
            object.__setattr__(self, "padding", self.kernel // 2)
        if not 0 <= self.padding <= self.kernel // 2:
            raise ValueError(f"{self.tag}: padding must be 0 to half of kernel {self.kernel}, not {self.padding}")
        if self.stride > self.kernel:
            raise ValueError(
                f"{self.tag}: a stride of {self.stride} leaves pixels unread by a kernel of {self.kernel}: pool first"
            )

    def default_of(self, setting: str) -> Any:
        return self.kernel // 2 if setting == "padding" and self.kernel % 2 else super().default_of(setting)

    def _channels(self, shape: Shape) -> tuple[int, int, int]:
        """(input channels, output channels, groups)."""
        raise NotImplementedError

    def shape(self, *inputs: Shape) -> Shape:
        positions = _window_positions(self, inputs[0], self.kernel, self.stride, self.padding)
        return (self._channels(inputs[0])[1], *positions)

    def tensors(self, *inputs: Shape) -> dict[str, Shape]:
        c_in, c_out, groups = self._channels(inputs[0])
        weight = (c_out, c_in // groups, *(self.kernel,) * (len(inputs[0]) - 1))
        return {"weight": weight} | ({"bias": (c_out,)} if self.bias else {})

    def flops(self, *inputs: Shape) -> int:
        return 2 * math.prod((*self.shape(*inputs), *self.tensors(*inputs)["weight"][1:]))

    def module(self, *inputs: Shape) -> nn.Module:
        c_in, c_out, groups = self._channels(inputs[0])
        conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(inputs[0]) - 1]
        return conv(c_in, c_out, self.kernel, self.stride, self.padding, groups=groups, bias=self.bias)

    def shortcut_op(self) -> Op | None:
        changes = self.stride > 1 or 2 * self.padding != self.kernel - 1
        return AvgPool(self.kernel, self.stride, self.padding) if changes else None


@dataclass(frozen=True)
class Conv(_Sliding, Producer):
    """Convolution over 1 to 3 spatial axes.

    padding: zeros at every edge; by default half of the kernel. groups: number of groups of channels, each of which is
    the input of an equal share of the filters (Xie et al. 2017, ResNeXt, arXiv:1611.05431).
    """

    filters: int
    kernel: int = 3
    stride: int = 1
    bias: bool = False
    padding: int = HALF_KERNEL
    groups: int = 1
    tag = "conv"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive(self, "filters", "groups")
        if self.filters % self.groups:
            raise ValueError(f"conv: {self.filters} filters cannot be split into {self.groups} equal groups")

    @property
    def fixed_channels(self) -> bool:
        return self.groups > 1

    @property
    def width(self) -> int:
        return self.filters

    def widened(self, width: int) -> Conv:
        return replace(self, filters=width)

    def _channels(self, shape: Shape) -> tuple[int, int, int]:
        if shape[0] % self.groups:
            raise ShapeError(f"conv: {shape[0]} channels cannot be split into {self.groups} equal groups")
        return shape[0], self.filters, self.groups


@dataclass(frozen=True)
class Depthwise(_Sliding):
    """Depthwise convolution: every channel has its own kernel (Howard et al. 2017, arXiv:1704.04861)."""

    kernel: int = 3
    stride: int = 1
    bias: bool = False
    padding: int = HALF_KERNEL
    tag = "depthwise"
    axes = {"weight": ("out",), "bias": ("out",)}

    def _channels(self, shape: Shape) -> tuple[int, int, int]:
        return shape[0], shape[0], shape[0]

    def init(self, *inputs: Shape, generator: torch.Generator) -> Weights:
        return _he_init(self.tensors(*inputs), generator)


@dataclass(frozen=True)
class Dense(Producer):
    """Fully connected layer over flat features."""

    units: int
    bias: bool = True
    tag = "dense"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive(self, "units")

    @property
    def width(self) -> int:
        return self.units

    def widened(self, width: int) -> Dense:
        return replace(self, units=width)

    def shape(self, *inputs: Shape) -> Shape:
        _check_flat(self, inputs[0])
        return (self.units,)

    def tensors(self, *inputs: Shape) -> dict[str, Shape]:
        return {"weight": (self.units, *inputs[0])} | ({"bias": (self.units,)} if self.bias else {})

    def flops(self, *inputs: Shape) -> int:
        return 2 * self.units * inputs[0][0]

    def module(self, *inputs: Shape) -> nn.Module:
        return nn.Linear(inputs[0][0], self.units, bias=self.bias)


@dataclass(frozen=True)
class BatchNorm(Op):
    """Batch normalisation over channels (Ioffe and Szegedy 2015, arXiv:1502.03167)."""

    eps: float = 1e-5
    momentum: float = 0.1
    tag = "bn"
    normalises = True
    axes = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), ("out",))

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("eps", "momentum"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"bn: {name} must be above 0 and at most 1, not {getattr(self, name)!r}")

    def tensors(self, *inputs: Shape) -> dict[str, Shape]:
        return dict.fromkeys(self.axes, (inputs[0][0],)) | {"num_batches_tracked": ()}

    def init(self, *inputs: Shape, generator: torch.Generator) -> Weights:
        zeros, ones = torch.zeros(inputs[0][0]), torch.ones(inputs[0][0])
        state = {"weight": ones, "bias": zeros, "running_mean": zeros.clone(), "running_var": ones.clone()}
        return state | {"num_batches_tracked": torch.tensor(0)}

    def neutral(self, *inputs: Shape, scale: float = 1.0) -> Weights:
        """Weights (float64) with which evaluation mode only multiplies by `scale`."""
        width, dtype = inputs[0][0], torch.float64
        return {
            "weight": torch.full((width,), scale * math.sqrt(1 + self.eps), dtype=dtype),
            "bias": torch.zeros(width, dtype=dtype),
            "running_mean": torch.zeros(width, dtype=dtype),
            "running_var": torch.ones(width, dtype=dtype),
            "num_batches_tracked": torch.tensor(0),
        }

    def flops(self, *inputs: Shape) -> int:
        return 2 * math.prod(inputs[0])

    def module(self, *inputs: Shape) -> nn.Module:
        norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm1d, 3: nn.BatchNorm2d, 4: nn.BatchNorm3d}[len(inputs[0])]
        return norm(inputs[0][0], eps=self.eps, momentum=self.momentum)


@dataclass(frozen=True)
class LayerNorm(Op):
    """Layer normalisation over the channels, at every position alone (Ba et al. 2016, arXiv:1607.06450; for images as
    in ConvNeXt, Liu et al. 2022, arXiv:2201.03545)."""

    eps: float = 1e-5
    tag = "layernorm"
    normalises = True
    axes = dict.fromkeys(("weight", "bias"), ("out",))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.eps <= 1:
            raise ValueError(f"layernorm: eps must be above 0 and at most 1, not {self.eps!r}")

    @property
    def fixed_channels(self) -> bool:
        return True

    def tensors(self, *inputs: Shape) -> dict[str, Shape]:
        return dict.fromkeys(self.axes, (inputs[0][0],))

    def init(self, *inputs: Shape, generator: torch.Generator) -> Weights:
        return {"weight": torch.ones(inputs[0][0]), "bias": torch.zeros(inputs[0][0])}

    def flops(self, *inputs: Shape) -> int:
        return 8 * math.prod(inputs[0])

    def module(self, *inputs: Shape) -> nn.Module:
        return nn.LayerNorm(inputs[0][0], eps=self.eps)

    def emit(self, graph: fx.Graph, name: str, args: tuple[fx.Node, ...], *inputs: Shape) -> fx.Node:
        if len(inputs[0]) == 1:
            return graph.call_module(name, args)
        channels_last = graph.call_method("movedim", (*args, 1, -1))
        normalised = graph.create_node("call_module", name, (channels_last,), name=f"{name}_channels_last")
        return graph.create_node("call_method", "movedim", (normalised, -1, 1), name=name)


class Activation(Op):
    """An elementwise function, and a site of morphs: blocks are inserted after nonnegative ones, and skips are added
    between any two."""

    nonnegative: ClassVar[bool] = False
    """Whether no output is negative."""
    layer: ClassVar[type[nn.Module]]

    def module(self, *inputs: Shape) -> nn.Module | None:
        return self.layer(*(getattr(self, f.name) for f in fields(self)))


@dataclass(frozen=True)
class ReLU(Activation):
    """max(x, 0)."""

    tag = "relu"
    nonnegative = True

    def module(self, *inputs: Shape) -> None:
        return None

    def emit(self, graph: fx.Graph, name: str, args: tuple[fx.Node, ...], *inputs: Shape) -> fx.Node:
        return graph.create_node("call_function", torch.relu, args, name=name)


@dataclass(frozen=True)
class ReLU6(Activation):
    """min(max(x, 0), 6)."""

    tag = "relu6"
    nonnegative = True
    layer = nn.ReLU6


@dataclass(frozen=True)
class LeakyReLU(Activation):
    """x where it is positive, else slope * x."""

    slope: float = 0.01
    tag = "leakyrelu"
    layer = nn.LeakyReLU

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.slope <= 1:
            raise ValueError(f"leakyrelu: slope must be from 0 to 1, not {self.slope!r}")


@dataclass(frozen=True)
class SiLU(Activation):
    """x sigmoid(x), also called swish (Ramachandran et al. 2017, arXiv:1710.05941)."""

    tag = "silu"
    layer = nn.SiLU


@dataclass(frozen=True)
class GELU(Activation):
    """x times the standard normal distribution function of x (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""

    tag = "gelu"
    layer = nn.GELU


@dataclass(frozen=True)
class Hardswish(Activation):
    """x relu6(x + 3) / 6 (Howard et al. 2019, arXiv:1905.02244)."""

    tag = "hardswish"
    layer = nn.Hardswish


@dataclass(frozen=True)
class Sigmoid(Activation):
    """1 / (1 + exp(-x))."""

    tag = "sigmoid"
    nonnegative = True
    layer = nn.Sigmoid


@dataclass(frozen=True)
class Hardsigmoid(Activation):
    """relu6(x + 3) / 6 (Howard et al. 2019, arXiv:1905.02244)."""

    tag = "hardsigmoid"
    nonnegative = True
    layer = nn.Hardsigmoid


@dataclass(frozen=True)
class Tanh(Activation):
    """The hyperbolic tangent."""

    tag = "tanh"
    layer = nn.Tanh


@dataclass(frozen=True)
class _Pool(Op):
    """Base class of pooling. ceil: whether a last window counts that only partly covers the input."""

    size: int = 2
    stride: int = 2
    padding: int = 0
    ceil: bool = False
    resolution_settings = frozenset({"padding", "ceil"})

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive(self, "size", "stride")
        if not 0 <= self.padding <= self.size // 2:
            raise ValueError(f"{self.tag}: padding must be 0 to half of size {self.size}, not {self.padding}")

    def shape(self, *inputs: Shape) -> Shape:
        return (inputs[0][0], *_window_positions(self, inputs[0], self.size, self.stride, self.padding, self.ceil))

    def flops(self, *inputs: Shape) -> int:
        return int(math.prod(self.shape(*inputs)) * self.size ** (len(inputs[0]) - 1))

    def shortcut_op(self) -> Op | None:
        return self


@dataclass(frozen=True)
class MaxPool(_Pool):
    """Largest value of each window."""

    tag = "maxpool"

    def module(self, *inputs: Shape) -> nn.Module:
        pool = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}[len(inputs[0]) - 1]
        return pool(self.size, self.stride, self.padding, ceil_mode=self.ceil)


@dataclass(frozen=True)
class AvgPool(_Pool):
    """Mean of each window, not counting padding."""

    tag = "avgpool"

    def shape(self, *inputs: Shape) -> Shape:
        if len(inputs[0]) == 4 and min(inputs[0][1:]) < self.size:
            raise ShapeError(f"avgpool: torch does not average windows of {self.size} over three axes of {inputs[0]}")
        return super().shape(*inputs)

    def module(self, *inputs: Shape) -> nn.Module:
        pool: Callable[..., nn.Module] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}[len(inputs[0]) - 1]
        return pool(self.size, self.stride, self.padding, ceil_mode=self.ceil, count_include_pad=False)


@dataclass(frozen=True)
class Pad(Op):
    """Zeros before and after the values along every spatial axis, for convolutions whose padding is not symmetric."""

    before: int = 0
    after: int = 0
    tag = "pad"
    resolution_settings = frozenset({"before", "after"})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("before", "after"):
            if not 0 <= getattr(self, name) <= MAX_SIZE:
                raise ValueError(f"pad: {name} must be a positive integer or 0, not {getattr(self, name)!r:.40}")

    def shape(self, *inputs: Shape) -> Shape:
        return (inputs[0][0], *(n + self.before + self.after for n in _spatial_sizes(self, inputs[0])))

    def flops(self, *inputs: Shape) -> int:
        return 0

    def emit(self, graph: fx.Graph, name: str, args: tuple[fx.Node, ...], *inputs: Shape) -> fx.Node:
        sides = (self.before, self.after) * (len(inputs[0]) - 1)
        return graph.create_node("call_function", nn.functional.pad, (*args, sides), name=name)

    def shortcut_op(self) -> Op | None:
        return self if self.before or self.after else None


@dataclass(frozen=True)
class GlobalPool(Op):
    """Mean over all positions: (channels, *spatial) -> (channels,)."""

    tag = "globalpool"

    def shape(self, *inputs: Shape) -> Shape:
        _spatial_sizes(self, inputs[0])
        return inputs[0][:1]

    def flops(self, *inputs: Shape) -> int:
        return math.prod(inputs[0])

    def emit(self, graph: fx.Graph, name: str, args: tuple[fx.Node, ...], *inputs: Shape) -> fx.Node:
        positions = tuple(range(2, 1 + len(inputs[0])))  # the batch is axis 0, the channels are axis 1
        return graph.create_node("call_method", "mean", (*args, positions), name=name)

    def shortcut_op(self) -> Op | None:
        return self


@dataclass(frozen=True)
class Flatten(Op):
    """(channels, *spatial) -> (channels * positions,), channel by channel."""

    tag = "flatten"

    def shape(self, *inputs: Shape) -> Shape:
        return (math.prod(inputs[0]),)

    def flops(self, *inputs: Shape) -> int:
        return 0

    def emit(self, graph: fx.Graph, name: str, args: tuple[fx.Node, ...], *inputs: Shape) -> fx.Node:
        return graph.create_node("call_function", torch.flatten, (*args, 1), name=name)

    def route(self, *inputs: tuple[Route, Shape]) -> Route:
        (route, _), positions = inputs[0], math.prod(inputs[0][1][1:])
        spread = route.source[:, None] * positions + torch.arange(positions)
        source = torch.where(route.source[:, None] < 0, -1, spread)
        return Route(source.flatten(), route.share.repeat_interleave(positions))


@dataclass(frozen=True)
class Dropout(Op):
    """In training each value is dropped with probability `rate` (Srivastava et al. 2014, JMLR 15)."""

    rate: float = 0.25
    tag = "dropout"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.rate < 1:
            raise ValueError(f"dropout: rate must be at least 0 and below 1, not {self.rate!r}")

    def module(self, *inputs: Shape) -> nn.Module:
        return nn.Dropout(self.rate)


class Elementwise(Op):
    """An op that combines two tensors elementwise, so that their widths are tied."""

    arity = (2, 2)

    def route(self, *inputs: tuple[Route, Shape]) -> Route:
        (left, _), (right, _) = inputs
        if not (torch.equal(left.source, right.source) and torch.equal(left.share, right.share)):
            raise ShapeError(f"{self.tag}: its inputs were widened in different ways")
        return left


@dataclass(frozen=True)
class Add(Elementwise):
    """Sum of two tensors of the same shape."""

    tag = "add"
    commutative = True

    def shape(self, *inputs: Shape) -> Shape:
        if inputs[0] != inputs[1]:
            raise ShapeError(f"add needs inputs of one shape, but they are {inputs[0]} and {inputs[1]}")
        return inputs[0]

    def emit(self, graph: fx.Graph, name: str, args: tuple[fx.Node, ...], *inputs: Shape) -> fx.Node:
        return graph.create_node("call_function", operator.add, args, name=name)


@dataclass(frozen=True)
class Gate(Elementwise):
    """Every channel of the first input times one value of the second, which is flat, as in squeeze-and-excitation
    (Hu et al. 2018, arXiv:1709.01507)."""

    tag = "gate"

    def shape(self, *inputs: Shape) -> Shape:
        if inputs[1] != inputs[0][:1]:
            raise ShapeError(f"gate needs a number for every channel of {inputs[0]}, but they are {inputs[1]}")
        return inputs[0]

    @staticmethod
    def equation(shape: Shape) -> str:
        """The `torch.einsum` equation for a first input of this shape."""
        axes = "xyz"[: len(shape) - 1]
        return f"nc{axes},nc->nc{axes}"

    def emit(self, graph: fx.Graph, name: str, args: tuple[fx.Node, ...], *inputs: Shape) -> fx.Node:
        return graph.create_node("call_function", torch.einsum, (self.equation(inputs[0]), *args), name=name)


@dataclass(frozen=True)
class Concat(Op):
    """Concatenation of the channels of all inputs, which have the same resolution."""

    tag = "concat"
    arity = (2, 1_000)

    def shape(self, *inputs: Shape) -> Shape:
        if len({shape[1:] for shape in inputs}) > 1:
            raise ShapeError(f"concat needs inputs of one resolution, but they are {', '.join(map(str, inputs))}")
        return (sum(shape[0] for shape in inputs), *inputs[0][1:])

    def flops(self, *inputs: Shape) -> int:
        return 0

    def emit(self, graph: fx.Graph, name: str, args: tuple[fx.Node, ...], *inputs: Shape) -> fx.Node:
        return graph.create_node("call_function", torch.cat, (list(args), 1), name=name)

    def route(self, *inputs: tuple[Route, Shape]) -> Route:
        return Route.concat(*((route, shape[0]) for route, shape in inputs))


def op_from_json(data: Mapping[str, Any]) -> Op:
    """The op from the data of `Op.to_json`; ValueError for an unknown kind or wrong settings."""
    settings = dict(data)
    tag = settings.pop("op", None)
    if not isinstance(tag, str) or tag not in KINDS:
        raise ValueError(f"unknown op {tag!r:.100}: {describe_kinds(KINDS)}")
    names = [f.name for f in fields(KINDS[tag])]
    if unknown := [name for name in settings if name not in names]:
        raise ValueError(f"{tag}: unknown setting {unknown[0]!r}, it has {', '.join(names) or 'none'}")
    try:
        return KINDS[tag](**settings)
    except TypeError as error:
        raise ValueError(f"{tag}: {error}") from error
