"""Export of networks for use without morphnas: PyTorch source with its weights, torch.export, ONNX."""

from __future__ import annotations

import ast
import contextlib
import inspect
import json
import logging
import math
import os
import re
import runpy
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, fx, nn

from morphnas.estimators import ImageClassifier, ImageRegressor, load
from morphnas.graph import Network, Shape
from morphnas.run.extras import extra_missing
from morphnas.run.store import Run, user_path
from morphnas.train.modes import usual_modes

TOLERANCE = 1e-5
"""Maximum error of an exported network's outputs: of logits relative to the largest one, at least `MIN_LOGIT_SCALE`; of
regression outputs relative to the largest deviation from the mean, at least the standard deviation."""
MIN_LOGIT_SCALE = 0.1
BATCHES = (1, 2, 5, 32)
"""Batch sizes that an exported network is checked with."""


class ExportError(RuntimeError):
    """The network cannot be exported, or the export computes something else; nothing was written."""


@dataclass(frozen=True)
class Exported:
    """A successful export. files: those written, the requested one first. error: the largest difference between the
    outputs of the exported network and the original's, relative to their size as in `export`."""

    files: tuple[Path, ...]
    error: float

    def __str__(self) -> str:
        return f"{', '.join(map(str, self.files))}: verified, the outputs differ by {self.error:.1e}"


@dataclass(frozen=True, eq=False)
class _Model:
    """What is exported.

    module: in evaluation mode, on the CPU. shape: of an example. mean, std: of typical inputs. outputs: their shape.
    labels: of the outputs; None: they have none. gives: what the outputs are: "logits", "logits of tags" (multi-label)
    or "amounts" (regression). about: a description, with the inputs, their dtype and the outputs.
    """

    module: fx.GraphModule
    shape: Shape
    mean: Tensor
    std: Tensor
    outputs: Shape
    labels: list[Any] | None
    gives: str
    about: str

    @staticmethod
    def of(
        what: ImageClassifier | ImageRegressor | Network | Run | str | os.PathLike[str], trial: int | None
    ) -> _Model:
        if isinstance(what, Network):
            if trial is not None:
                raise ValueError("trial selects the network of a run to export, not of a Network")
            graph, labels, gives = what.graph, None, "logits"
            module, mean, std = what.to_module().float().eval(), torch.zeros(1), torch.ones(1)
            takes, kind = "preprocessed examples, as the network was trained on", "float32"
        else:
            folder = what.path if isinstance(what, Run) else what
            estimator = load(folder) if isinstance(folder, (str, os.PathLike)) else folder
            if not isinstance(estimator, (ImageClassifier, ImageRegressor)):
                message = "a fitted ImageClassifier or ImageRegressor, a Network, a Run or the folder of one"
                raise ValueError(f"what to export must be {message}, not {what!r:.100}")
            module = estimator.to_module(trial)
            graph = estimator.network_.graph if trial is None else estimator.load_searcher().trial(trial).graph
            labels, gives = None, "amounts"
            if isinstance(estimator, ImageClassifier):
                gives = "logits of tags" if estimator.multilabel_ else "logits"
                unnamed = estimator.multilabel_ and estimator.classes_.dtype.kind == "i"
                labels = None if unnamed else [_literal(label) for label in estimator.classes_.tolist()]
            axes = (-1, *[1] * (len(graph.shapes[graph.input.name]) - 1))
            mean, std = (getattr(module, name).reshape(axes) for name in ("mean", "std"))
            mean = mean + getattr(module, "offset", 0.0)  # a float64 offset, as inputs are float64 then
            takes = "raw examples, as they were given to fit, but channels first"
            kind = "float64" if hasattr(module, "offset") else "any real dtype"
        size = f"{graph.parameters:,} parameters, {graph.flops:,} FLOPs an example"
        shape, outputs = graph.shapes[graph.input.name], graph.shapes[graph.output.name]
        about = f"A network found by morphnas: {size}.\n\nTakes {takes}: ({_sizes(shape)}), {kind}.\n"
        about += f"Gives {gives} ({_sizes(outputs)})"
        return _Model(module, shape, mean, std, outputs, labels, gives, about)

    def inputs(self, n: int) -> Tensor:
        """Random examples with the mean and standard deviation of typical ones, (n, *shape)."""
        return self.mean + self.std * torch.randn(n, *self.shape, generator=torch.Generator().manual_seed(n))


