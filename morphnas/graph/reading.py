"""Conversion of a plain PyTorch module to a network: an op for each of its operations, and its weights."""

from __future__ import annotations

import copy
import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from morphnas.graph.graph import MAX_VALUES, Graph, GraphError
from morphnas.graph.module import Network, to_module
from morphnas.graph.ops import (
    GELU,
    Activation,
    Add,
    AvgPool,
    BatchNorm,
    Concat,
    Conv,
    Dense,
    Depthwise,
    Dropout,
    Flatten,
    Gate,
    GlobalPool,
    Hardsigmoid,
    Hardswish,
    Input,
    LayerNorm,
    LeakyReLU,
    MaxPool,
    Op,
    Pad,
    ReLU,
    ReLU6,
    Shape,
    Sigmoid,
    SiLU,
    Tanh,
    Weights,
)
from morphnas.graph.starters import Draft

OUTPUT_TOLERANCE = 1e-4
"""Largest difference between the outputs of a network and of the module it was read from, relative to the largest
output."""
_N_PROBES = 4
_SUPPORTED = (
    "convolutions, dense layers, batch norm, layer norm over channels, relu, relu6, leaky relu, silu, gelu, "
    "hardswish, sigmoid, hardsigmoid, tanh, max, average and global pooling, zero padding, flattening, dropout, sums, "
    "products with a number for every channel, and concatenations of channels"
)


Handler = Callable[["_Reader", Mapping[str, Any]], str]
"""Adds the op for an operation with these arguments to the draft; returns the name of its node."""


class ModuleError(ValueError):
    """A module cannot be read as a network; the message names the operation and the problem."""


