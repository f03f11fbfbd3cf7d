"""The model that a fit results in: a network, the preprocessing of examples, and the meaning of the outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, fx, nn

from morphnas.estimators.inputs import Preprocessing
from morphnas.estimators.targets import Target, target_from_json
from morphnas.graph import Network
from morphnas.run.files import RunError
from morphnas.run.store import load_about, load_model
from morphnas.train.data import Examples, Task, clip_limit
from morphnas.train.predict import predict


@dataclass(frozen=True, eq=False)
class Model:
    """The network that makes predictions, which may be an ensemble, and all that predictions need besides.

    best, trial: trial ids of the winner and of the final network. members: weights of the networks of an ensemble, by
    trial id. mean, std: of each channel or feature of the training examples. range: of the training images, see
    `morphnas.estimators.data_checks.range_of`. mirrors: whether outputs are averaged with those of mirror images.
    temperature: what outputs are divided by. ValueError for values that are invalid or do not fit the network.
    """

    network: Network
    target: Target
    preprocessing: Preprocessing
    best: int
    trial: int
    members: Mapping[int, float]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    range: tuple[float, ...] = ()
    mirrors: bool = False
    temperature: float = 1.0

    def __post_init__(self) -> None:
        graph, shape, outputs = self.network.graph, self.preprocessing.shape, self.target.goal.outputs
        if graph.shapes[graph.input.name] != shape or graph.shapes[graph.output.name] != (outputs,):
            raise ValueError(f"the network is not one from {shape} to {outputs} outputs")
        for name, lengths in (("mean", (shape[0],)), ("std", (shape[0],)), ("range", (0, 3))):
            values = getattr(self, name)
            numbers = all(isinstance(value, (int, float)) and abs(value) < 1e38 for value in values)
            if not numbers or len(values) not in lengths or (name == "std" and min(values) <= 0):
                raise ValueError(f"{name} cannot be {values!r:.100}")
        if not (isinstance(self.temperature, (int, float)) and 1e-6 < self.temperature < 1e6):
            raise ValueError(f"temperature cannot be {self.temperature!r:.100}")
        if not self.members or not all(id >= 0 and 0 < share <= 1 for id, share in self.members.items()):
            raise ValueError(f"members cannot be {self.members!r:.100}")
        for name in ("best", "trial"):
            if not isinstance(id := getattr(self, name), int) or id < 0:
                raise ValueError(f"{name} cannot be {id!r:.100}")

    @property
    def scale(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, float32, in a shape that broadcasts to examples (n, *shape)."""
        shape = (-1, *[1] * (len(self.preprocessing.shape) - 1))
        mean, std = (torch.tensor(values, dtype=torch.float32).reshape(shape) for values in (self.mean, self.std))
        return mean, std

    def with_scale(self, scale: Any) -> Self:
        """The model with another (mean, std), as run.json holds them; RunError if these are invalid."""
        try:
            mean, std = map(tuple, scale)
            return replace(self, mean=mean, std=std)
        except (TypeError, ValueError) as error:
            raise RunError(f"run.json does not hold the mean and deviation of examples: {error}") from error

    @cached_property
    def _module(self) -> nn.Module:
        """The network as a module, cached because building it takes longer than a prediction."""
        return self.network.to_module().eval()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_module"}

    def outputs(self, pieces: Iterable[Tensor], device: torch.device) -> Tensor:
        """Calibrated outputs (n, outputs) on the CPU. pieces: preprocessed examples, (k, *shape) each."""
        module = self._module.to(device)
        x = torch.empty(0, *self.preprocessing.shape, device=device)
        no_examples = Examples(x, torch.empty(0, dtype=torch.int64, device=device))
        mean, std = (values.to(device) for values in self.scale)
        task = Task(no_examples, None, self.target.goal, mean, std)
        parts = [predict(module, piece, task, mirrored=self.mirrors).cpu() for piece in pieces]
        return torch.cat(parts) / self.temperature

    def to_module(self) -> fx.GraphModule:
        """The model as a plain module that takes raw examples, see `ImageEstimator.to_module`."""
        mean, std = self.scale
        module = self.network.to_module()
        graph = module.graph
        x = next(node for node in graph.nodes if node.op == "placeholder")
        users = list(x.users)
        module.register_buffer("mean", mean)
        module.register_buffer("std", std)
        with graph.inserting_before(users[0]):
            raw = x
            if (offset := self.preprocessing.offset) is not None:
                module.register_buffer("offset", torch.tensor(offset, dtype=torch.float64))
                raw = graph.call_function(torch.sub, (graph.call_method("double", (x,)), graph.get_attr("offset")))
            # in the dtype of the buffers, so that the module can be converted to half precision
            centre = graph.get_attr("mean")
            centred = graph.call_function(torch.sub, (graph.call_method("to", (raw, centre)), centre))
            scaled = graph.call_function(torch.div, (centred, graph.get_attr("std")))
            limit = clip_limit(mean)
            scaled = graph.call_function(torch.clamp, (scaled, -limit, limit))
            if self.mirrors:  # the images, followed by all mirror images
                scaled = graph.call_function(torch.cat, ((scaled, graph.call_method("flip", (scaled, -1))),))
        for user in users:
            user.replace_input_with(x, scaled)
        output = next(node for node in graph.nodes if node.op == "output")
        outputs = output.args[0]
        assert isinstance(outputs, fx.Node)
        with graph.inserting_before(output):
            if self.mirrors:
                both = graph.call_method("reshape", (outputs, (2, -1, self.target.goal.outputs)))
                outputs = graph.call_method("mean", (both, 0))
            output.args = (self.target.add_decoding(module, outputs, self.temperature),)
        graph.lint()
        module.recompile()
        return module.eval()

    @property
    def shares(self) -> dict[str, float]:
        """The weights of the members, with the keys that JSON needs."""
        return {str(id): share for id, share in self.members.items()}

    def to_json(self) -> dict[str, Any]:
        """All fields except the network, as JSON values."""
        return {
            "trial": self.trial,
            "best": self.best,
            "target": self.target.to_json(),
            "preprocessing": asdict(self.preprocessing),
            "mean": list(self.mean),
            "std": list(self.std),
            "range": list(self.range),
            "mirrors": self.mirrors,
            "temperature": self.temperature,
            "members": self.shares,
        }

    @classmethod
    def stored(cls, folder: Path) -> Self:
        """Read the model in a run folder; RunError, with a hint what to do, if it is missing or damaged."""
        network, data = read_stored_model(folder)
        try:
            return cls(
                network=network,
                target=target_from_json(data["target"]),
                preprocessing=Preprocessing.from_json(data["preprocessing"]),
                best=data["best"],
                trial=data["trial"],
                members={int(id): share for id, share in data["members"].items()},
                mean=tuple(data["mean"]),
                std=tuple(data["std"]),
                range=tuple(data.get("range", ())),
                mirrors=data.get("mirrors") is True,
                temperature=data["temperature"],
            )
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise RunError(f"{folder / 'model' / 'model.json'} is not complete: {error!r}") from error


def scales_of(about: Mapping[str, Any]) -> dict[str, Any]:
    """The (mean, std) of each data set that networks of a run were trained on, by its name, from run.json."""
    return dict(scales) if isinstance(scales := about.get("scales"), Mapping) else {}


def read_stored_model(folder: Path) -> tuple[Network, dict[str, Any]]:
    """The network and the JSON data in model/ of a run folder; RunError, with a hint what to do, if unreadable."""
    try:
        return load_model(folder)
    except RunError as error:
        load_about(folder)  # raises if there is no run at all, which is the better message then
        hint = "fit with resume=True writes it again, and load_run(path).load_model_by_id(id) returns any network"
        raise RunError(f"{error}; {hint}") from error
