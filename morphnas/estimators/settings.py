"""The constructor arguments of the estimators: their checks, and how run.json stores them."""

from __future__ import annotations

import hashlib
import inspect
import math
import os
import secrets
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from safetensors.torch import save
from sklearn.metrics import get_scorer_names
from sklearn.utils import check_random_state
from torch import nn

from morphnas.estimators.data_memory import DataMemory
from morphnas.estimators.objective import check_loss, check_metric, is_capturable
from morphnas.estimators.placement import Place, is_positive_int
from morphnas.graph import Dense, Graph, GraphError, Limits, Network, Shape
from morphnas.graph.graph import MAX_NODES
from morphnas.run.files import RunError
from morphnas.run.store import user_path
from morphnas.search import SEARCHERS, BayesianSearcher, Promote, Tuned, ranges_of
from morphnas.search.trial import MorphSpace, Searcher, Space
from morphnas.search.tuned import Ranges
from morphnas.train.recipe import Layers, Recipe, is_number, with_default_learning_rate

if TYPE_CHECKING:
    from morphnas.estimators.base import ImageEstimator

DAY = 24 * 3600.0
_LEGACY_RECIPE = {"max_iter_num": "epochs", "max_no_improvement_num": "patience"}
_LEGACY_SEARCH = ("t_min", "beta", "kernel_lambda")
FIXED = (
    "augment", "searcher_args", "search_type", "random_state", "image_shape", "image_size",
    "normalization", "axes", "limits", "max_memory", "initial_networks", "metric", "loss",
)  # fmt: skip
"""Arguments that determine what a run tries: they must not change when it is resumed, as the others may."""
LIMITS = tuple(f.name for f in fields(Limits) if f.name != "pace")
"""The fields of `Limits` that users set; the pace of the machine is measured."""
_OWN_SEARCHER_ARGS = ("trainer_args", "default_model_len", "default_model_width")
"""The searcher_args that are not passed to the searcher."""
MAX_MODEL_LEN = MAX_NODES // 20
"""Largest `default_model_len`: a residual network has ten nodes for each unit of it, and morphs add more."""

MakeSearcher = Callable[..., Searcher]
"""Makes a searcher; called as ``(space, recipe=..., limits=..., seed=...)`` and with the other searcher_args."""


