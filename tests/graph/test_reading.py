"""`from_module`: networks compute the same as their modules, and errors say what cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from morphnas.graph import (
    BatchNorm,
    Conv,
    Dense,
    Flatten,
    GlobalPool,
    Graph,
    GraphError,
    ModuleError,
    MorphError,
    Network,
    Pad,
    ReLU,
    ReLU6,
    Wider,
    cnn,
    from_module,
    mlp,
    neighbours,
    resnet,
    to_module,
    width_group,
)
from morphnas.graph.morphs import width_groups
from tests.strategies import HAND_MADE, graphs, random_inputs, random_weights, sequential


def agree(network: Network, module: nn.Module, x: Tensor) -> bool:
    """Whether the network and the module have the same outputs."""
    with torch.no_grad():
        return torch.allclose(network.to_module().eval()(x), module.eval()(x), atol=1e-4, rtol=1e-4)


@settings(max_examples=10)
@given(graph=graphs(), seed=st.integers(0, 100))
def test_generated_module_is_read_back(graph: Graph, seed: int) -> None:
    module = to_module(graph, random_weights(graph, seed, torch.float32)).eval()
    network = from_module(module, graph.shapes[graph.input.name])
    # from_module omits a flatten that has no effect
    omitted = [n for n in graph.nodes if isinstance(n.op, Flatten) and len(graph.shapes[n.inputs[0]]) == 1]
    assert omitted or network.graph.key == graph.key
    assert agree(network, module, random_inputs(graph, seed, dtype=torch.float32))


@pytest.mark.parametrize("name", HAND_MADE)
def test_networks_with_every_op_are_read_back(name: str) -> None:
    graph = HAND_MADE[name]()
    module = to_module(graph, random_weights(graph, 5, torch.float32)).eval()
    assert agree(
        from_module(module, graph.shapes[graph.input.name]), module, random_inputs(graph, 5, dtype=torch.float32)
    )


class ResidualBlock(nn.Module):
    """With in-place operations, and a strided 1x1 convolution as shortcut."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.Conv2d(c_out, c_out, 3, 1, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(c_out) for _ in range(3))
        self.down = nn.Conv2d(c_in, c_out, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norms[0](self.one(x)), inplace=True)
        y = self.norms[1](self.two(y))
        y += self.norms[2](self.down(x))
        out: Tensor = y.relu_()
        return out