def from_module(module: nn.Module, input_shape: Sequence[int]) -> Network:
    """The network that computes the same as the module in evaluation mode, with its weights.

    module: made of convolutions (kernel and padding the same along all axes, padding at most half the kernel); dense
    layers over flat features, or over the channels at every position; batch norm; layer norm over channels;
    activations; max, average and global pooling; zero padding, the same along all axes; dropout (that of whole channels
    is omitted); sums; products with one value per channel, as in squeeze-and-excitation and layer scale; and
    concatenations of channels; written with modules, functions or methods. A softmax or log-softmax at the end is
    omitted, since networks return logits. The module is not changed. input_shape: of one example, channels first,
    (channels, *spatial) or (features,).

    The outputs of both are compared on random examples: ModuleError if they differ by more than `OUTPUT_TOLERANCE` of
    the largest, or if the module contains an operation that networks cannot express. ValueError if the input shape is
    not one to four positive integers.
    """
    if not isinstance(module, nn.Module):
        raise ModuleError(f"a torch.nn.Module is needed, not {module!r:.100}")
    shape = Input(input_shape).size  # type: ignore[arg-type]  # checked by Input
    if _N_PROBES * math.prod(shape) > MAX_VALUES:
        raise ModuleError(f"{_N_PROBES} examples of shape {shape} have more than {MAX_VALUES:,} values")
    probes = torch.randn(_N_PROBES, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    try:
        reference = copy.deepcopy(module).cpu().float().eval()
        program = torch.export.export(reference, (probes.clone(),))
    except Exception as error:  # raised by the module, or in one of many types by torch.export
        raise ModuleError(f"torch.export cannot read it for inputs of shape {shape}: {error}") from error
    reader = _Reader(program, shape)
    network = reader.network
    if shared := dict.fromkeys(
        f"{name.rpartition('.')[0] or name} ({times} times)" for name, times in reader.reads.items() if times > 1
    ):
        message = "layers that share weights become layers with separate weights, which are trained independently"
        warnings.warn(f"{message}: {', '.join(shared):.200}", stacklevel=2)
    with torch.no_grad():
        expected = reference(probes.clone())
        outputs = reader.output_function(to_module(network.graph, network.weights).eval()(probes))
    if not isinstance(expected, Tensor):
        raise ModuleError(f"its output must be a tensor, not a {type(expected).__name__}")
    if expected.shape != outputs.shape:
        module_shape, network_shape = tuple(expected.shape[1:]), tuple(outputs.shape[1:])
        raise ModuleError(
            f"it gives {module_shape} for an example, and as a network {network_shape}: flatten its output"
        )
    difference = ((outputs - expected).abs().max() / expected.abs().max().clamp(min=1e-12)).item()
    if not difference <= OUTPUT_TOLERANCE:
        raise ModuleError(f"the network read from it computes something else: outputs differ by {difference:.2g}")
    return network


class _Reader:
    """Reads the operations of an exported program in order.

    network: the result. names: node of the network for every node of the program that depends on the input.
    channels_last: nodes of the program whose channels are the last axis, as where ConvNeXt has dense layers. state: the
    module's parameters and buffers, and what is computed from these alone, by the program's node names; targets: their
    names in the module; reads: how often
    each is read. output_function: what the program applies to the network's outputs, such as a softmax.
    """

    def __init__(self, program: torch.export.ExportedProgram, shape: Shape) -> None:
        signature, self.program = program.graph_signature, program
        state = {**program.constants, **program.state_dict}
        targets = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self.state: dict[str, Tensor] = {name: state[target] for name, target in targets.items()}
        self.targets = targets
        self.reads: Counter[str] = Counter()
        self.draft, self.weights = Draft(shape), Weights()
        self.names: dict[str, str] = {}
        self.channels_last: set[str] = set()
        self.output_function: Callable[[Tensor], Tensor] = _return_outputs
        needed = _needed(program)
        for node in program.graph.nodes:
            if node.op == "placeholder" and node.name in signature.user_inputs:
                self.names[node.name] = "x"
            elif node.op == "call_function" and node.name in needed and not self.is_constant(node):
                self.names[node.name] = self.read(node)
        self.network = self.used_network([self.names.get(str(name), "") for name in signature.user_outputs])

    def is_constant(self, node: fx.Node) -> bool:
        """Whether a node depends on parameters and buffers alone; its value is then one of the `state`."""
        if not node.all_input_nodes or any(source.name not in self.state for source in node.all_input_nodes):
            return False
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: self.state[source.name])
        target: Any = node.target
        with torch.no_grad():
            self.state[node.name] = target(*args, **kwargs)
        self.targets[node.name] = node.name
        return True

    def used_network(self, outputs: Sequence[str]) -> Network:
        """The network of the nodes that the output depends on; all others are omitted."""
        if len(outputs) != 1 or not outputs[0]:
            raise ModuleError("its output is not one tensor that it computes from its input")
        used = {outputs[0]}
        for node in reversed(self.draft.nodes):
            used |= {*node.inputs} if node.name in used else set()
        weights = {name: value for name, value in self.weights.items() if name.rpartition(".")[0] in used}
        try:
            return Network(Graph(tuple(node for node in self.draft.nodes if node.name in used)), weights)
        except GraphError as error:
            raise ModuleError(f"it is not a valid network: {error}") from None

    def read(self, node: fx.Node) -> str:
        """The network's node for a node of the program: a new one, or its input's if the operation changes nothing."""
        name = _operation(node)
        arguments = node.normalized_arguments(self.program.graph_module, normalize_to_only_use_kwargs=True)
        handler = _HANDLERS.get(name.removesuffix("_"))
        if handler is None or arguments is None:
            raise ModuleError(
                f"{_place(node)}: {name} is not one of the operations that networks are made of: {_SUPPORTED}"
            )
        program_shape = tuple(node.meta["val"].shape[1:])
        try:
            source = self.names.get(getattr(arguments.kwargs.get("input"), "name", ""))
            is_no_op = handler is _reshape and source is not None and self.draft.shapes[source] == program_shape
            if name in _FINAL and [user.op for user in node.users] != ["output"]:
                raise ModuleError(f"{name} can only be the last operation")
            self.follow_channels(node, name.removesuffix("_"))
            result = source if is_no_op and source is not None else handler(self, arguments.kwargs)
        except ModuleError as error:
            raise ModuleError(f"{_place(node)}: {error}") from None
        except ValueError as error:  # raised by an op's settings or shape
            raise ModuleError(f"{_place(node)}: {error}") from None
        network_shape = self.draft.shapes[result]
        if node.name in self.channels_last:
            program_shape = (program_shape[-1], *program_shape[:-1])
        if _without_trailing_ones(program_shape) != _without_trailing_ones(network_shape):
            raise ModuleError(
                f"{_place(node)}: {name} gives {program_shape} here, and {network_shape} as an op of a network"
            )
        if name.endswith("_"):  # in place: later reads of its input read its result
            self.names[node.all_input_nodes[0].name] = result
        return result

    def follow_channels(self, node: fx.Node, name: str) -> None:
        """Note whether the channels of a node's result are the last axis."""
        layouts = {source.name in self.channels_last for source in node.all_input_nodes if source.name in self.names}
        if len(layouts) > 1:
            raise ModuleError(f"{name} joins tensors whose channels are different axes")
        last = True in layouts
        if last and name not in _CHANNELS_LAST:
            raise ModuleError(f"{name} cannot be read where the channels are the last axis")
        if last != (name in _PERMUTATIONS):
            self.channels_last.add(node.name)

    def add(self, op: Op, *inputs: str, **tensors: Tensor) -> str:
        name = self.draft.add(op, *inputs)
        self.weights |= {f"{name}.{tensor}": value.detach().clone() for tensor, value in tensors.items()}
        return name

    def examples(self, value: Any) -> str:
        """The name of the network's node for an argument that depends on the input."""
        if isinstance(value, fx.Node) and value.name in self.names:
            return self.names[value.name]
        raise ModuleError(f"{value} is not computed from the input")

    def tensors(self, **values: Any) -> dict[str, Tensor]:
        """The parameters and buffers that are given as arguments, without those that are None."""
        if wrong := [v for v in values.values() if v is not None and getattr(v, "name", None) not in self.state]:
            raise ModuleError(f"{wrong[0]} is neither a parameter nor a buffer")
        self.reads.update(self.targets[value.name] for value in values.values() if value is not None)
        return {name: self.state[value.name] for name, value in values.items() if value is not None}