@dataclass(frozen=True)
class Settings:
    """The checked arguments.

    device: of this process. place: where trials run. data_memory: where prepared examples are kept. searcher: makes the
    searcher. keep: number of networks whose weights are kept; None: all. ensemble: maximum number of networks in the
    final model. ranges: fields of the recipe that are searched. trainer_args: fields of the recipe that are set. depth,
    width: of all starters; None: as the time limit allows. initial: starters to use instead, with their weights if they
    have any. search_patience: see `Patient`. allows_cuda_graphs: whether training steps may be captured as CUDA graphs.
    search_only_settings: the arguments given that only affect a search, as text; "" if there are none.
    """

    device: torch.device
    place: Place
    data_memory: DataMemory
    limits: Limits
    searcher: MakeSearcher
    keep: int | None
    ensemble: int
    ranges: Ranges
    trainer_args: Mapping[str, Any]
    depth: int | None
    width: int | None
    initial: tuple[Graph | Network, ...]
    search_patience: int | None
    allows_cuda_graphs: bool
    search_only_settings: str

    @staticmethod
    def of(estimator: ImageEstimator) -> Settings:
        """The settings of an estimator; ValueError that names an invalid argument, other errors as `Place.of`."""
        _check_flags(estimator)
        args: dict[str, Any] = dict(estimator.searcher_args or {})
        ranges, trainer_args = _ranges(args.pop("trainer_args", None) or {})
        with_trainer_args(Recipe(), trainer_args)
        if estimator.augment is not None and "augment" in trainer_args:
            raise ValueError("augment is given twice: as an argument, and in trainer_args")
        depth, width = args.pop("default_model_len", None), args.pop("default_model_width", None)
        for name, size in (("default_model_len", depth), ("default_model_width", width)):
            if size is not None and not is_positive_int(size):
                raise ValueError(f"searcher_args: {name} must be a positive integer, not {size!r}")
        if depth is not None and depth > MAX_MODEL_LEN:
            raise ValueError(f"searcher_args: default_model_len must be at most {MAX_MODEL_LEN}, not {depth:,}")
        depth, width = (None if size is None else int(size) for size in (depth, width))
        for name in _LEGACY_SEARCH:
            if args.pop(name, None) is not None:
                warnings.warn(
                    f"searcher_args: {name} belongs to AutoKeras's old kernel and has no effect", stacklevel=4
                )
        searcher = _searcher(estimator.search_type, args, ranges)
        networks = estimator.initial_networks
        if networks is not None and not (
            isinstance(networks, Sequence) and all(isinstance(n, Graph | Network) for n in networks)
        ):
            kinds = "morphnas.Graph and morphnas.Network (use from_module for a PyTorch module)"
            raise ValueError(f"initial_networks must be None or a list of {kinds}, not {networks!r:.100}")
        initial = tuple(networks or ())
        if trainer_args.get("layers") == "last" and not (initial and all(map(_has_trained_layers, initial))):
            words = (
                'trainer_args: layers "last" keeps all other layers as they are, so initial_networks must be networks'
            )
            raise ValueError(f"{words} with weights whose last layer is dense")
        for i, network in enumerate(initial):
            if isinstance(network, Network) and not all(map(_is_trainable, network.weights.values())):
                raise ValueError(f"initial_networks[{i}] has weights that are not finite float32 numbers")
        limits = _limits(estimator.limits)
        if estimator.max_memory is not None:
            if limits.max_memory is not None:
                raise ValueError("max_memory is given twice: as an argument, and in limits")
            limits = replace(limits, max_memory=int(estimator.max_memory))
        place = Place.of(estimator)
        if limits.max_latency_ms is not None and int(estimator.ensemble) > 1:
            raise ValueError(
                "ensemble and the limit max_latency_ms exclude each other: it takes as long as all its networks"
            )
        patience = None if estimator.search_patience is None else int(estimator.search_patience)
        kind = estimator.search_type
        name = repr(kind) if isinstance(kind, str) else getattr(kind, "__name__", repr(kind))
        search_only = [] if kind in (None, BayesianSearcher) else [f"search_type={name:.60}"]
        search_only += [f"ranges in trainer_args ({', '.join(ranges)})"] if ranges else []
        search_only += ["limits of morphs"] if limits.morphs != Limits().morphs else []
        return Settings(
            device=place.device,
            place=place,
            data_memory=data_memory(estimator),
            limits=limits,
            searcher=searcher,
            keep=None if estimator.keep == "all" else int(estimator.keep),
            ensemble=int(estimator.ensemble),
            ranges=ranges,
            trainer_args=trainer_args,
            depth=depth,
            width=width,
            initial=initial,
            search_patience=patience,
            allows_cuda_graphs=not place.shares_gpu and is_capturable(estimator.loss),
            search_only_settings=" and ".join(search_only),
        )

    def allows(self, members: int) -> bool:
        """Whether a model of so many networks is what the argument `ensemble` asks for."""
        return members == 1 if self.ensemble == 1 else 1 < members <= self.ensemble

    def adapted(self, shape: Shape, outputs: int) -> Settings:
        """The settings with initial networks adapted to examples of this shape and so many outputs.

        ValueError if that is impossible, or if two initial networks, of which some have weights, are of one graph.
        """
        initial = list[Graph | Network]()
        for i, network in enumerate(self.initial):
            try:
                initial.append(network.adapted(shape, outputs) if isinstance(network, Network) else network)
            except GraphError as error:
                raise ValueError(f"initial_networks[{i}] cannot be adapted to the examples: {error}") from error
        settings = replace(self, initial=tuple(initial))
        keys = [graph.key for graph in settings.graphs]
        if repeated := [i for i, key in enumerate(keys) if key in keys[:i]] if settings.networks else []:
            raise ValueError(f"initial_networks[{repeated[0]}] has the same architecture as an earlier one")
        return settings

    @property
    def graphs(self) -> list[Graph]:
        """The graphs of the initial networks."""
        return [network.graph if isinstance(network, Network) else network for network in self.initial]

    @property
    def networks(self) -> list[Network]:
        """The initial networks that have weights."""
        return [network for network in self.initial if isinstance(network, Network)]


def _is_trainable(weight: torch.Tensor) -> bool:
    """Whether training can start from a weight: finite float32, or an integer buffer such as a batch counter."""
    valid_dtype = weight.dtype == torch.float32 or not weight.is_floating_point()
    return valid_dtype and not weight.is_meta and bool(weight.isfinite().all())


