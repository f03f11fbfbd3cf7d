"""Sizing a run: how fast this machine is, how large the starters may be, how long children are trained."""

from __future__ import annotations

import copy
import logging
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, get_args

import torch
from torch import Tensor, nn

from morphnas.graph import Graph, Limits, Shape, cnn, mlp, resnet, to_module
from morphnas.run.files import RunError
from morphnas.train.augment import Draw
from morphnas.train.data import Task, batch_count
from morphnas.train.predict import latency
from morphnas.train.recipe import (
    DEFAULT_SHIFT,
    Augment,
    Optimizer,
    Precision,
    Recipe,
    known_fields,
    with_default_learning_rate,
)
from morphnas.train.step import EAGER_STEPS, GRAPH_RECORDERS, Step, autocast_to, to_memory_format

log = logging.getLogger("morphnas")

CHILD_SHARE = 0.04
"""Share of the time that one child should cost."""
EPOCHS = 6
"""Epochs of a child, if there is time for them."""
MIN_STEPS, MIN_STEPS_TABULAR, MAX_EPOCHS_FOR_STEPS = 100, 250, 30
"""Minimum training steps of a child, also on tabular data, where they cost next to nothing, and the maximum number of
epochs to reach it: with 50 examples, 6 epochs are 6 steps, after which networks cannot be told apart."""
TABULAR_WEIGHT_DECAY = 5e-3
"""Weight decay on tabular data (`benchmarks/tuning.py`)."""
MIN_PASSES, MAX_PASSES = 5, 240
"""Passes over all examples that the final trainings of the largest starter should have time for: at least, and at most,
as they could not use more."""
AMPLE_COMPUTE = 1e13
"""Compute of the final trainings, in examples seen times FLOPs of `Graph.work`, above which the number of passes grows:
as its cube root, the rest goes into larger networks."""
MIN_SEEN, MIN_SEEN_COLOUR, AMPLE_COMPUTE_COLOUR = 120_000, 60_000, 2.5e12
"""Examples that the final trainings should see at least, repetitions counted, and the same for colour images: if there
are few examples, all are seen more often. Within a minute, larger networks than that leads to are no better for grey
images, and smaller ones leave time for a search and for comparing final trainings; for colour images smaller ones are
worse (`benchmarks/sizes.py`). With more compute than the last of these, which is defined as `AMPLE_COMPUTE` is, colour
images are seen more often, as its cube root: longer trainings with strong augmentation then gain more than larger
networks (`benchmarks/search_pays.py --width`)."""
TYPICAL_WORK = 0.75
"""Approximate mean work of starters, as a share of the largest that is affordable."""
MIN_FINAL_SHARE = 0.5
"""Smallest share of the time for the final trainings, which networks are sized for."""
MIN_EPOCH_BATCHES = 16
"""Smallest number of batches of an epoch that is a part of the data."""
FINAL_PASSES = 45
"""Passes over all examples that the final trainings should have time for, with a network `MAX_GROWTH` times as large as
a starter; and at least three quarters of those that `min_seen` makes."""
FINAL_PASSES_COLOUR, FINAL_SEEN_COLOUR = 120, 6_000_000
"""The same for colour images, but no more passes than see so many examples in all: final trainings with strong
augmentation gain more than a search, but have to be long, and compared with others (`benchmarks/search_pays.py`, for
2,000 images; for many images, on a GPU, this is reasoned, not measured)."""
MAX_GROWTH = 1.5
"""Work of the largest network allowed, relative to the largest affordable starter: with larger ones the final trainings
would see too few examples, and the search would try too few networks."""
MAX_CHILD_COST = 2.0
"""Cost of the largest child allowed, relative to `CHILD_SHARE` of the time, or to a starter's cost if that is higher.
Where starters have the largest width, final trainings may have time for networks of which a search could try only a
few."""
MIN_SEARCH_NETWORKS = 8
"""Networks that a search should have time for. If it has not, only the starters are trained and the best of them gets
the rest of the time, which is better than a search (`benchmarks/search_pays.py`)."""
MAX_TIME_RATIO = 0.9
"""Time of another way to compute, relative to the default one, below which it is chosen: noise should not decide, so
that the same run computes in the same way again. The default is one thread in float32, on a GPU CUDA graphs."""
MIN_COLOUR_CHANNELS = 3
"""Channels from which on images count as colour images; their first filters whiten."""
WIDTHS = (256, 192, 128, 96, 64, 56, 48, 40, 32, 28, 24, 20, 16, 12, 8, 7, 6, 5, 4)
"""Widths of starters, of at least 8 for tabular data; all narrow ones, to fill tight limits (`benchmarks/search_pays.py
--max-params`). Smaller ones cost as much (`benchmarks/cost_model.py`), and are only for limits that require them:
`TINY_WIDTHS`."""
MAX_STARTER_WIDTH = {"cpu": 64}
"""Largest width of starters for images, by type of device; other devices have no such bound, as a narrow network leaves
a GPU idle."""
TINY_WIDTHS = (4, 3, 2, 1)
STARTER_LATENCY_SHARE = 0.8
"""Share of the allowed latency that at least one starter should be predicted to have at most: predictions before any
training may be that far off (`benchmarks/latency.py`), and a search only makes networks slower."""
PROBE_BYTES = 2**27
"""Memory that the small network which measures a CPU's speed may take."""
PROBE_WIDTHS = {1: 32, 2: 16, 3: 16}
"""Its width, by number of spatial axes: in small batches of sequences, narrow networks do not show that wide ones train
twice as fast in bfloat16 (`benchmarks/few.py --pace`)."""
PROBE_WIDTH = 128
"""Width of the plain CNN that measures the speed of a device with CUDA graphs; some of its starters have it."""
PROBE_LR = 2e-3
"""Highest learning rate at which captured steps are compared with eager ones: at usual rates, rounding differences
alone lead to different weights after some steps."""
QUEUED_STEPS = 5
"""Steps that are queued on a device with CUDA graphs before a value is read back, as in a training."""
_CPU = torch.device("cpu")
MAX_THREADS = 1024
"""Largest number of threads that is accepted from a stored plan."""