class TypicalNetwork(nn.Module):
    """Uses modules, functions and methods, and has a branch that depends on the size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 7, 2, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.blocks = nn.Sequential(ResidualBlock(8, 8, 1), ResidualBlock(8, 12, 2))
        self.last = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.stem(x), 3, stride=2, padding=1)
        x = self.blocks(x) if x.shape[-1] > 2 else x
        x = torch.cat([x, F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)], 1)
        x = F.adaptive_avg_pool2d(x, 1).view(x.size(0), -1)
        out: Tensor = self.last(F.dropout(x, 0.3, self.training))
        return out


def with_random_statistics(module: nn.Module) -> nn.Module:
    """The module, its batch norms now with random running statistics."""
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.load_state_dict({"running_mean": torch.randn(layer.num_features)}, strict=False)
                layer.load_state_dict({"running_var": torch.rand(layer.num_features) + 0.5}, strict=False)
    return module


def test_typical_module_is_read() -> None:
    module = with_random_statistics(TypicalNetwork())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    network = from_module(module, (3, 32, 32))
    assert agree(network, module, torch.randn(3, 3, 32, 32))
    assert network.graph.parameters == sum(p.numel() for p in module.parameters())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert len(list(neighbours(network.graph))) > 10


class TutorialNetwork(nn.Module):
    """A network as in tutorials: no padding, and probabilities as output."""

    def __init__(self, end: Callable[..., Tensor] = F.log_softmax) -> None:
        super().__init__()
        self.one, self.two, self.end = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 8, 3, padding="valid"), end
        self.first, self.last = nn.Linear(72, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.one(x)), 2)
        x = F.max_pool2d(torch.tanh(self.two(x)), 3, 1, ceil_mode=True)
        x = F.leaky_relu(self.first(torch.flatten(x, 1)), 0.2)
        return self.end(self.last(x), dim=1)


@pytest.mark.parametrize("end", [F.log_softmax, F.softmax, torch.softmax])
def test_final_softmax_is_omitted(end: Callable[..., Tensor]) -> None:
    module = TutorialNetwork(end).eval()
    network, x = from_module(module, (1, 18, 18)), torch.randn(3, 1, 18, 18)
    logits = network.to_module().eval()(x)
    assert torch.allclose(end(logits, dim=1), module(x), atol=1e-5)
    assert logits.exp().sum(1).sub(1).abs().min() > 0.01
    morphs = list(neighbours(network.graph))
    assert {morph.tag for morph in morphs} >= {"deeper", "wider", "wider_all"}


class InvertedResidual(nn.Module):
    """A block of a mobile network: inverted residual with squeeze-and-excitation."""

    def __init__(self, width: int, active: type[nn.Module], gate: type[nn.Module]) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(width, 12, 1, bias=False), nn.BatchNorm2d(12), active(inplace=True))
        depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False)
        self.depthwise = nn.Sequential(depthwise, nn.BatchNorm2d(12), active(inplace=True))
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(12, 3, 1), nn.ReLU(), nn.Conv2d(3, 12, 1), gate()
        )
        self.project = nn.Sequential(nn.Conv2d(12, width, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.expand(x))
        out: Tensor = x + self.project(self.squeeze(y) * y)
        return out


@pytest.mark.parametrize("active", [nn.ReLU6, nn.SiLU, nn.Hardswish])
@pytest.mark.parametrize("gate", [nn.Sigmoid, nn.Hardsigmoid])
def test_mobile_networks_are_read_and_morphed(active: type[nn.Module], gate: type[nn.Module]) -> None:
    stem = nn.Sequential(nn.Conv2d(3, 8, 4, 2, 1), nn.GELU())
    module = with_random_statistics(
        nn.Sequential(stem, InvertedResidual(8, active, gate), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    )
    network, x = from_module(module, (3, 16, 16)), torch.randn(3, 3, 16, 16)
    assert agree(network, module, x)
    assert network.graph.parameters == sum(p.numel() for p in module.parameters())
    expand = next(n.name for n in network.graph.nodes if isinstance(n.op, Conv) and n.op.filters == 12)
    assert [network.graph[name].op.tag for name in sorted(width_group(network.graph, expand))] == ["conv", "dense"]
    for morph in neighbours(network.graph):
        carried = morph.carry(network.graph, network.weights, torch.Generator().manual_seed(0))
        assert agree(Network(morph.grow(network.graph), carried), module, x), morph


class GroupedBlock(nn.Module):
    """A block of ResNeXt or RegNet."""

    def __init__(self, width: int, inner: int, groups: int) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU())
        self.conv = nn.Sequential(
            nn.Conv2d(inner, inner, 3, padding=1, groups=groups, bias=False), nn.BatchNorm2d(inner), nn.ReLU()
        )
        self.expand = nn.Sequential(nn.Conv2d(inner, width, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.expand(self.conv(self.reduce(x))))


def test_grouped_convolutions_are_read_with_fixed_widths() -> None:
    down = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1, groups=8), nn.ReLU())
    module = with_random_statistics(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), GroupedBlock(8, 12, 3), down, nn.Flatten(), nn.Linear(16 * 36, 4))
    )
    network, x = from_module(module, (3, 14, 14)), torch.randn(3, 3, 14, 14)
    assert agree(network, module, x)
    graph = network.graph
    assert graph.parameters == sum(p.numel() for p in module.parameters())
    convs = {node.name: node.op for node in graph.nodes if isinstance(node.op, Conv)}
    assert [op.groups for op in convs.values()] == [1, 1, 3, 1, 8]
    assert width_groups(graph) == []  # widths are fixed by the grouped convolutions and the sums with them
    assert {morph.tag for morph in neighbours(graph)} >= {"deeper", "add_skip"}
    for name in convs:
        with pytest.raises(MorphError, match=f"{name}: the channels of conv_\\d+ cannot change"):
            Wider(name, 48).grow(graph)
    for morph in neighbours(graph):
        carried = morph.carry(graph, network.weights, torch.Generator().manual_seed(0))
        assert agree(Network(morph.grow(graph), carried), module, x), morph


@pytest.mark.parametrize(
    "clamped",
    [lambda x: x.clamp(min=0), lambda x: x.clamp_(0), lambda x: x.clamp(0, 6), lambda x: F.hardtanh(x, 0.0, 6.0)],
)
def test_clamp_is_read_as_relu(clamped: Callable[[Tensor], Tensor]) -> None:
    module = nn.Sequential(nn.Conv2d(4, 8, 3), Function(clamped), nn.Flatten(), nn.Linear(288, 2)).eval()
    network, x = from_module(module, (4, 8, 8)), 5 * torch.randn(3, 4, 8, 8)
    assert agree(network, module, x)
    assert isinstance(network.graph.nodes[2].op, ReLU | ReLU6)


def test_layers_that_share_weights_are_copied_with_a_warning() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.again, self.head = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.first(x))
            for _ in range(3):
                x = F.relu(self.again(x))
            out: Tensor = self.head(x.mean((2, 3)))
            return out

    module = Tied().eval()
    with pytest.warns(UserWarning, match=r"share weights become layers .*: again \(3 times\)"):
        network = from_module(module, (2, 8, 8))
    assert agree(network, module, torch.randn(3, 2, 8, 8))
    assert network.graph.parameters == sum(p.numel() for p in module.parameters()) + 2 * (4 * 4 * 9 + 4)


def test_gates_with_explicit_axes_are_read() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(2, 4, 3), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.one(x)
            gate = torch.sigmoid(self.two(x.mean((2, 3))))
            x = x * gate.view(-1, 4, 1, 1)
            return (x * gate.unsqueeze(-1).unsqueeze(-1)).mean((2, 3))

    module = Gated()
    assert agree(from_module(module, (2, 6, 6)), module, torch.randn(3, 2, 6, 6))


class ConvNeXtBlock(nn.Module):
    """As in torchvision, with a layer scale of the first axis, or as in timm, where it is of the last one."""

    def __init__(self, channels: int, scale_last: bool) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm, self.one = nn.LayerNorm(channels, eps=1e-6), nn.Linear(channels, 4 * channels)
        self.two, self.scale_last = nn.Linear(4 * channels, channels), scale_last
        self.scale = nn.Parameter(torch.rand(channels) if scale_last else torch.rand(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(x).permute(0, 2, 3, 1)
        y = self.two(F.gelu(self.one(self.norm(y))))
        y = self.scale * y if self.scale_last else y
        y = y.permute(0, 3, 1, 2)
        out: Tensor = x + (y if self.scale_last else y * self.scale)
        return out


@pytest.mark.parametrize("scale_last", [False, True])
def test_convnext_is_read(scale_last: bool) -> None:
    module = nn.Sequential(
        nn.Conv2d(2, 8, 2, 2), ConvNeXtBlock(8, scale_last), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(8),
        nn.Linear(8, 3),
    ).eval()  # fmt: skip
    network, x = from_module(module, (2, 8, 8)), torch.randn(3, 2, 8, 8)
    assert agree(network, module, x)
    assert [node.op.tag for node in network.graph.nodes] == [
        "input", "conv", "depthwise", "layernorm", "conv", "gelu", "conv", "depthwise", "add", "globalpool",
        "layernorm", "dense",
    ]  # fmt: skip
    assert network.graph.parameters == sum(p.numel() for p in module.parameters())
    assert Wider in {type(morph) for morph in neighbours(network.graph)}
    for morph in neighbours(network.graph):
        carried = morph.carry(network.graph, network.weights, torch.Generator().manual_seed(0))
        assert agree(Network(morph.grow(network.graph), carried), module, x), morph


def test_what_is_computed_from_parameters_is_read_as_a_parameter() -> None:
    """Here standardised filters, and a layer scale that is reshaped."""

    class Standardised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(2, 4, 3), nn.Linear(4, 3)
            self.gamma = nn.Parameter(torch.rand(4))

        def forward(self, x: Tensor) -> Tensor:
            weight = torch.cat(self.conv.weight.chunk(2))
            x = F.conv2d(x, (weight - weight.mean((1, 2, 3), keepdim=True)) / weight.std((1, 2, 3), keepdim=True))
            out: Tensor = self.head((x * self.gamma.reshape(1, -1, 1, 1)).relu().mean((2, 3)))
            return out

    module = Standardised()
    network = from_module(module, (2, 6, 6))
    assert agree(network, module, torch.randn(3, 2, 6, 6))
    assert [node.op.tag for node in network.graph.nodes][1:3] == ["conv", "depthwise"]


def test_strided_depthwise_convolution_of_one_pixel_is_read() -> None:
    module = nn.Sequential(nn.Conv2d(4, 4, 1, 2, groups=4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    assert agree(from_module(module, (4, 8, 8)), module, torch.randn(3, 4, 8, 8))


@pytest.mark.parametrize(
    "padded",
    [nn.ZeroPad2d((0, 1, 0, 1)), nn.ConstantPad2d((2, 0, 2, 0), 0.0), nn.ZeroPad2d(2), Pad(1, 0)],
)
def test_zero_padding_is_read(padded: Any) -> None:
    if isinstance(padded, Pad):
        sides = (padded.before, padded.after) * 2
        padded = Function(lambda x: F.pad(x, sides))
    module = nn.Sequential(padded, nn.Conv2d(4, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    module(torch.zeros(1, 4, 8, 8))
    network, x = from_module(module, (4, 8, 8)), torch.randn(3, 4, 8, 8)
    assert isinstance(network.graph.nodes[1].op, Pad)
    assert agree(network, module, x)


def test_from_module_leaves_mode_and_dtype_unchanged() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(8, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(), nn.Linear(4, 2))
    from_module(module.double(), (2, 2, 2))
    assert module.training
    assert all(p.dtype == torch.float64 for p in module.parameters())


def test_later_readers_see_the_output_of_an_inplace_relu() -> None:
    class Overwriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.one(x)
            y: Tensor = self.two(F.relu_(x))
            return (y + x).mean((2, 3))  # x was overwritten by the relu

    module = Overwriting()
    assert agree(from_module(module, (2, 6, 6)), module, torch.randn(3, 2, 6, 6))


def test_module_that_overwrites_its_input_is_read() -> None:
    class Overwriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x += self.one(x)
            return x.mean((2, 3))

    module = Overwriting()
    network, x = from_module(module, (4, 6, 6)), torch.randn(3, 4, 6, 6)
    assert agree(network, Function(lambda x: module(x.clone())), x)


def test_from_module_rejects_too_large_examples() -> None:
    with pytest.raises(ModuleError, match=r"4 examples of shape \(3, 1000000, 1000000\) have more than 1,000,000,000"):
        from_module(nn.Flatten(), (3, 10**6, 10**6))


def test_operations_without_effect_are_omitted() -> None:
    """Copies, axes of size 1, a concatenation of a single tensor, and dropout with probability 0."""

    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.last = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.cat([self.one(x).contiguous().clone()], 1)
            x = F.adaptive_avg_pool2d(F.adaptive_avg_pool2d(x, (6, 6)), 1).squeeze(-1).detach()
            out: Tensor = self.last(F.dropout(x.flatten(1), 0.0))
            return out

    network = from_module(Idle(), (2, 6, 6))
    assert [node.op.tag for node in network.graph.nodes] == ["input", "conv", "globalpool", "dense"]


@pytest.mark.parametrize("join", [torch.cat, torch.concat, torch.concatenate, None])
def test_branches_joined_by_any_function_are_read(join: Any) -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branches = nn.ModuleList(nn.Conv2d(2, 3, k, padding=k // 2) for k in (1, 3, 5))
            self.head = nn.Linear(9 if join else 3, 4)

        def forward(self, x: Tensor) -> Tensor:
            parts = [branch(x) for branch in self.branches]
            joined = join(parts, 1) if join else sum(parts)
            out: Tensor = self.head(joined.mean((2, 3)))
            return out

    module = Branches().eval()
    assert agree(from_module(module, (2, 6, 6)), module, torch.randn(3, 2, 6, 6))


@pytest.mark.parametrize(
    "detour",
    [
        lambda x, layer: x.float(), lambda x, layer: x.to(torch.float32), lambda x, layer: x.view(x.shape[0], 3, 6, 6),
        lambda x, layer: [x, layer(x).sum()][0],
    ],
)  # fmt: skip
def test_conversions_and_unused_operations_are_omitted(detour: Callable[[Tensor, nn.Module], Tensor]) -> None:
    class Detour(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.unused, self.head = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 2, 1), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = detour(self.conv(x), self.unused)
            out: Tensor = self.head(torch.hstack([x, x.relu()]).mean((2, 3)))
            return out

    module = Detour().eval()
    network = from_module(module, (2, 6, 6))
    assert [node.op.tag for node in network.graph.nodes].count("conv") == 1
    assert agree(network, module, torch.randn(3, 2, 6, 6))


def test_settings_for_training_alone_are_omitted() -> None:
    """Dropout of whole channels, and cumulative running statistics (momentum None)."""
    module = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4, momentum=None), nn.Dropout2d(0.3), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    network = from_module(module, (2, 6, 6))
    assert [node.op.tag for node in network.graph.nodes] == ["input", "conv", "bn", "globalpool", "dense"]


def conv(*args: Any, **kwargs: Any) -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 4, *args, **kwargs), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


class Scaled(nn.Module):
    """A product with a parameter."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.rand(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factors