def _check_flags(estimator: ImageEstimator) -> None:
    path, args = estimator.path, estimator.searcher_args
    for name in ("max_memory", "data_memory"):
        if (memory := getattr(estimator, name)) is not None and not is_positive_int(memory):
            raise ValueError(f"{name} must be None or a positive integer, of bytes, not {memory!r}")
    if path is not None and not (isinstance(path, (str, os.PathLike)) and str(path)):
        raise ValueError(f"path must be None or the name of a folder, not {path!r}")
    for name, number in (("max_trials", estimator.max_trials), ("search_patience", estimator.search_patience)):
        if number is not None and not is_positive_int(number):
            raise ValueError(f"{name} must be None or a positive integer, not {number!r}")
    if args is not None and not (isinstance(args, Mapping) and isinstance(args.get("trainer_args") or {}, Mapping)):
        raise ValueError(f"searcher_args, and trainer_args in it, must be dicts, not {args!r}")
    check_metric(estimator.metric)
    check_loss(estimator.loss)
    if estimator.augment not in (None, True, False):
        raise ValueError(f"augment must be True, False or None, not {estimator.augment!r}")
    if estimator.overwrite not in (True, False):
        raise ValueError(f"overwrite must be True or False, not {estimator.overwrite!r}")
    if estimator.resume not in (True, False, "auto"):
        raise ValueError(f'resume must be True, False or "auto", not {estimator.resume!r}')
    if estimator.keep != "all" and not is_positive_int(estimator.keep):
        raise ValueError(f'keep must be "all" or a positive integer, not {estimator.keep!r}')
    if estimator.keep != "all" and estimator.search_type in NEEDS_ALL_WEIGHTS:
        why = NEEDS_ALL_WEIGHTS[estimator.search_type]
        raise ValueError(f'keep must be "all" for search_type="{estimator.search_type}": {why}')
    if not is_positive_int(estimator.ensemble):
        raise ValueError(f"ensemble must be a positive integer, not {estimator.ensemble!r}")
    if estimator.resume and estimator.overwrite:
        raise ValueError("resume and overwrite exclude each other")
    if estimator.resume is True and estimator.path is None:
        raise ValueError("resume=True needs the path of the run to resume")


def data_memory(estimator: ImageEstimator) -> DataMemory:
    """Memory and disk for the estimator's examples: what does not fit in memory goes to the disk of the run."""
    memory, path = estimator.data_memory, estimator.path
    return DataMemory(None if memory is None else int(memory), None if path is None else user_path(path))


def _limits(limits: Limits | Mapping[str, Any] | None) -> Limits:
    if isinstance(limits, Mapping):
        if unknown := sorted(set(limits) - set(LIMITS), key=str):
            raise ValueError(f"limits: unknown {unknown}, there are {', '.join(LIMITS)}")
        return Limits(**limits)
    if limits is not None and not isinstance(limits, Limits):
        raise ValueError(f"limits must be a Limits or a dict of {', '.join(LIMITS)}, not {limits!r}")
    return limits or Limits()


def _ranges(trainer_args: Mapping[str, Any]) -> tuple[Ranges, dict[str, Any]]:
    """The fields that are to be searched, and the others, with legacy names replaced."""
    args = {_LEGACY_RECIPE.get(name, name): value for name, value in trainer_args.items()}
    try:
        ranges = ranges_of(args)
    except ValueError as error:
        raise ValueError(f"trainer_args: {error}") from None
    return ranges, {name: value for name, value in args.items() if name not in ranges}


def _searcher(kind: str | MakeSearcher | None, args: Mapping[str, Any], ranges: Ranges) -> MakeSearcher:
    """The function that makes the searcher.

    Searchers given by name are wrapped in `Promote`, except for "halving", which promotes itself, and "pareto", which
    looks for more than the best score. With ranges, searchers are wrapped in `Tuned`.
    """
    kind = "bayesian" if kind is None else kind
    if not (kind in SEARCHERS if isinstance(kind, str) else callable(kind)):
        raise ValueError(f"search_type must be one of {', '.join(SEARCHERS)}, or a callable, not {kind!r}")
    make: MakeSearcher = SEARCHERS[kind] if isinstance(kind, str) else kind
    if is_dataclass(make):
        known = sorted({f.name for f in fields(make)} - {"space", "recipe", "limits", "seed"})
        if unknown := sorted(set(args) - set(known), key=str):
            raise ValueError(f"searcher_args: unknown {unknown}, there are {', '.join([*known, *_OWN_SEARCHER_ARGS])}")

    if ranges and kind == "pareto":
        raise ValueError(f"trainer_args: search_type='pareto' does not search {', '.join(ranges)}")

    def make_wrapped(space: Space, *, recipe: Recipe, **settings: Any) -> Searcher:
        searcher = make(space, recipe=recipe, **settings, **args)
        if not callable(getattr(searcher, "ask", None)):
            raise ValueError(
                f"search_type must make a searcher, with a method ask(trials, budget), not {searcher!r:.100}"
            )
        searcher = Tuned(searcher, ranges, recipe, **settings) if ranges else searcher
        return Promote(searcher) if isinstance(kind, str) and kind not in ("halving", "pareto") else searcher

    if isinstance(kind, str):
        try:
            make_wrapped(MorphSpace(()), recipe=Recipe())
        except ValueError as error:
            raise ValueError(f"searcher_args: {error}") from error
    return make_wrapped