@dataclass(frozen=True)
class Plan:
    """How a run is sized.

    starts: starters in the order of training. recipe: of children. search_share: share of the time limit; the rest is
    for the final trainings. If only the starters are compared, the share that this is predicted to take.
    seconds_per_flop: predicted for an epoch of a child. threads: number with which a CPU is fastest. searches: whether
    there is time for more than the starters.
    """

    starts: tuple[Graph, ...]
    recipe: Recipe
    limits: Limits
    search_share: float
    seconds_per_flop: float
    threads: int
    searches: bool

    def max_networks(self, max_trials: int | None) -> int | None:
        """Maximum number of networks that a fit tries before its final trainings; None: unlimited."""
        starters = None if self.searches else len(self.starts)
        return min((n for n in (starters, max_trials) if n is not None), default=None)

    def to_json(self) -> dict[str, Any]:
        return {
            "starts": [graph.to_json() for graph in self.starts],
            "recipe": self.recipe.to_json(),
            "limits": asdict(self.limits),
            "search_share": self.search_share,
            "seconds_per_flop": self.seconds_per_flop,
            "threads": self.threads,
            "searches": self.searches,
        }

    @staticmethod
    def of_run(about: Mapping[str, Any], version: str) -> Plan:
        """The plan in `about`, the content of run.json.

        ValueError if there is no valid plan in it, RunError if it has other fields, as plans of other versions of
        morphnas have. version: of this morphnas.
        """
        try:
            data = about["plan"]
            recipe, limits = data.get("recipe", {}), data.get("limits", {})
            for kind, part in ((Plan, data), (Recipe, recipe), (Augment, recipe.get("augment", {})), (Limits, limits)):
                _check_fields(kind, part, about, version)
            plan = Plan(
                tuple(map(Graph.from_json, data["starts"])),
                Recipe.from_json(data["recipe"]),
                Limits(**data["limits"]),
                float(data["search_share"]),
                float(data["seconds_per_flop"]),
                int(data["threads"]),
                data["searches"],
            )
            if not (plan.starts and 0 < plan.search_share <= 1 and 0 <= plan.seconds_per_flop < math.inf):
                raise ValueError("no starts, or search_share or seconds_per_flop out of range")
            if not 1 <= plan.threads <= MAX_THREADS:
                raise ValueError(f"{plan.threads} threads")
            if not isinstance(plan.searches, bool):
                raise ValueError(f"searches is {plan.searches!r:.100}")
        except RunError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise ValueError(f"run.json does not hold the plan of a run: {error!r}") from error
        return plan


