"""A plain PyTorch module read as a network: an op for each of its operations, and its weights."""

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
    LeakyReLU,
    MaxPool,
    Op,
    ReLU,
    ReLU6,
    Shape,
    Sigmoid,
    SiLU,
    Tanh,
    Weights,
)
from morphnas.graph.starters import Draft

PROOF = 1e-4
"""Largest difference of a network's outputs from those of the module that it was read from, relative to the largest."""
_PROBES = 4
_KINDS = (
    "convolutions, dense layers, batch norm, relu, relu6, leaky relu, silu, "
    "gelu, hardswish, sigmoid, hardsigmoid, tanh, max, average and global pooling, flattening, dropout, sums, products "
    "with a number for every channel, and concatenations of channels"
)


Handler = Callable[["_Reading", Mapping[str, Any]], str]
"""What an operation of a program with these arguments becomes: the name of our node."""


class ModuleError(ValueError):
    """A module cannot be read as a network; the message names the operation and the problem."""


def from_module(module: nn.Module, input_shape: Sequence[int]) -> Network:
    """The network that computes what the module does in evaluation mode, with its weights.

    module: made of convolutions (kernels and padding the same along all axes, padding at most half the kernel); dense
    layers over flat features; batch norm; activations; max, average and global pooling; dropout (that of whole channels
    is left out); sums; products with a number for every channel, as in squeeze-and-excitation; and concatenations of
    channels; however it is written. A softmax or log-softmax at its end is left out, since networks give logits. It is
    not changed. input_shape: of one example, channels first, (channels, *spatial) or (features,).

    The outputs of both are compared on random examples: ModuleError if they differ by more than `PROOF` of the
    largest, or if the module does something that networks here cannot.
    """
    if not isinstance(module, nn.Module):
        raise ModuleError(f"a torch.nn.Module is needed, not {module!r:.100}")
    shape = Input(input_shape).size  # type: ignore[arg-type]  # checked there
    if _PROBES * math.prod(shape) > MAX_VALUES:
        raise ModuleError(f"{_PROBES} examples of shape {shape} have more than {MAX_VALUES:,} values")
    probes = torch.randn(_PROBES, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    try:
        own = copy.deepcopy(module).cpu().float().eval()
        program = torch.export.export(own, (probes.clone(),))
    except Exception as error:  # whatever the module raises, and torch's many ways to say that it cannot follow
        raise ModuleError(f"torch.export cannot read it for inputs of shape {shape}: {error}") from error
    reading = _Reading(program, shape)
    network = reading.network
    if several := dict.fromkeys(
        f"{name.rpartition('.')[0] or name} ({times} times)" for name, times in reading.reads.items() if times > 1
    ):
        words = "layers with weights in common become layers with weights of their own, which are trained apart"
        warnings.warn(f"{words}: {', '.join(several):.200}", stacklevel=2)
    with torch.no_grad():
        wanted, found = own(probes.clone()), reading.end(to_module(network.graph, network.weights).eval()(probes))
    if not isinstance(wanted, Tensor):
        raise ModuleError(f"its output must be a tensor, not a {type(wanted).__name__}")
    if wanted.shape != found.shape:
        there, ours = tuple(wanted.shape[1:]), tuple(found.shape[1:])
        raise ModuleError(f"it gives {there} for an example, and as a network {ours}: flatten its output")
    difference = ((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12)).item()
    if not difference <= PROOF:
        raise ModuleError(f"read as a network it computes something else: outputs differ by {difference:.2g}")
    return network


class _Reading:
    """The operations of an exported program, one after the other.

    names: of our node for every node of the program that is a tensor of examples. state: its other tensors, by the
    names of its nodes. end: what the program does with the outputs of the network.
    """

    def __init__(self, program: torch.export.ExportedProgram, shape: Shape) -> None:
        signature, self.program = program.graph_signature, program
        state = {**program.constants, **program.state_dict}
        lifted = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self.state: dict[str, Tensor] = {name: state[target] for name, target in lifted.items()}
        self.held = lifted
        self.reads: Counter[str] = Counter()
        self.draft, self.weights = Draft(shape), Weights()
        self.names: dict[str, str] = {}
        self.end: Callable[[Tensor], Tensor] = _unchanged
        needed = _needed(program)
        for node in program.graph.nodes:
            if node.op == "placeholder" and node.name in signature.user_inputs:
                self.names[node.name] = "x"
            elif node.op == "call_function" and node.name in needed:
                self.names[node.name] = self.read(node)
        self.network = self.ended([self.names.get(str(name), "") for name in signature.user_outputs])

    def ended(self, outputs: Sequence[str]) -> Network:
        """The network of what the output is computed from; what else the module computes is left out."""
        if len(outputs) != 1 or not outputs[0]:
            raise ModuleError("its output is not one tensor that it computes from its input")
        used = {outputs[0]}
        for node in reversed(self.draft.nodes):
            used |= {*node.inputs} if node.name in used else set()
        weights = {name: value for name, value in self.weights.items() if name.rpartition(".")[0] in used}
        try:
            return Network(Graph(tuple(node for node in self.draft.nodes if node.name in used)), weights)
        except GraphError as error:
            raise ModuleError(f"it is no network: {error}") from None

    def read(self, node: fx.Node) -> str:
        """The name of the node that stands for this one of the program, which may have been there before."""
        name = _name(node)
        told = node.normalized_arguments(self.program.graph_module, normalize_to_only_use_kwargs=True)
        handler = _HANDLERS.get(name.removesuffix("_"))
        if handler is None or told is None:
            raise ModuleError(
                f"{_place(node)}: {name} is not one of the operations that networks are made of: {_KINDS}"
            )
        there = tuple(node.meta["val"].shape[1:])
        try:
            source = self.names.get(getattr(told.kwargs.get("input"), "name", ""))
            same = handler is _reshaped and source is not None and self.draft.shapes[source] == there
            if name in _ENDS and [user.op for user in node.users] != ["output"]:
                raise ModuleError(f"{name} can only be the last operation")
            found = source if same and source is not None else handler(self, told.kwargs)
        except ModuleError as error:
            raise ModuleError(f"{_place(node)}: {error}") from None
        except ValueError as error:  # of an op or of a shape
            raise ModuleError(f"{_place(node)}: {error}") from None
        ours = self.draft.shapes[found]
        if _core(there) != _core(ours):
            raise ModuleError(f"{_place(node)}: {name} gives {there} here, and {ours} as an op of a network")
        if name.endswith("_"):  # it works in place: whoever reads what it was given from now on reads what it gave
            self.names[node.all_input_nodes[0].name] = found
        return found

    def add(self, op: Op, *inputs: str, **tensors: Tensor) -> str:
        name = self.draft.add(op, *inputs)
        self.weights |= {f"{name}.{tensor}": value.detach().clone() for tensor, value in tensors.items()}
        return name

    def examples(self, value: Any) -> str:
        """The name of our node for an argument."""
        if isinstance(value, fx.Node) and value.name in self.names:
            return self.names[value.name]
        raise ModuleError(f"{value} is not computed from the input")

    def tensors(self, **values: Any) -> dict[str, Tensor]:
        """The state that arguments name; those that are None are left out."""
        if wrong := [v for v in values.values() if v is not None and getattr(v, "name", None) not in self.state]:
            raise ModuleError(f"{wrong[0]} is neither a parameter nor a buffer")
        self.reads.update(self.held[value.name] for value in values.values() if value is not None)
        return {name: self.state[value.name] for name, value in values.items() if value is not None}


def _needed(program: torch.export.ExportedProgram) -> set[str]:
    """Names of the nodes that the output is computed from, and of those that change such a one in place."""
    needed = set(map(str, program.graph_signature.user_outputs))
    for node in reversed(program.graph.nodes):
        inputs = [given.name for given in node.all_input_nodes]
        if node.name in needed or (inputs and inputs[0] in needed and _name(node).endswith("_")):
            needed |= {node.name, *inputs}
    return needed


def _name(node: fx.Node) -> str:
    """That of an operation of ATen, or of a function of Python's."""
    target: Any = node.target
    return str(target.name() if hasattr(target, "name") else target).removeprefix("aten::").split(".")[0]


def _place(node: fx.Node) -> str:
    """The node of the program, and the submodule that it comes from."""
    inner = [str(path) for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    return f"{node.name} in {inner[-1]}" if inner and inner[-1] else node.name


def _core(shape: Shape) -> Shape:
    """The shape without axes of one position at its end: pooled channels may have them or not."""
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _one(what: str, values: Any, default: int = 0) -> int:
    """The setting that is the same along all axes; none at all means the default."""
    several = [values] if isinstance(values, int) else list(values)
    if len(set(several)) > 1:
        raise ModuleError(f"{what} must be the same along all axes, not {several}")
    return int(several[0]) if several else default


def _check(what: str, value: Any, needed: Any) -> None:
    if value != needed:
        raise ModuleError(f"{what} must be {needed}, not {value}")


def _conv(reading: _Reading, told: Mapping[str, Any]) -> str:
    """A 1x1 convolution with a stride reads single pixels: they are pooled before it. One of flat features is a dense
    layer."""
    held = reading.tensors(weight=told["weight"], bias=told["bias"])
    filters, kernel = held["weight"].shape[0], _one("kernel", held["weight"].shape[2:])
    stride, padding = _one("stride", told["stride"]), told["padding"]
    _check("dilation", _one("dilation", told["dilation"]), 1)
    source = reading.examples(told["input"])
    channels, *positions = reading.draft.shapes[source]
    if isinstance(padding, str):
        padding = 0 if padding == "valid" else kernel // 2
    padding = _one("padding", padding)
    groups = told["groups"]
    if groups > 1 and groups == filters == channels:
        return reading.add(Depthwise(kernel, stride, "bias" in held, padding), source, **held)
    if not positions:
        _check("kernel and groups of a convolution of flat features", (kernel, groups), (1, 1))
        return reading.add(Dense(filters, "bias" in held), source, **held | {"weight": held["weight"].flatten(1)})
    if kernel == 1 and stride > 1:
        source, stride = reading.add(MaxPool(1, stride), source), 1
    return reading.add(Conv(filters, kernel, stride, "bias" in held, padding, groups), source, **held)


def _linear(reading: _Reading, told: Mapping[str, Any]) -> str:
    held = reading.tensors(weight=told["weight"], bias=told["bias"])
    return reading.add(Dense(held["weight"].shape[0], "bias" in held), reading.examples(told["input"]), **held)


def _batch_norm(reading: _Reading, told: Mapping[str, Any]) -> str:
    if told["training"]:
        raise ModuleError("a batch norm without running statistics (track_running_stats=False) cannot be read")
    source = reading.examples(told["input"])
    held = reading.tensors(**{name: told[name] for name in ("weight", "bias", "running_mean", "running_var")})
    width = reading.draft.shapes[source][0]
    held = {"weight": torch.ones(width), "bias": torch.zeros(width), **held, "num_batches_tracked": torch.tensor(0)}
    momentum = told["momentum"] or BatchNorm().momentum  # 0 is PyTorch's for a mean over all batches
    return reading.add(BatchNorm(told["eps"], momentum), source, **held)


def _active(op: Activation) -> Handler:
    return lambda reading, told: reading.add(op, reading.examples(told["input"]))


def _leaky(reading: _Reading, told: Mapping[str, Any]) -> str:
    return reading.add(LeakyReLU(told["negative_slope"]), reading.examples(told["input"]))


def _gelu(reading: _Reading, told: Mapping[str, Any]) -> str:
    _check("approximate", told["approximate"], "none")
    return reading.add(GELU(), reading.examples(told["input"]))


def _clamped(reading: _Reading, told: Mapping[str, Any]) -> str:
    low, high = (told.get(a, told.get(b)) for a, b in (("min_val", "min"), ("max_val", "max")))
    if low != 0 or high not in (None, 6):
        raise ModuleError(f"values can only be clamped to 0 or more, or from 0 to 6, not from {low} to {high}")
    return reading.add(ReLU() if high is None else ReLU6(), reading.examples(told["input"]))


def _pool(kind: type[MaxPool | AvgPool]) -> Handler:
    def read(reading: _Reading, told: Mapping[str, Any]) -> str:
        size = _one("kernel_size", told["kernel_size"])
        padding = _one("padding", told["padding"])
        _check("dilation", _one("dilation", told.get("dilation", 1)), 1)
        if padding:
            _check("count_include_pad", told.get("count_include_pad", False), False)
        _check("divisor_override", told.get("divisor_override"), None)
        op = kind(size, _one("stride", told["stride"], size), padding, told["ceil_mode"])
        return reading.add(op, reading.examples(told["input"]))

    return read


def _adaptive(reading: _Reading, told: Mapping[str, Any]) -> str:
    """Nothing where there are as many positions already, else the mean over all."""
    source = reading.examples(told["input"])
    if tuple(told["output_size"]) == reading.draft.shapes[source][1:]:
        return source
    _check("output_size", _one("output_size", told["output_size"]), 1)
    return reading.add(GlobalPool(), source)


def _mean(reading: _Reading, told: Mapping[str, Any]) -> str:
    source = reading.examples(told["input"])
    axes = len(reading.draft.shapes[source]) + 1
    _check("axes of a mean", sorted(axis % axes for axis in told.get("dim") or range(axes)), [*range(2, axes)])
    return reading.add(GlobalPool(), source)


def _reshaped(reading: _Reading, told: Mapping[str, Any]) -> str:
    """Flattening, as far as there is anything to flatten: `_Reading.read` compares what comes out."""
    source = reading.examples(told["input"])
    return source if len(reading.draft.shapes[source]) == 1 else reading.add(Flatten(), source)


def _dropout(reading: _Reading, told: Mapping[str, Any]) -> str:
    source = reading.examples(told["input"])
    return reading.add(Dropout(told["p"]), source) if told["p"] else source


def _add(reading: _Reading, told: Mapping[str, Any]) -> str:
    _check("alpha", told["alpha"], 1)
    terms = [value for value in (told["input"], told["other"]) if not (isinstance(value, (int, float)) and value == 0)]
    sources = [reading.examples(value) for value in terms]  # Python's sum begins with 0
    return reading.add(Add(), *sources) if len(sources) > 1 else sources[0]


def _mul(reading: _Reading, told: Mapping[str, Any]) -> str:
    """By whichever is flat."""
    sources = [reading.examples(value) for value in (told["input"], told["other"])]
    return reading.add(Gate(), *sorted(sources, key=lambda name: len(reading.draft.shapes[name]), reverse=True))


def _einsum(reading: _Reading, told: Mapping[str, Any]) -> str:
    """As a network has it."""
    sources = [reading.examples(value) for value in told["tensors"]]
    _check("equation", told["equation"], Gate.equation(reading.draft.shapes[sources[0]]))
    return reading.add(Gate(), *sources)


def _cat(reading: _Reading, told: Mapping[str, Any]) -> str:
    sources = [reading.examples(value) for value in told["tensors"]]
    _check("axis of a concatenation", told["dim"] % (len(reading.draft.shapes[sources[0]]) + 1), 1)
    return reading.add(Concat(), *sources) if len(sources) > 1 else sources[0]


def _unchanged(outputs: Tensor) -> Tensor:
    return outputs


def _end(function: Callable[..., Tensor]) -> Handler:
    """Of logits, which a network gives: it is only noted."""

    def read(reading: _Reading, told: Mapping[str, Any]) -> str:
        source = reading.examples(told["input"])
        _check("axis", told["dim"] % (len(reading.draft.shapes[source]) + 1), 1)
        reading.end = lambda outputs: function(outputs, 1)
        return source

    return read


def _same(reading: _Reading, told: Mapping[str, Any]) -> str:
    return reading.examples(told["input"])


def _converted(reading: _Reading, told: Mapping[str, Any]) -> str:
    """To what it is."""
    _check("dtype", told.get("dtype") or torch.float32, torch.float32)
    return reading.examples(told["input"])


_ENDS = {"softmax": torch.softmax, "log_softmax": torch.log_softmax}
_HANDLERS: dict[str, Handler] = {
    **{name: _end(function) for name, function in _ENDS.items()},
    **{f"conv{axes}d": _conv for axes in (1, 2, 3)},
    **{f"max_pool{axes}d": _pool(MaxPool) for axes in (1, 2, 3)},
    **{f"avg_pool{axes}d": _pool(AvgPool) for axes in (1, 2, 3)},
    **{f"adaptive_avg_pool{axes}d": _adaptive for axes in (1, 2, 3)},
    **dict.fromkeys(("flatten", "view", "reshape", "squeeze", "unsqueeze"), _reshaped),
    **dict.fromkeys(("clone", "contiguous", "detach", "alias", "feature_dropout"), _same),
    "linear": _linear, "batch_norm": _batch_norm, "mean": _mean, "dropout": _dropout, "add": _add, "mul": _mul,
    **{op.tag: _active(op) for op in (ReLU(), ReLU6(), SiLU(), Hardswish(), Sigmoid(), Hardsigmoid(), Tanh())},
    "einsum": _einsum, "leaky_relu": _leaky, "gelu": _gelu,
    **dict.fromkeys(("hardtanh", "clamp", "clamp_min"), _clamped),
    **dict.fromkeys(("cat", "concat", "concatenate"), _cat),
    "hstack": lambda reading, told: _cat(reading, {**told, "dim": 1}),
    **dict.fromkeys(("to", "_to_copy", "float"), _converted),
}  # fmt: skip
"""By the name of the operation in ATen, of which one that works in place is the same."""