def with_trainer_args(recipe: Recipe, trainer_args: Mapping[str, Any], n: int | None = None) -> Recipe:
    """The recipe with fields replaced, which may have their legacy names; ValueError for unknown ones.

    A new optimizer or batch size comes with its usual learning rate, unless `lr` is given. A given `lr` holds however
    long the training. n: number of examples, which bounds the batch size; None: unknown.
    """
    if not isinstance(trainer_args, Mapping):
        raise ValueError(f"trainer_args must be a dict, not {trainer_args!r:.100}")
    names = [f.name for f in fields(Recipe)]
    args = {_LEGACY_RECIPE.get(name, name): value for name, value in trainer_args.items()}
    if unknown := sorted(set(args) - set(names), key=str):
        known = f"there are {', '.join(names)} and the legacy {', '.join(_LEGACY_RECIPE)}"
        hint = "; fit and final_fit take a time_limit" if "timeout" in unknown else ""
        raise ValueError(f"trainer_args: unknown {unknown}, {known}{hint}")
    if "lr" in args:
        args = {"lr_examples": None, **args}
    recipe = replace(recipe, **args)
    if "batch_size" in args and n is not None:
        recipe = replace(recipe, batch_size=min(recipe.batch_size, n))
    if "lr" in args:
        return recipe
    return with_default_learning_rate(recipe) if {"optimizer", "batch_size"} & args.keys() else recipe


def time_limit_seconds(given: float | None, default: float | None) -> float:
    """The first of the two that is not None, else 24 hours; ValueError unless it is a positive number."""
    seconds = given if given is not None else default if default is not None else DAY
    number = isinstance(seconds, (int, float, np.number)) and not isinstance(seconds, bool)
    if not number or not 0 < seconds < math.inf:
        raise ValueError(f"time_limit must be a positive number of seconds, not {seconds!r}")
    return float(seconds)


def chosen_seed(random_state: int | np.random.RandomState | None) -> int:
    """A seed from 0 to 2**31 - 1, drawn anew if random_state is None; global random states are left alone."""
    if random_state is None:
        return secrets.randbelow(2**31)
    if isinstance(random_state, (int, np.integer)) and not isinstance(random_state, bool) and 0 <= random_state < 2**31:
        return int(random_state)
    try:
        return int(check_random_state(random_state).randint(2**31 - 1))
    except ValueError as error:
        words = "None, a whole number from 0 to 2**32 - 1 or a numpy.random.RandomState"
        raise ValueError(f"random_state must be {words}, not {random_state!r:.80}: {error}") from None


def _has_trained_layers(network: Graph | Network) -> bool:
    """Whether it has weights, and a last layer that can be trained alone."""
    return isinstance(network, Network) and isinstance(network.graph.output.op, Dense)