def _check_fields(kind: type, part: Any, about: Mapping[str, Any], version: str) -> None:
    """RunError that says what to do if a part of a stored plan lacks fields of its class or has others."""
    try:
        if part and isinstance(part, Mapping):
            known_fields(kind, part)
    except ValueError as error:
        versions = about.get("versions")
        writer = versions.get("morphnas") if isinstance(versions, Mapping) else None
        which = "" if writer in (None, version) else f" ({writer!s:.40}, this is {version})"
        raise RunError(
            f"the run was begun by another version of morphnas{which}, with another plan ({error}): go on with that "
            "version, or fit in another path; load still reads its model, and load_run the networks that are known here"
        ) from error


@dataclass(frozen=True)
class Pace:
    """The fastest way to train on this machine, and its seconds per pass over the data and FLOP of `Graph.work`."""

    seconds_per_flop: float
    threads: int
    precision: Precision
    cuda_graphs: bool = False


def measure(task: Task, seconds: float, recipe: Recipe, record: bool = True, max_memory: int | None = None) -> Pace:
    """The fastest number of threads, precision and kind of steps on this machine, and their pace.

    Times a few steps of a small network on real batches, for at most about `seconds`. Batches are smaller and large
    examples are cropped to a corner if they would take more than `PROBE_BYTES` or `max_memory`. On a device with CUDA
    graphs neither is used, see `_measure_with_cuda_graphs`.
    record: whether CUDA graphs may be used. They are not where processes share a GPU, which aborted some of those that
    replayed them (`benchmarks/gpu.py shared`).
    """
    if task.device.type in GRAPH_RECORDERS:
        return _measure_with_cuda_graphs(task, recipe, record)
    max_bytes = PROBE_BYTES if max_memory is None else min(PROBE_BYTES, max_memory)
    graph, n = _probe(tuple(task.train.x.shape[1:]), task.goal.outputs, recipe.batch_size, max_bytes)
    shape = graph.shapes[graph.input.name]
    module = to_module(graph).to(task.device).train()
    if len(shape) == 3:
        to_memory_format(module, torch.channels_last)
    batch = task.train[:n]
    x = task.normalised(batch.x)[(slice(None), slice(None), *map(slice, shape[1:]))].contiguous()

    def step(precision: Precision) -> float:
        start = time.perf_counter()
        with autocast_to(precision, task.device):
            outputs = module(x)
        task.goal.loss(outputs.float(), batch.y).backward()
        return time.perf_counter() - start

    max_threads = torch.get_num_threads()
    settings = [(count, precision) for count in sorted({1, max_threads}) for precision in get_args(Precision)]
    times: dict[tuple[int, Precision], list[float]] = {setting: [] for setting in settings}
    until = time.perf_counter() + seconds
    try:
        for turn in range(11):  # in turns, so that other load on the machine affects all settings
            for count, precision in settings:
                torch.set_num_threads(count)
                times[count, precision].append(step(precision))
            if turn and time.perf_counter() > until:
                break
    finally:
        torch.set_num_threads(max_threads)
    warm = {setting: values[1:] for setting, values in times.items()}
    best = settings[0]
    for setting in settings[1:]:
        if statistics.median(t / other for t, other in zip(warm[setting], warm[best], strict=True)) < MAX_TIME_RATIO:
            best = setting
    fastest, (threads, precision) = statistics.median(warm[best]), best
    return Pace(fastest / len(batch) / graph.work * len(task.train), threads, precision)