class Function(nn.Module):
    """A function of the input, with a buffer that it does not use."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("unused", torch.ones(1, 4, 8, 8))

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (conv(3, padding=2), "padding must be 0 to half of kernel 3, not 2"),
        (conv(3, padding=(1, 0)), r"padding must be the same along all axes, not \[1, 0\]"),
        (conv((3, 1), padding=(1, 0)), r"kernel must be the same along all axes, not \[3, 1\]"),
        (conv(3, padding=2, dilation=2), "dilation must be 1, not 2"),
        (
            nn.Sequential(nn.Conv2d(4, 4, 1), nn.Softplus()),
            "softplus in 1: softplus is not one of .* convolutions, dense",
        ),
        (nn.Sequential(conv(3, padding=1), nn.Softmax(1), nn.Linear(2, 2)), "softmax can only be the last operation"),
        (nn.Softmax(2), "softmax: axis must be 1, not 2"),
        (nn.GELU("tanh"), "approximate must be none, not tanh"),
        (nn.Hardtanh(), "values can only be clamped to 0 or more, or from 0 to 6, not from -1.0 to 1.0"),
        (nn.LeakyReLU(2), "slope must be from 0 to 1, not 2"),
        (Function(lambda x: x * x), r"gate needs a number for every channel of \(4, 8, 8\), but they are \(4, 8, 8\)"),
        (
            Function(lambda x: torch.einsum("nchw,nc->nhw", x, x.mean((2, 3)))),
            "equation must be ncxy,nc->ncxy, not nchw",
        ),
        (nn.BatchNorm2d(4, track_running_stats=False), "a batch norm without running statistics"),
        (nn.AvgPool2d(3, 1, 1), "count_include_pad must be False, not True"),
        (nn.AdaptiveAvgPool2d(2), "output_size must be 1, not 2"),
        (nn.ZeroPad2d((1, 1, 0, 0)), r"padding before must be the same along all axes, not \[1, 0\]"),
        (nn.ConstantPad2d(1, 0.5), r"mode and value of padding must be \('constant', 0\), not \('constant', 0.5\)"),
        (nn.ReflectionPad2d(1), "pad is not one of|mode and value of padding"),
        (Function(lambda x: F.pad(x, (0, 0, 0, 0, 1, 1))), "number of padded axes must be 2, not 3"),
        (nn.LayerNorm([4, 8, 8]), r"only a layer norm over the channels alone can be read, not over \[4, 8, 8\]"),
        (nn.LayerNorm(8), r"only a layer norm over the channels alone can be read, not over \[8\]"),
        (Function(lambda x: x.permute(0, 1, 3, 2)), r"order of axes must be \[0, 2, 3, 1\], not \[0, 1, 3, 2\]"),
        (
            Function(lambda x: x.movedim(1, -1).permute(0, 2, 3, 1)),
            r"order of axes must be \[0, 3, 1, 2\], not \[0, 2, 3, 1\]",
        ),
        (Function(lambda x: x + x.permute(0, 2, 3, 1)), "torch.export cannot read it"),
        (Function(lambda x: F.max_pool2d(x.movedim(1, -1), 2)), "max_pool2d cannot be read where the channels are the"),
        (
            nn.Sequential(nn.Conv2d(4, 8, 1), Function(lambda x: x + x.movedim(1, -1))),
            "add joins tensors whose channels are different axes",
        ),
        (nn.Linear(8, 2), "linear: dense needs flat features"),
        (Function(lambda x: x.mean(1)), r"axes of a mean must be \[2, 3\], not \[1\]"),
        (Function(lambda x: torch.cat([x, x], 2)), "axis of a concatenation must be 1, not 2"),
        (Function(lambda x: x + 1), "1 is not computed from the input"),
        (Scaled((4, 8, 1)), r"factors of shape \(4, 8, 1\) are not one for each of 4 channels"),
        (nn.Sequential(nn.Flatten(), Scaled((256,))), "products of flat features with parameters cannot be read"),
        (Scaled((8,)), r"factors of shape \(8,\) are not one for each of 4 channels"),
        (Function(lambda x: torch.add(x, x, alpha=2)), "alpha must be 1, not 2"),
        (Function(lambda x: (x, x.relu())), "its output is not one tensor"),
        (Function(lambda x: (x.relu(),)), "its output must be a tensor, not a tuple"),
        (Function(lambda x: {"logits": x.relu()}), "its output must be a tensor, not a dict"),
        (Function(lambda x: x.mean()), r"axes of a mean must be \[2, 3\], not \[0, 1, 2, 3\]"),
        (nn.AdaptiveAvgPool2d(1), r"gives \(4, 1, 1\) for an example, and as a network \(4,\): flatten its output"),
        (Function(lambda x: F.relu(x) if x.sum() > 0 else x), "torch.export cannot read it"),
        (nn.Linear(3, 2), "torch.export cannot read it for inputs of shape"),
        (nn.LazyLinear(2), "uninitialized"),
        (Function(lambda x: x.relu().view(-1, 2, 128).flatten(1)), r"view gives \(2, 128\) here, and \(256,\)"),
    ],
)
def test_module_error_says_what_cannot_be_read(module: nn.Module, words: str) -> None:
    with pytest.raises(ModuleError, match=words):
        from_module(module, (4, 8, 8))


@pytest.mark.parametrize("value", ["net", nn.Linear, None])
def test_from_module_rejects_other_objects(value: Any) -> None:
    with pytest.raises(ModuleError, match=r"a torch\.nn\.Module is needed, not "):
        from_module(value, (4, 8, 8))


@pytest.mark.parametrize("shape", [(), (0, 8, 8), (1, 2, 3, 4, 5), (2.5,), 5, None])
def test_from_module_rejects_invalid_shapes(shape: Any) -> None:
    with pytest.raises(ValueError, match="1 to 4 positive integers, channels first"):
        from_module(nn.Linear(8, 2), shape)


# -- adapting a network to other examples


POOLED = sequential(Conv(3), ReLU(), GlobalPool(), Dense(2), shape=(1, 8, 8))


def random_network(graph: Graph) -> Network:
    return Network(graph, random_weights(graph, 3, torch.float32))


def test_adapting_to_the_same_examples_changes_nothing() -> None:
    network = random_network(cnn((3, 8, 8), 4, width=4))
    adapted = network.adapted((3, 8, 8), 4)
    assert adapted.graph == network.graph
    assert all(adapted.weights[name] is value for name, value in network.weights.items())


@pytest.mark.parametrize("size", [32, 48, 20])
def test_adapting_replaces_only_the_last_layer(size: int) -> None:
    network = random_network(resnet((3, 32, 32), 4, width=4))
    adapted = network.adapted((3, size, size), 7)
    head = network.graph.output.name
    assert adapted.graph.shapes[head] == (7,)
    assert adapted.graph.shapes["x"] == (3, size, size)
    for name, value in network.weights.items():
        assert name.startswith(head) or torch.equal(adapted.weights[name], value), name
    assert adapted.weights[f"{head}.weight"].std() > 0


def test_adapting_between_grey_and_colour_keeps_the_function() -> None:
    coloured = random_network(cnn((3, 32, 32), 4, width=4))
    grey = coloured.adapted((1, 32, 32), 4)
    x = torch.randn(5, 1, 32, 32)
    assert agree(grey, Function(lambda x: coloured.to_module().eval()(x.expand(-1, 3, -1, -1))), x)
    again = grey.adapted((3, 32, 32), 4)
    assert agree(again, Function(lambda x: grey.to_module().eval()(x[:, :1])), x.expand(-1, 3, -1, -1))


@pytest.mark.parametrize(
    ("graph", "shape", "outputs", "words"),
    [
        (mlp((6,), 3, width=4), (7,), 3, r"dense_1: inputs of shape \(7,\) would need other weights here: \(4, 7\)"),
        (cnn((3, 8, 8), 3, width=4), (3, 1, 1), 3, "does not fit into"),
        (POOLED, (3, 8), 2, r"conv_1: inputs of shape \(3, 8\) would need other weights here: \(3, 3, 3\)"),
        (POOLED, (3, 8, 8, 8), 2, r"conv_1: inputs of .* would need other weights here: \(3, 3, 3, 3, 3\)"),
        (cnn((3, 8, 8), 3, width=4), (12,), 3, r"needs \(channels, \*spatial\)"),
        (HAND_MADE["vgg_2d"](), (2, 8, 8), 0, "units must be a positive integer"),
    ],
)
def test_adapting_raises_if_other_weights_would_be_needed(graph: Graph, shape: Any, outputs: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        random_network(graph).adapted(shape, outputs)


def test_only_a_dense_last_layer_adapts_to_other_outputs() -> None:
    network = from_module(nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), (3, 8, 8))
    assert network.adapted((3, 6, 6), 4).graph.output == network.graph.output
    with pytest.raises(GraphError, match="the last layer is globalpool, only a dense one can get 5 outputs"):
        network.adapted((3, 8, 8), 5)


def test_batch_norm_is_read_with_all_settings() -> None:
    norm = nn.BatchNorm2d(4, eps=1e-3, momentum=0.02)
    module = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), norm, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    (read,) = (node.op for node in from_module(module, (2, 8, 8)).graph.nodes if isinstance(node.op, BatchNorm))
    assert (read.eps, read.momentum) == (1e-3, 0.02)