def fixed_settings(params: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments in `FIXED` as run.json stores them ("decides"), with one form for equivalent values."""
    values = {name: params[name] for name in FIXED}
    values |= {name: values[name] or None for name in ("searcher_args", "initial_networks")}
    values["search_type"] = values["search_type"] or "bayesian"
    args = values["searcher_args"] or {}
    ranges, others = _ranges(args.get("trainer_args") or {})
    if ranges:  # as text, since JSON does not tell tuples from lists
        values["searcher_args"] = {**args, "trainer_args": others | {name: str(each) for name, each in ranges.items()}}
    values["limits"] = None if values["limits"] is None else _limits(values["limits"])
    if isinstance(values["image_size"], (int, np.integer)):
        values["image_size"] = [values["image_size"]] * 2
    if not isinstance(values["random_state"], (int, np.integer)):
        values["random_state"] = None
    functions = {name: _function_digest(values[name]) for name in ("metric", "loss") if callable(values[name])}
    return {name: plain(value) for name, value in values.items()} | functions


NEEDS_ALL_WEIGHTS = {
    "pareto": "any network may be the best one of its cost",
    "evolution": "it needs the weights of the latest networks, whatever their scores",
    "climbing": "it needs the weights of its current network, which may not be among the best",
}
"""Searches that need the weights of all networks, and why."""
RESTORED = (
    "augment", "image_shape", "image_size", "normalization", "axes", "limits", "max_memory", "keep", "ensemble",
    "metric", "time_limit", "random_state",
)  # fmt: skip
"""Arguments that a loaded estimator takes over from the fit."""


def restored_settings(settings: Any) -> dict[str, Any]:
    """The arguments in `RESTORED` from the settings in run.json; none if these are damaged."""
    args = {name: settings[name] for name in RESTORED if name in settings} if isinstance(settings, Mapping) else {}
    if isinstance(limits := args.get("limits"), Mapping):
        args["limits"] = {name: value for name, value in limits.items() if name in LIMITS and value is not None}
    if args.get("metric") not in get_scorer_names():  # a function, of which only the name is stored
        args["metric"] = None
    for name in ("time_limit", "random_state"):
        if not is_number(args.get(name)):  # a random state that is an object is not stored
            args[name] = None
    return args


def stored_layers(settings: Any) -> dict[str, Any]:
    """The recipe's field `layers` if it is set in the settings in run.json; nothing if these are damaged."""
    for name in ("searcher_args", "trainer_args"):
        settings = settings.get(name) if isinstance(settings, Mapping) else None
    layers = settings.get("layers") if isinstance(settings, Mapping) else None
    return {"layers": layers} if layers in get_args(Layers) else {}


def check_unchanged(path: Path | None, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """RunError that names the fixed arguments which differ from those that the run was started with.

    An estimator without a random state continues with that of the run.
    """
    if now["random_state"] is None:
        now = {**now, "random_state": before.get("random_state")}
    before = {"metric": None, "loss": None, "normalization": None, **before}
    if differing := [name for name in FIXED if name in before and before[name] != now[name]]:
        pairs = ((name, before[name], now[name]) for name in differing)
        changes = ", ".join(
            f"{name} was {_difference(old, new)!r:.80} and is {_difference(new, old)!r:.80}" for name, old, new in pairs
        )
        hint = "use the same, or choose another path"
        raise RunError(f"{str(path)!r} holds a run with other settings: {changes}; {hint}")


def _difference(value: Any, other: Any) -> Any:
    """The part of a setting that differs from another value: some entries of a dict, the whole of anything else."""
    if isinstance(value, Mapping) and isinstance(other, Mapping | None):
        return {name: entry for name, entry in value.items() if (other or {}).get(name) != entry}
    return value


def plain(value: Any) -> Any:
    """A setting as a JSON value that people can read."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Graph):
        return value.key
    if isinstance(value, Network):
        weights = save({name: tensor.contiguous() for name, tensor in value.weights.items()})
        return f"{value.graph.key} {hashlib.sha256(weights).hexdigest()[:16]}"
    if callable(value):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    if isinstance(value, Limits):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return value.tolist()
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _function_digest(value: Any) -> str:
    """The name of a function or module, and a hash of the plain values and tensors that it contains, if any."""
    text = repr(value)  # names the settings of an object, unless it is the default one with the address
    name = f"{type(value).__module__}.{type(value).__qualname__}" if " at 0x" in text else text
    if hasattr(value, "__qualname__"):
        name = f"{value.__module__}.{value.__qualname__}"
    contents: list[Any] = []
    with suppress(Exception):  # such as for a module that is not initialised, or a recursive closure
        if isinstance(value, nn.Module):
            for part in value.modules():
                contents += [item for item in vars(part).items() if not item[0].startswith("_") and _is_plain(item[1])]
            for key, tensor in value.state_dict().items():
                contents.append((key, hashlib.sha256(save({"": tensor.detach().cpu().contiguous()})).hexdigest()))
        elif isinstance(value, FunctionType):
            code = value.__code__
            constants = [*code.co_consts, *code.co_names, *(value.__defaults__ or ())]
            closure = inspect.getclosurevars(value).nonlocals.items()
            contents = [item for item in (*enumerate(constants), *closure) if _is_plain(item[1])]
    return name if not contents else f"{name} {hashlib.sha256(repr(contents).encode()).hexdigest()[:16]}"


def _is_plain(value: Any) -> bool:
    """Whether the repr of a value determines it."""
    is_plain_list = isinstance(value, (list, tuple)) and all(map(_is_plain, value))
    return is_plain_list or isinstance(value, (bool, int, float, str, type(None)))
