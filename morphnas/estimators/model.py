"""What a fit ends with and predictions need: a network, how it reads examples, and what its outputs mean."""

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
    """The network that predicts, an ensemble perhaps, and what goes with it. ValueError where that does not fit.

    best, trial: ids of the search's winner, and of the final training. members: shares of networks, by the ids of their
    trials. mean, std: of the channels or features of the examples that were trained on. range: of images, see
    `morphnas.estimators.data_checks.range_of`. mirrors: whether mirror images are read as well. temperature: what
    outputs are divided by.
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
        """Mean and deviation, float32, of a shape that examples (n, *shape) can be normalised by."""
        shape = (-1, *[1] * (len(self.preprocessing.shape) - 1))
        mean, std = (torch.tensor(values, dtype=torch.float32).reshape(shape) for values in (self.mean, self.std))
        return mean, std

    def scaled(self, scale: Any) -> Self:
        """The same for examples of another mean and deviation, as run.json names them; RunError for what is neither."""
        try:
            mean, std = map(tuple, scale)
            return replace(self, mean=mean, std=std)
        except (TypeError, ValueError) as error:
            raise RunError(f"run.json does not hold the mean and deviation of examples: {error}") from error

    @cached_property
    def _module(self) -> nn.Module:
        """The network as predictions use it: to make it takes longer than to ask it about an example."""
        return self.network.to_module().eval()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_module"}

    def outputs(self, pieces: Iterable[Tensor], device: torch.device) -> Tensor:
        """The network's for pieces of examples (k, *shape), (n, outputs) on the CPU, as sure as they may be."""
        module = self._module.to(device)
        empty = torch.empty(0, *self.preprocessing.shape, device=device)
        nothing = Examples(empty, torch.empty(0, dtype=torch.int64, device=device))
        mean, std = (values.to(device) for values in self.scale)
        task = Task(nothing, None, self.target.goal, mean, std)
        parts = [predict(module, piece, task, mirrored=self.mirrors).cpu() for piece in pieces]
        return torch.cat(parts) / self.temperature

    def to_module(self) -> fx.GraphModule:
        """All of it as a plain module from raw examples to what outputs stand for: see `ImageEstimator.to_module`."""
        mean, std = self.scale
        module = self.network.to_module()
        graph = module.graph
        pixels = next(node for node in graph.nodes if node.op == "placeholder")
        readers = list(pixels.users)
        module.register_buffer("mean", mean)
        module.register_buffer("std", std)
        with graph.inserting_before(readers[0]):
            raw = pixels
            if (offset := self.preprocessing.offset) is not None:
                module.register_buffer("offset", torch.tensor(offset, dtype=torch.float64))
                raw = graph.call_function(torch.sub, (graph.call_method("double", (pixels,)), graph.get_attr("offset")))
            # as the weights are, also where somebody has them in half precision
            centre = graph.get_attr("mean")
            centred = graph.call_function(torch.sub, (graph.call_method("to", (raw, centre)), centre))
            scaled = graph.call_function(torch.div, (centred, graph.get_attr("std")))
            most = clip_limit(mean)
            scaled = graph.call_function(torch.clamp, (scaled, -most, most))
            if self.mirrors:  # after all images, all of them mirrored
                scaled = graph.call_function(torch.cat, ((scaled, graph.call_method("flip", (scaled, -1))),))
        for reader in readers:
            reader.replace_input_with(pixels, scaled)
        output = next(node for node in graph.nodes if node.op == "output")
        said = output.args[0]
        assert isinstance(said, fx.Node)
        with graph.inserting_before(output):
            if self.mirrors:
                both = graph.call_method("reshape", (said, (2, -1, self.target.goal.outputs)))
                said = graph.call_method("mean", (both, 0))
            output.args = (self.target.decoded(module, said, self.temperature),)
        graph.lint()
        module.recompile()
        return module.eval()

    @property
    def shares(self) -> dict[str, float]:
        """Those of the members, as JSON has them."""
        return {str(id): share for id, share in self.members.items()}

    def to_json(self) -> dict[str, Any]:
        """All but the network."""
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
        """The model of a run's folder; RunError, which says what to do, where there is none that can be read."""
        network, data = written(folder)
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
    """Means and deviations of the data that networks of a run were trained on, by name, as run.json has them."""
    return dict(found) if isinstance(found := about.get("scales"), Mapping) else {}


def written(folder: Path) -> tuple[Network, dict[str, Any]]:
    """What is in a run's model/; RunError, which says what to do, where that cannot be read."""
    try:
        return load_model(folder)
    except RunError as error:
        load_about(folder)  # where there is no run at all, that is what is to be said
        hint = "fit with resume=True writes it again, and load_run(path).load_model_by_id(id) returns any network"
        raise RunError(f"{error}; {hint}") from error