def export(
    what: ImageClassifier | ImageRegressor | Network | Run | str | os.PathLike[str],
    file: str | os.PathLike[str],
    overwrite: bool = False,
    trial: int | None = None,
) -> Exported:
    """Write a network in the format of the suffix of `file`, read it back, and compare the outputs of both.

    .py: readable PyTorch source, with its weights in a .safetensors file beside it; needs torch and safetensors, but
    not morphnas. .pt2: for `torch.export.load`, any batch size, float32. .onnx: any batch size, float32; needs the
    extra: pip install -e '.[onnx]'. All take float64 if `fit` had rows that float32 would round, such as times in
    seconds. what: a fitted estimator, a run or its folder, whose network takes raw examples, channels first, and
    returns logits, or a regressor's predictions; or a `Network`, which takes preprocessed examples. trial: id of
    another network of the run to export instead of its model, see `ImageClassifier.to_module`.

    The file also holds the labels, in the order of the outputs (`LABELS`, "labels.json", metadata "labels"), and what
    the outputs are ("gives.json", metadata "gives"): "logits", "amounts" for regression, or "logits of tags" for
    multi-label data, whose sigmoids are the probabilities.

    ValueError for another suffix; FileExistsError if the file exists, unless `overwrite`; ExportError if the outputs
    differ by more than 1e-5 of the largest logit, at least .1, or, for regression, of the largest deviation from the
    mean, at least the standard deviation. On any error nothing is left behind.
    """
    with usual_modes():
        target = user_path(file)
        if target.suffix.lower() not in _WRITERS:
            raise ValueError(f"the file to export to must end in {', '.join(_WRITERS)}, not {str(target)!r}")
        write, read = _WRITERS[target.suffix.lower()]
        model = _Model.of(what, trial)
        existing = [path for path in _files(target) if path.exists()]
        if existing and not overwrite:
            raise FileExistsError(f"{existing[0]} exists already: choose another file, or overwrite=True")
        new_folders = [folder for folder in (target.parent, *target.parent.parents) if not folder.exists()]
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".export-", dir=target.parent) as folder:
                temporary = Path(folder) / target.name
                write(model, temporary)
                error = _difference(model, read(temporary))
                if not error <= TOLERANCE:
                    raise ExportError(f"{target.name} computes something else: the outputs differ by {error:.1e}")
                for path in reversed(_files(target)):
                    (Path(folder) / path.name).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                for new_folder in new_folders:
                    new_folder.rmdir()
            raise
        return Exported(tuple(_files(target)), error)


def _files(target: Path) -> list[Path]:
    """The files of an export, the requested one first."""
    return [target, target.with_suffix(".safetensors")] if target.suffix.lower() == ".py" else [target]


def _difference(model: _Model, read: Callable[[Tensor], Tensor]) -> float:
    """The largest difference of all outputs from the original's, relative to their size, see `TOLERANCE`."""
    errors, sizes = [], []
    regression = hasattr(model.module, "centre")  # the mean, which may be large compared with the deviations from it
    centre, min_size = torch.zeros(1), torch.tensor(MIN_LOGIT_SCALE)
    if regression:
        centre, min_size = model.module.get_buffer("centre"), model.module.get_buffer("unit")
    with torch.no_grad():
        for n in BATCHES:
            x = model.inputs(n)
            expected = model.module(x)
            outputs = read(x)
            if outputs.shape != expected.shape:
                return math.inf
            errors.append((outputs - expected).abs().amax(0))
            sizes.append((expected - centre).abs().amax(0))
    size = torch.stack(sizes).amax(0)
    size = size if regression else size.max()  # targets of a regression may have different units
    error = (torch.stack(errors).amax(0) / torch.maximum(size, min_size)).max().item()
    return math.inf if math.isnan(error) else error


def _sizes(shape: Shape) -> str:
    """The shape of a batch of such examples, as text."""
    return ", ".join(map(str, ("n", *shape)))


def _literal(label: Any) -> Any:
    """A label as a value that Python source and JSON can represent; else its text."""
    if isinstance(label, float):
        return label if math.isfinite(label) else str(label)
    return label if isinstance(label, (str, int, bool, type(None))) else str(label)


# -- source


def to_source(
    module: fx.GraphModule, about: str, labels: Sequence[Any] | None, weights: str, gives: str = "logits"
) -> str:
    """The source of a plain nn.Module that is equivalent to the module.

    weights: name of its .safetensors file, beside the source. gives: what the outputs are, a key of `_USES`.
    """
    body = module.graph.python_code("self").src.strip().splitlines()[1:]
    forward = [line for line in (re.sub(r";\s+[\w =]+ = None\s*$|;\s*$", "", line) for line in body) if line.strip()]
    layers = [f"self.{name} = {_constructor(layer)}" for name, layer in module.named_children()]
    buffers = [
        f'self.register_buffer("{name}", torch.zeros({tuple(value.shape)}{_kind(value)}))'
        for name, value in module.named_buffers(recurse=False)
    ]
    names = f"LABELS = {labels!r}\n" if labels is not None else ""
    return _SOURCE.format(
        use=_USES[gives],
        about=about.replace("\\", "\\\\").replace('"""', "'''"),
        labels=f"{names}\n" if names else "",
        argument=_argument(module),
        layers="\n".join(f"        {line}" for line in [*buffers, *layers]),
        forward="\n".join(f"    {line}" for line in forward),
        weights=weights,
    )


