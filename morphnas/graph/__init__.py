"""Network architectures, weights and morphs as values, independent of clock, disk, device and global random state."""

from morphnas.graph.blend import blend
from morphnas.graph.graph import MIN_MICRO_BATCH, Graph, GraphError, Node
from morphnas.graph.module import Network, WeightsError, fresh_weights, to_module, weights_of
from morphnas.graph.morphs import (
    AddSkip,
    ConcatSkip,
    Deeper,
    Insertion,
    Limits,
    Morph,
    MorphError,
    Widening,
    Wider,
    WiderAll,
    chain,
    inherit,
    morph_from_json,
    narrowed,
    neighbours,
    sites,
    width_group,
)
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
    Route,
    Shape,
    ShapeError,
    Sigmoid,
    SiLU,
    Tanh,
    Weights,
)
from morphnas.graph.reading import ModuleError, from_module
from morphnas.graph.starters import cnn, densenet, mlp, resnet

__all__ = [
    "Activation", "Add", "AddSkip", "AvgPool", "BatchNorm", "Concat", "ConcatSkip", "Conv", "Deeper", "Dense",
    "Depthwise", "Dropout", "Flatten", "GELU", "Gate", "GlobalPool", "Graph", "GraphError", "Hardsigmoid", "Hardswish",
    "Input", "Insertion", "LayerNorm", "LeakyReLU", "Limits", "MaxPool", "ModuleError", "Morph", "MorphError",
    "Network", "Node", "Op", "Pad", "ReLU", "ReLU6", "Route", "MIN_MICRO_BATCH", "Shape", "ShapeError", "SiLU",
    "Sigmoid", "Tanh", "Weights", "WeightsError", "Widening", "Wider", "WiderAll", "blend", "chain", "cnn", "densenet",
    "fresh_weights", "from_module", "inherit", "mlp", "morph_from_json", "narrowed", "neighbours", "resnet", "sites",
    "to_module", "weights_of", "width_group",
]  # fmt: skip