def _probe(shape: Shape, outputs: int, batch_size: int, max_bytes: int) -> tuple[Graph, int]:
    """A small network, and a batch size with which its training takes at most so many bytes.

    The batch size is at least 2, since batch norm cannot train on one example; the network is for smaller examples if
    these take too much.
    """
    while True:
        graph = cnn(shape, outputs, width=PROBE_WIDTHS[len(shape) - 1]) if len(shape) > 1 else mlp(shape, outputs, 64)
        n = max(2, batch_size)
        while n > 2 and graph.peak_bytes(n) > max_bytes:
            n = max(2, n // 2)
        if graph.peak_bytes(n) <= max_bytes or max(shape[1:], default=1) <= 8:
            return graph, n
        shape = (shape[0], *(max(1, side // 2) if side > 8 else side for side in shape[1:]))


def _measure_with_cuda_graphs(task: Task, recipe: Recipe, record: bool) -> Pace:
    """The pace of a device with CUDA graphs, by whole training steps of a network that is large enough to keep it busy.

    In bfloat16 if the hardware supports it: its gain does not show in single steps, where the device mostly waits for
    the host (`benchmarks/gpu.py`). Captured steps are used unless they are clearly slower (see `MAX_TIME_RATIO`), or
    train differently: after the same steps, the changes of the weights may differ by a tenth of their norm.
    """
    shape = tuple(task.train.x.shape[1:])
    graph = (
        cnn(shape, task.goal.outputs, width=PROBE_WIDTH) if len(shape) > 1 else mlp(shape, task.goal.outputs, width=256)
    )
    index = torch.arange(min(len(task.train), max(2, recipe.batch_size)))
    draw = Draw.of(index, shape, recipe.augment, torch.Generator().manual_seed(0))
    draw = draw.to(task.device, task.train.x.device)
    mirrored = torch.arange(len(task.train)) % 2 == 0 if recipe.augment.flip else None
    precision: Precision = "bfloat16" if _computes_bfloat16(task.device) else "float32"
    start = to_module(graph).to(task.device)
    if len(shape) == 3:
        to_memory_format(start, torch.channels_last)

    def weights(module: nn.Module) -> Tensor:
        return torch.cat([p.detach().flatten() for p in module.parameters()])

    def measured(cuda_graphs: bool) -> tuple[Pace, Tensor]:
        """The pace, and the change of the weights."""
        module = copy.deepcopy(start)
        settings = replace(recipe, precision=precision, cuda_graphs=cuda_graphs)
        step, times, lr = Step(module, task, settings, mirrored=mirrored), [], min(0.1, PROBE_LR / recipe.lr)
        for _ in range(EAGER_STEPS + 1):
            step(draw, lr).item()
        for _ in range(3):
            before = time.perf_counter()
            for _ in range(QUEUED_STEPS):
                loss = step(draw, lr)
            loss.item()  # waits for the device
            times.append((time.perf_counter() - before) / QUEUED_STEPS)
        per_flop = min(times) / len(draw) / graph.work * len(task.train)
        return Pace(per_flop, torch.get_num_threads(), precision, step.records), weights(module) - weights(start)

    eager, eager_change = measured(False)
    if not record:
        return eager
    captured, captured_change = measured(True)
    difference, norm = (captured_change - eager_change).norm(), eager_change.norm()
    if difference <= 0.1 * norm and captured.seconds_per_flop * MAX_TIME_RATIO < eager.seconds_per_flop:
        return captured
    ratio, relative = captured.seconds_per_flop / eager.seconds_per_flop, difference / norm
    log.info("CUDA graphs are not used: they take %.2f times as long, and change the updates by %.2g", ratio, relative)
    return eager


def _computes_bfloat16(device: torch.device) -> bool:
    """Whether the hardware does; older GPUs emulate it, which is slow."""
    if device.type != "cuda":
        return True
    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def measure_latency(task: Task, seconds: float) -> tuple[float, float]:
    """Seconds per node and per FLOP of the latency of one example on this machine, from a narrow and a wide network.

    Times both for about `seconds`, in turns.
    """
    shape = tuple(task.train.x.shape[1:])
    make, widths = (cnn, (8, 64)) if len(shape) > 1 else (mlp, (16, 512))
    graphs = [make(shape, task.goal.outputs, width=width) for width in widths]
    modules = [to_module(graph).to(task.device) for graph in graphs]
    turns = [[latency(module, task, seconds / 6) for module in modules] for _ in range(3)]
    narrow, wide = (statistics.median(turn[i] for turn in turns) for i in (0, 1))
    per_flop = max(0.0, wide - narrow) / (graphs[1].flops - graphs[0].flops)
    return max(0.0, narrow - per_flop * graphs[0].flops) / len(graphs[0].nodes), per_flop


def batch_size(n: int, device: torch.device) -> int:
    """Examples per step: the smallest power of 2 with which an epoch has less than about 400 steps, on a GPU 100; but
    from 64 to 128, on a GPU from 128 to 512 (`benchmarks/gpu.py`)."""
    smallest, largest, count = (128, 512, 100) if device.type == "cuda" else (64, 128, 400)
    return min(largest, max(smallest, 1 << (n // count).bit_length()))


def default_recipe(n: int, device: torch.device, augment: bool | None, shape: Shape) -> Recipe:
    """The recipe of children for n examples of that shape.

    augment: whether images are augmented by shifts and flips, of which flips are decided later; None: shifts are, too.
    Whitening first filters help on colour images and hurt on grey ones (`benchmarks/ablation_recipe.py`).
    """
    size, spatial = batch_size(n, device), len(shape) > 1
    shift = {None: None, True: DEFAULT_SHIFT, False: 0.0}[augment]
    augmentation = Augment(shift=shift, flip=None) if spatial and augment is not False else Augment()
    optimizer: Optimizer = "muon" if spatial else "sgd"
    steps = MIN_STEPS if spatial else MIN_STEPS_TABULAR
    epochs = max(EPOCHS, min(MAX_EPOCHS_FOR_STEPS, math.ceil(steps / batch_count(n, size))))
    recipe = Recipe(epochs=epochs, batch_size=size, optimizer=optimizer, whiten=is_colour(shape), augment=augmentation)
    return with_default_learning_rate(recipe if spatial else replace(recipe, weight_decay=TABULAR_WEIGHT_DECAY))


def is_colour(shape: Shape) -> bool:
    return len(shape) == 3 and shape[0] >= MIN_COLOUR_CHANNELS


def min_seen(shape: Shape) -> int:
    """Examples of that shape that the final trainings should see at least, repetitions counted."""
    return MIN_SEEN_COLOUR if is_colour(shape) else MIN_SEEN


def plan(
    shape: Shape,
    outputs: int,
    n: int,
    recipe: Recipe,
    seconds: float,
    pace: Pace,
    limits: Limits,
    depth: int | None = None,
    width: int | None = None,
    initial: Sequence[Graph] = (),
    workers: int = 1,
    device: torch.device = _CPU,
    finals: bool = True,
) -> Plan:
    """The plan of a whole run of `seconds` on n examples of that shape.

    Networks are as large as possible if the final trainings are to see all examples `MIN_PASSES` times, and at least
    `min_seen` examples; with more time they see them more often, see `AMPLE_COMPUTE`. For few examples both larger and
    smaller networks are worse after the same time on a CPU (`benchmarks/sizes.py`). Children see as many examples as
    they have time for, in epochs that are a part of large data.

    recipe: of children; if there is no time for it, its `examples` are chosen here unless they are set, and its epochs
    reduced. depth, width: of all starters, instead of affordable ones. initial: graphs to start from instead of
    starters. workers: number that train at a time; the final trainings use one. device: that the pace was measured on.
    finals: whether the winner is trained longer, for which networks must not grow too large. ValueError if no starter
    meets the limits, or if an initial graph does not meet them or does not fit the examples.
    """
    cost = max(pace.seconds_per_flop, 1e-30)
    room = MIN_FINAL_SHARE * seconds / cost  # work times passes
    many, few = (max(1.0, n * room / ample) ** (1 / 3) for ample in (AMPLE_COMPUTE, AMPLE_COMPUTE_COLOUR))
    passes = min(MAX_PASSES, max(MIN_PASSES * many, min_seen(shape) / n * (few if is_colour(shape) else 1.0)))
    largest = room / passes
    _check_initial(initial, shape, outputs, limits)
    graphs = initial or _starters(shape, outputs, largest, limits, depth, width, device)
    starts = {graph.key: graph for graph in graphs}
    typical = statistics.median(graph.work for graph in starts.values())
    recipe = _with_length(recipe, n, CHILD_SHARE * seconds / (cost * typical))
    final = max(FINAL_PASSES, 0.75 * min_seen(shape) / n)
    if is_colour(shape):
        final = max(final, min(FINAL_PASSES_COLOUR, FINAL_SEEN_COLOUR / n))
    expected = TYPICAL_WORK * largest  # whichever widths there are, so that similar machines have similar plans
    final *= cost * MAX_GROWTH * (expected if expected / 2 < typical < 2 * expected else typical) / seconds
    share = 1 - min(1.0 if workers == 1 else 0.6, max(MIN_FINAL_SHARE, final))
    searches = share * workers >= MIN_SEARCH_NETWORKS * CHILD_SHARE
    if not searches:
        share = _share_of_starters(len(starts))
    part = 1.0 if recipe.examples is None else recipe.examples / n
    affordable = MAX_CHILD_COST * max(typical, CHILD_SHARE * seconds / (cost * part * recipe.epochs))
    max_work = int(
        max(min(MAX_GROWTH * largest, affordable) if finals else affordable, *(graph.work for graph in starts.values()))
    )
    if limits.max_work is None or max_work < limits.max_work:
        limits = replace(limits, max_work=max_work)
    return Plan(tuple(starts.values()), recipe, limits, share, cost * part, pace.threads, searches)


def _starters(
    shape: Shape,
    outputs: int,
    largest: float,
    limits: Limits,
    depth: int | None,
    width: int | None,
    device: torch.device,
) -> list[Graph]:
    """Starters of up to about `largest` work (tabular data: one of twice that), within the limits, see `plan`."""
    families: list[tuple[Callable[..., Graph], float, int]] = [(mlp, 1.0, 2), (mlp, 2.0, 3), (mlp, 0.5, 1)]
    families.append((mlp, 1.0, 0))  # a linear model may be best for few noisy rows
    affordable: Sequence[int] = [w for w in WIDTHS if w >= 8]
    if len(shape) > 1:
        families = [(cnn, 1.0, 4), (resnet, 1.0, 2)]
        affordable = [w for w in WIDTHS if w <= MAX_STARTER_WIDTH.get(device.type, max(WIDTHS))]

    def largest_of(make: Callable[..., Graph], default_depth: int, max_work: float, limits: Limits = limits) -> Graph:
        """The network of a family with the most parameters within the limits and the work, or if all are tiny, within
        the limits. If there is none, the one with the least work within the limits, or else the smallest.
        """
        for widths in [(width,)] if width else [affordable, TINY_WIDTHS]:
            graphs = [_starter(make, shape, outputs, w, depth or default_depth) for w in widths]
            if allowed := [graph for graph in graphs if limits.violation(graph) is None]:
                quick = [graph for graph in allowed if graph.work <= max_work or widths is TINY_WIDTHS]
                return max(quick, key=lambda g: g.parameters) if quick else min(allowed, key=lambda g: g.work)
        return graphs[-1]

    deeper = [largest_of(make, default_depth, factor * largest) for make, factor, default_depth in families]
    starts = [graph for graph in deeper if limits.violation(graph) is None]
    if not starts:
        shallow = [largest_of(make, 1, 0) for make, _, _ in families]
        starts = [graph for graph in shallow if limits.violation(graph) is None]
    if not starts:
        tiny = min((*deeper, *shallow), key=lambda graph: (limits.latency(graph), graph.parameters))
        raise ValueError(f"limits: no first network meets them; the smallest one has {limits.violation(tiny)}")
    if limits.max_latency_ms is not None and not depth:
        safe = replace(limits, max_latency_ms=STARTER_LATENCY_SHARE * limits.max_latency_ms)
        make, factor, default_depth = families[0]
        shallower = (largest_of(make, d, factor * largest, safe) for d in range(default_depth, 0, -1))
        if all(map(safe.violation, starts)):
            starts += [graph for graph in shallower if safe.violation(graph) is None][:1]
    return starts


@lru_cache(maxsize=1024)
def _starter(make: Callable[..., Graph], shape: Shape, outputs: int, width: int, depth: int) -> Graph:
    """Cached, since `seconds_for_search` makes many plans."""
    return make(shape, outputs, width=width, depth=depth)


def _share_of_starters(starts: int) -> float:
    """The share of the time for a search that trains so many starters and nothing else, with a margin of one."""
    return min(1.0, (starts + 1) * CHILD_SHARE)


def _with_length(recipe: Recipe, n: int, passes: float) -> Recipe:
    """The recipe with epochs that together make so many passes over n examples, if there is no time for whole ones.

    Their number is reduced if epochs would otherwise be too short for a meaningful score.
    """
    if passes >= recipe.epochs or (recipe.examples is not None and recipe.examples * recipe.epochs <= passes * n):
        return recipe
    shortest = min(n, recipe.examples or MIN_EPOCH_BATCHES * recipe.batch_size)
    epochs = int(max(1, min(recipe.epochs, passes * n // shortest)))
    examples = int(max(shortest, min(recipe.examples or n, passes * n / epochs)))
    return replace(recipe, epochs=epochs, examples=None if examples >= n else examples)


def _check_initial(initial: Sequence[Graph], shape: Shape, outputs: int, limits: Limits) -> None:
    for i, graph in enumerate(initial):
        takes, gives = (graph.shapes[node.name] for node in (graph.input, graph.output))
        if takes != shape:
            raise ValueError(f"initial_networks[{i}] takes inputs of shape {takes}, but the examples are {shape}")
        if gives != (outputs,):
            raise ValueError(f"initial_networks[{i}] gives {gives}, but {outputs} outputs are needed")
        if (why := limits.violation(graph)) is not None:
            raise ValueError(f"initial_networks[{i}] exceeds the limits: {why}")