def _argument(module: fx.GraphModule) -> str:
    """The name of the argument of its forward pass."""
    return str(next(node.name for node in module.graph.nodes if node.op == "placeholder"))


_USES = {
    "logits": "probabilities = network(images).softmax(1)",
    "logits of tags": "probabilities = network(images).sigmoid()",
    "amounts": "amounts = network(images)",
}
"""How to use the outputs of a network, by what they are."""


def _kind(value: Tensor) -> str:
    """The dtype argument of a tensor's constructor, if it is not float32."""
    return "" if value.dtype == torch.float32 else f", dtype={value.dtype}"


_SOURCE = '''"""{about}

    network = load()
    {use}

Needs torch and safetensors.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

{labels}
class Network(nn.Module):
    def __init__(self):
        super().__init__()
{layers}

    def forward(self, {argument}):
{forward}


def load(weights=Path(__file__).with_name({weights!r})):
    """The network with its weights, ready to predict."""
    network = Network()
    network.load_state_dict(load_file(weights))
    return network.eval()
'''


def _constructor(module: nn.Module) -> str:
    """The call that constructs a layer, without default arguments. ExportError for a layer that is not PyTorch's."""
    if getattr(nn, type(module).__name__, None) is not type(module) or any(True for _ in module.children()):
        reason = "a layer that is not PyTorch's cannot be written as its source, but as .pt2 or .onnx"
        raise ExportError(f"{type(module).__qualname__}: {reason}")
    arguments = []
    for name, parameter in inspect.signature(type(module).__init__).parameters.items():
        if name in ("self", "device", "dtype") or not hasattr(module, name):
            continue
        value = getattr(module, name)
        if isinstance(value, Tensor) or (value is None and name == "bias"):
            value = value is not None
        if isinstance(value, tuple) and len(set(value)) == 1:
            value = value[0]
        if parameter.default is inspect.Parameter.empty:
            arguments.append(repr(value))
        elif value != parameter.default:
            arguments.append(f"{name}={value!r}")
    return f"nn.{type(module).__name__}({', '.join(arguments)})"


def _write_source(model: _Model, file: Path) -> None:
    about = model.about + (", in the order of LABELS." if model.labels is not None else ".")
    weights = file.with_suffix(".safetensors")
    source = to_source(model.module, about, model.labels, weights.name, model.gives)
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.literal_eval(node.value) != model.labels:
            raise ExportError("the labels cannot be written as source")
    file.write_text(source, encoding="utf-8")
    weights.write_bytes(save({name: value.contiguous() for name, value in model.module.state_dict().items()}))


def _read_source(file: Path) -> Callable[[Tensor], Tensor]:
    with torch.random.fork_rng(devices=[]):  # layers draw random weights before theirs are loaded
        network: Callable[[Tensor], Tensor] = runpy.run_path(str(file))["load"]()
    return network


# -- torch.export


def _write_program(model: _Model, file: Path) -> None:
    sizes = {_argument(model.module): {0: torch.export.Dim("n", min=1)}}
    program = torch.export.export(model.module, (model.inputs(2),), dynamic_shapes=sizes)
    torch.export.save(
        program, file, extra_files={"labels.json": json.dumps(model.labels), "gives.json": json.dumps(model.gives)}
    )


def _read_program(file: Path) -> Callable[[Tensor], Tensor]:
    network: Callable[[Tensor], Tensor] = torch.export.load(file).module()
    return network


# -- ONNX


def _write_onnx(model: _Model, file: Path) -> None:
    try:
        import onnx
        import onnxscript  # noqa: F401  # torch.onnx's own error is less clear
    except ImportError as error:
        raise extra_missing("exporting to ONNX needs more packages", "onnx") from error
    with warnings.catch_warnings(), _quiet("torch.onnx"):
        warnings.simplefilter("ignore")  # torch's warnings about itself
        program = torch.onnx.export(
            model.module,
            (model.inputs(2),),
            input_names=["x"],
            output_names=[model.gives.partition(" ")[0]],
            dynamic_shapes={_argument(model.module): {0: torch.export.Dim("n", min=1)}},
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    onnx.helper.set_model_props(proto, {"labels": json.dumps(model.labels), "gives": model.gives})
    onnx.save(proto, file)


def _read_onnx(file: Path) -> Callable[[Tensor], Tensor]:
    try:
        import onnxruntime
    except ImportError as error:
        raise extra_missing("checking an ONNX file needs more packages", "onnx") from error
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Silence a logger below errors."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


_WRITERS: dict[str, tuple[Callable[[_Model, Path], None], Callable[[Path], Callable[[Tensor], Tensor]]]] = {
    ".py": (_write_source, _read_source),
    ".pt2": (_write_program, _read_program),
    ".onnx": (_write_onnx, _read_onnx),
}