def _needed(program: torch.export.ExportedProgram) -> set[str]:
    """Names of the nodes that the output depends on, including those that change one of them in place."""
    needed = set(map(str, program.graph_signature.user_outputs))
    for node in reversed(program.graph.nodes):
        inputs = [source.name for source in node.all_input_nodes]
        if node.name in needed or (inputs and inputs[0] in needed and _operation(node).endswith("_")):
            needed |= {node.name, *inputs}
    return needed


def _operation(node: fx.Node) -> str:
    """The name of the ATen operation or Python function that a node calls."""
    target: Any = node.target
    return str(target.name() if hasattr(target, "name") else target).removeprefix("aten::").split(".")[0]


def _place(node: fx.Node) -> str:
    """The name of a program's node and of the submodule that it comes from, for messages."""
    inner = [str(path) for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    return f"{node.name} in {inner[-1]}" if inner and inner[-1] else node.name


def _without_trailing_ones(shape: Shape) -> Shape:
    """The shape without trailing axes of size 1, which pooled channels may have or not."""
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _uniform(setting: str, values: Any, default: int = 0) -> int:
    """The value that a setting has along all axes; the default if it is empty. ModuleError if it differs by axis."""
    per_axis = [values] if isinstance(values, int) else list(values)
    if len(set(per_axis)) > 1:
        raise ModuleError(f"{setting} must be the same along all axes, not {per_axis}")
    return int(per_axis[0]) if per_axis else default


def _require(setting: str, value: Any, required: Any) -> None:
    if value != required:
        raise ModuleError(f"{setting} must be {required}, not {value}")


def _conv(reader: _Reader, kwargs: Mapping[str, Any]) -> str:
    """A depthwise convolution if every channel has its own filter; a dense layer if the input is flat; else a
    convolution, which follows a max pooling of size 1 if a stride exceeds a kernel of 1."""
    tensors = reader.tensors(weight=kwargs["weight"], bias=kwargs["bias"])
    filters, kernel = tensors["weight"].shape[0], _uniform("kernel", tensors["weight"].shape[2:])
    stride, padding = _uniform("stride", kwargs["stride"]), kwargs["padding"]
    _require("dilation", _uniform("dilation", kwargs["dilation"]), 1)
    source = reader.examples(kwargs["input"])
    channels, *positions = reader.draft.shapes[source]
    if isinstance(padding, str):
        padding = 0 if padding == "valid" else kernel // 2
    padding = _uniform("padding", padding)
    groups = kwargs["groups"]
    if kernel == 1 and stride > 1 and positions:
        source, stride = reader.add(MaxPool(1, stride), source), 1
    if groups > 1 and groups == filters == channels:
        return reader.add(Depthwise(kernel, stride, "bias" in tensors, padding), source, **tensors)
    if not positions:
        _require("kernel and groups of a convolution of flat features", (kernel, groups), (1, 1))
        return reader.add(
            Dense(filters, "bias" in tensors), source, **tensors | {"weight": tensors["weight"].flatten(1)}
        )
    return reader.add(Conv(filters, kernel, stride, "bias" in tensors, padding, groups), source, **tensors)


def _linear(reader: _Reader, kwargs: Mapping[str, Any]) -> str:
    """A dense layer, or where the channels are the last axis a convolution of size 1."""
    tensors = reader.tensors(weight=kwargs["weight"], bias=kwargs["bias"])
    source, units = reader.examples(kwargs["input"]), tensors["weight"].shape[0]
    if kwargs["input"].name in reader.channels_last and (axes := len(reader.draft.shapes[source]) - 1):
        tensors["weight"] = tensors["weight"].reshape(*tensors["weight"].shape, *[1] * axes)
        return reader.add(Conv(units, 1, bias="bias" in tensors), source, **tensors)
    return reader.add(Dense(units, "bias" in tensors), source, **tensors)


def _permute(reader: _Reader, kwargs: Mapping[str, Any]) -> str:
    """No op: the channels become the last axis, or are again the first."""
    source = reader.examples(kwargs["input"])
    rank = kwargs["input"].meta["val"].ndim
    if "dims" in kwargs:
        order = [axis % rank for axis in kwargs["dims"]]
    else:
        axes = [[value] if isinstance(value, int) else value for value in (kwargs["source"], kwargs["destination"])]
        order = torch.empty(tuple(range(rank)), device="meta").movedim(*axes).shape  # type: ignore[assignment]
    restored = kwargs["input"].name in reader.channels_last
    _require("order of axes", list(order), [0, rank - 1, *range(1, rank - 1)] if restored else [0, *range(2, rank), 1])
    return source


def _layer_norm(reader: _Reader, kwargs: Mapping[str, Any]) -> str:
    source, normalised = reader.examples(kwargs["input"]), list(kwargs["normalized_shape"])
    shape = reader.draft.shapes[source]
    if normalised != [shape[0]] or not (len(shape) == 1 or kwargs["input"].name in reader.channels_last):
        raise ModuleError(f"only a layer norm over the channels alone can be read, not over {normalised}")
    tensors = reader.tensors(weight=kwargs["weight"], bias=kwargs["bias"])
    tensors = {"weight": torch.ones(shape[0]), "bias": torch.zeros(shape[0]), **tensors}
    return reader.add(LayerNorm(kwargs["eps"]), source, **tensors)


def _batch_norm(reader: _Reader, kwargs: Mapping[str, Any]) -> str:
    if kwargs["training"]:
        raise ModuleError("a batch norm without running statistics (track_running_stats=False) cannot be read")
    source = reader.examples(kwargs["input"])
    tensors = reader.tensors(**{name: kwargs[name] for name in ("weight", "bias", "running_mean", "running_var")})
    width = reader.draft.shapes[source][0]
    tensors = {
        "weight": torch.ones(width),
        "bias": torch.zeros(width),
        **tensors,
        "num_batches_tracked": torch.tensor(0),
    }
    # exported as 0 if it is None, which means averaging over all batches
    momentum = kwargs["momentum"] or BatchNorm().momentum
    return reader.add(BatchNorm(kwargs["eps"], momentum), source, **tensors)


def _activation(op: Activation) -> Handler:
    return lambda reader, kwargs: reader.add(op, reader.examples(kwargs["input"]))


def _leaky_relu(reader: _Reader, kwargs: Mapping[str, Any]) -> str:
    return reader.add(LeakyReLU(kwargs["negative_slope"]), reader.examples(kwargs["input"]))


def _gelu(reader: _Reader, kwargs: Mapping[str, Any]) -> str:
    _require("approximate", kwargs["approximate"], "none")
    return reader.add(GELU(), reader.examples(kwargs["input"]))


def _clamp(reader: _Reader, kwargs: Mapping[str, Any]) -> str:
    low, high = (kwargs.get(a, kwargs.get(b)) for a, b in (("min_val", "min"), ("max_val", "max")))
    if low != 0 or high not in (None, 6):
        raise ModuleError(f"values can only be clamped to 0 or more, or from 0 to 6, not from {low} to {high}")
    return reader.add(ReLU() if high is None else ReLU6(), reader.examples(kwargs["input"]))


def _pool(kind: type[MaxPool | AvgPool]) -> Handler:
    def read(reader: _Reader, kwargs: Mapping[str, Any]) -> str:
        size = _uniform("kernel_size", kwargs["kernel_size"])
        padding = _uniform("padding", kwargs["padding"])
        _require("dilation", _uniform("dilation", kwargs.get("dilation", 1)), 1)
        if padding:
            _require("count_include_pad", kwargs.get("count_include_pad", False), False)
        _require("divisor_override", kwargs.get("divisor_override"), None)
        op = kind(size, _uniform("stride", kwargs["stride"], size), padding, kwargs["ceil_mode"])
        return reader.add(op, reader.examples(kwargs["input"]))

    return read


def _adaptive_avg_pool(reader: _Reader, kwargs: Mapping[str, Any]) -> str:
    """No op if the output size is that of the input, else global pooling."""
    source = reader.examples(kwargs["input"])
    if tuple(kwargs["output_size"]) == reader.draft.shapes[source][1:]:
        return source
    _require("output_size", _uniform("output_size", kwargs["output_size"]), 1)
    return reader.add(GlobalPool(), source)


def _mean(reader: _Reader, kwargs: Mapping[str, Any]) -> str:
    source = reader.examples(kwargs["input"])
    axes = len(reader.draft.shapes[source]) + 1
    _require("axes of a mean", sorted(axis % axes for axis in kwargs.get("dim") or range(axes)), [*range(2, axes)])
    return reader.add(GlobalPool(), source)


def _pad(reader: _Reader, kwargs: Mapping[str, Any]) -> str:
    source, sides = reader.examples(kwargs["input"]), kwargs["pad"]
    _require("mode and value of padding", (kwargs.get("mode", "constant"), kwargs.get("value") or 0), ("constant", 0))
    _require("number of padded axes", len(sides) // 2, len(reader.draft.shapes[source]) - 1)
    return reader.add(Pad(_uniform("padding before", sides[::2]), _uniform("padding after", sides[1::2])), source)


def _reshape(reader: _Reader, kwargs: Mapping[str, Any]) -> str:
    """Flattening, unless the input is flat; `_Reader.read` compares the resulting shapes."""
    source = reader.examples(kwargs["input"])
    return source if len(reader.draft.shapes[source]) == 1 else reader.add(Flatten(), source)


def _dropout(reader: _Reader, kwargs: Mapping[str, Any]) -> str:
    source = reader.examples(kwargs["input"])
    return reader.add(Dropout(kwargs["p"]), source) if kwargs["p"] else source


def _add(reader: _Reader, kwargs: Mapping[str, Any]) -> str:
    _require("alpha", kwargs["alpha"], 1)
    terms = [kwargs["input"], kwargs["other"]]
    # without the 0 that Python's `sum` starts with
    terms = [value for value in terms if not (isinstance(value, (int, float)) and value == 0)]
    sources = [reader.examples(value) for value in terms]
    return reader.add(Add(), *sources) if len(sources) > 1 else sources[0]


def _mul(reader: _Reader, kwargs: Mapping[str, Any]) -> str:
    """A gate, whose second input is the flat one; for factors of the channels that are parameters, a depthwise
    convolution of size 1."""
    factors = [value for value in (kwargs["input"], kwargs["other"]) if getattr(value, "name", "") in reader.state]
    if len(factors) == 1:
        return _scale(reader, kwargs["other"] if factors[0] is kwargs["input"] else kwargs["input"], factors[0])
    sources = [reader.examples(value) for value in (kwargs["input"], kwargs["other"])]
    return reader.add(Gate(), *sorted(sources, key=lambda name: len(reader.draft.shapes[name]), reverse=True))


def _scale(reader: _Reader, values: Any, factors: fx.Node) -> str:
    source, weight = reader.examples(values), reader.tensors(weight=factors)["weight"]
    channels, *positions = reader.draft.shapes[source]
    ones = (1,) * len(positions)
    expected = [(channels,)] if values.name in reader.channels_last else [(channels, *ones), (1, channels, *ones)]
    if not positions:
        raise ModuleError("products of flat features with parameters cannot be read")
    if tuple(weight.shape) not in expected:
        raise ModuleError(f"factors of shape {tuple(weight.shape)} are not one for each of {channels} channels")
    return reader.add(Depthwise(1, padding=0), source, weight=weight.reshape(channels, 1, *ones))


def _einsum(reader: _Reader, kwargs: Mapping[str, Any]) -> str:
    sources = [reader.examples(value) for value in kwargs["tensors"]]
    _require("equation", kwargs["equation"], Gate.equation(reader.draft.shapes[sources[0]]))
    return reader.add(Gate(), *sources)


def _cat(reader: _Reader, kwargs: Mapping[str, Any]) -> str:
    sources = [reader.examples(value) for value in kwargs["tensors"]]
    _require("axis of a concatenation", kwargs["dim"] % (len(reader.draft.shapes[sources[0]]) + 1), 1)
    return reader.add(Concat(), *sources) if len(sources) > 1 else sources[0]


def _return_outputs(outputs: Tensor) -> Tensor:
    return outputs


def _final(function: Callable[..., Tensor]) -> Handler:
    """For a function of the logits, which is not part of the network: it is stored as the `output_function`."""

    def read(reader: _Reader, kwargs: Mapping[str, Any]) -> str:
        source = reader.examples(kwargs["input"])
        _require("axis", kwargs["dim"] % (len(reader.draft.shapes[source]) + 1), 1)
        reader.output_function = lambda outputs: function(outputs, 1)
        return source

    return read


def _identity(reader: _Reader, kwargs: Mapping[str, Any]) -> str:
    return reader.examples(kwargs["input"])


def _cast(reader: _Reader, kwargs: Mapping[str, Any]) -> str:
    """A conversion to float32, which the values have already."""
    _require("dtype", kwargs.get("dtype") or torch.float32, torch.float32)
    return reader.examples(kwargs["input"])


_PERMUTATIONS = ("permute", "movedim")
_CHANNELS_LAST = {
    *_PERMUTATIONS, "layer_norm", "linear", "add", "mul", "dropout", "clone", "contiguous", "detach", "alias", "relu",
    "relu6", "silu", "gelu", "hardswish", "sigmoid", "hardsigmoid", "tanh", "leaky_relu", "hardtanh", "clamp",
    "clamp_min",
}  # fmt: skip
"""Operations that are read where the channels are the last axis."""
_FINAL = {"softmax": torch.softmax, "log_softmax": torch.log_softmax}
_HANDLERS: dict[str, Handler] = {
    **{name: _final(function) for name, function in _FINAL.items()},
    **{f"conv{axes}d": _conv for axes in (1, 2, 3)},
    **{f"max_pool{axes}d": _pool(MaxPool) for axes in (1, 2, 3)},
    **{f"avg_pool{axes}d": _pool(AvgPool) for axes in (1, 2, 3)},
    **{f"adaptive_avg_pool{axes}d": _adaptive_avg_pool for axes in (1, 2, 3)},
    **dict.fromkeys(("flatten", "view", "reshape", "squeeze", "unsqueeze"), _reshape),
    **dict.fromkeys(("clone", "contiguous", "detach", "alias", "feature_dropout"), _identity),
    "linear": _linear, "batch_norm": _batch_norm, "mean": _mean, "dropout": _dropout, "add": _add, "mul": _mul,
    **{op.tag: _activation(op) for op in (ReLU(), ReLU6(), SiLU(), Hardswish(), Sigmoid(), Hardsigmoid(), Tanh())},
    "einsum": _einsum, "leaky_relu": _leaky_relu, "gelu": _gelu, "pad": _pad, "constant_pad_nd": _pad,
    **dict.fromkeys(("hardtanh", "clamp", "clamp_min"), _clamp),
    **dict.fromkeys(("cat", "concat", "concatenate"), _cat),
    "hstack": lambda reader, kwargs: _cat(reader, {**kwargs, "dim": 1}),
    **dict.fromkeys(("to", "_to_copy", "float"), _cast),
    **dict.fromkeys(("permute", "movedim"), _permute),
    "layer_norm": _layer_norm,
}  # fmt: skip
"""By name of the ATen operation, without the trailing underscore of in-place ones."""
