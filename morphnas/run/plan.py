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
from morphnas.train.data import Task, steps
from morphnas.train.predict import latency
from morphnas.train.recipe import SHIFT, Augment, Optimizer, Precision, Recipe, at_usual_rate, known_fields
from morphnas.train.step import EAGER, RECORDERS, Step, computing, to_memory_format

log = logging.getLogger("morphnas")

CHILD = 0.04
"""Share of the time that one child should cost."""
EPOCHS = 6
"""Epochs of a child, where the time allows."""
STEPS, MOST_EPOCHS = 250, 30
"""Steps of a child on rows, at least, as far as so many epochs make them: they cost next to nothing."""
DECAY_OF_ROWS = 5e-3
"""Weight decay on rows (`benchmarks/tuning.py`)."""
PASSES, MOST_PASSES = 5, 240
"""Times that the final trainings should see all examples, at least, with the largest starter; and beyond which they
could not use the time, however much there is."""
AMPLE = 1e13
"""Examples, times FLOPs of `Graph.work`, that the final trainings have time for, from which on they see them more
often: as the cube root, the rest is for larger networks."""
SEEN, SEEN_COLOURED, AMPLE_FOR_FEW = 120_000, 60_000, 2.5e12
"""Examples that they should see, at least, and of coloured images: of few, all are seen more often. In a minute, of
grey ones larger networks are no better then, and smaller ones leave time for a search and for comparing final
trainings; of coloured ones smaller ones are worse (`benchmarks/sizes.py`). With more time than the last of these, which
is as `AMPLE`, coloured ones are seen more often, as its cube root: longer trainings on strongly changed images gain
more by then than larger networks (`benchmarks/search_pays.py --width`)."""
USUAL = 0.75
"""Work of starters that is about the mean, as a share of the most that they may have."""
RESERVED = 0.5
"""Share of the time that the final trainings have, at least: networks are sized for it."""
SHORTEST = 16
"""Batches of an epoch that is a part of the data, at least."""
FINAL = 45
"""Passes over all examples that the final trainings should have time for, at least, and three quarters of those that
`seen` makes: of a network `GROWN` times as large as a starter."""
FINAL_COLOURED, SEEN_LAST = 120, 6_000_000
"""The same of coloured images, as far as so many examples go: final trainings on images that are changed strongly gain
more than a search, but have to be long, and compared with others (`benchmarks/search_pays.py`, of 2,000 images; of
many, on a GPU, that is reasoned, not measured)."""
GROWN = 1.5
"""How much larger a network may get than starters may be: beyond, the final trainings would not see enough, and the
search would not try enough."""
DEAREST = 2.0
"""Times what a child should cost, or a starter does where that is more, that the largest child may cost: where starters
are as wide as any, there may be time for final trainings of networks of which a search could try only a few."""
ENOUGH = 8
"""Networks that a search should have time for: of fewer only the starters are trained, the best of which gets the time,
since that is better than a search (`benchmarks/search_pays.py`)."""
CLEARLY = 0.9
"""Share of the time of a simpler way to compute that another one may take to be chosen: not by chance, so that the same
run again computes in the same way."""
COLOURS = 3
"""Channels that coloured images have, at least; their first filters whiten."""
WIDTHS = (256, 192, 128, 96, 64, 56, 48, 40, 32, 28, 24, 20, 16, 12, 8, 6, 4)
"""Of starters; smaller ones, for rows than 8, cost as much (`benchmarks/cost_model.py`) and are for limits that demand
them."""
WIDEST = {"cpu": 64}
"""Of those for images, by the type of device; elsewhere as wide as any: a GPU has nothing to do in a narrow one."""
TINY = (4, 2, 1)
SURELY = 0.8
"""Share of the latency allowed that one first network should be predicted to have at most: as it is predicted before
any was trained, it may be that far off (`benchmarks/latency.py`), and a search only makes networks slower."""
PROBED = 2**27
"""Bytes that the small network which tells how fast a CPU is may take, at most."""
BUSY = 128
"""Width of the plain network that tells how fast a device is that records steps: among those of its starters."""
RATE = 2e-3
"""Learning rate that recorded steps are tried at, at most: at a usual one those that differ by no more than rounding
train other networks after some steps."""
AHEAD = 5
"""Steps that such a device is given to do before it is asked for a value: as in a training."""
_CPU = torch.device("cpu")
MAX_THREADS = 1024
"""That a plan which is read may ask for."""


@dataclass(frozen=True)
class Plan:
    """How a run is sized.

    starts: in the order they are trained. recipe: of a child. search_share: of the limit, the rest is the final
    model's; where the starts are only compared, what that takes if it goes as predicted. seconds_per_flop: of a child's
    epoch, predicted. threads: that a CPU is fastest with. searches: whether there is time for more than the starts.
    """

    starts: tuple[Graph, ...]
    recipe: Recipe
    limits: Limits
    search_share: float
    seconds_per_flop: float
    threads: int
    searches: bool

    def most(self, max_trials: int | None) -> int | None:
        """Networks that a fit tries at most, before its final trainings; None: any number."""
        own = None if self.searches else len(self.starts)
        return min((n for n in (own, max_trials) if n is not None), default=None)

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
        """The plan that a run was begun with; ValueError when run.json does not hold it, RunError where another version
        of morphnas than this one has written it.
        """
        try:
            data = about["plan"]
            recipe, limits = data.get("recipe", {}), data.get("limits", {})
            for kind, part in ((Plan, data), (Recipe, recipe), (Augment, recipe.get("augment", {})), (Limits, limits)):
                _check_fields(kind, part, about, version)
            read = Plan(
                tuple(map(Graph.from_json, data["starts"])),
                Recipe.from_json(data["recipe"]),
                Limits(**data["limits"]),
                float(data["search_share"]),
                float(data["seconds_per_flop"]),
                int(data["threads"]),
                data["searches"],
            )
            if not (read.starts and 0 < read.search_share <= 1 and 0 <= read.seconds_per_flop < math.inf):
                raise ValueError("a share or a speed that cannot be")
            if not 1 <= read.threads <= MAX_THREADS:
                raise ValueError(f"{read.threads} threads")
            if not isinstance(read.searches, bool):
                raise ValueError(f"searches is {read.searches!r:.100}")
        except RunError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise ValueError(f"run.json does not hold the plan of a run: {error!r}") from error
        return read


def _check_fields(kind: type, part: Any, about: Mapping[str, Any], version: str) -> None:
    """RunError that says what to do where a part of the plan lacks fields, or has others than those of the kind."""
    try:
        if part and isinstance(part, Mapping):
            known_fields(kind, part)
    except ValueError as error:
        made = about.get("versions")
        before = made.get("morphnas") if isinstance(made, Mapping) else None
        which = "" if before in (None, version) else f" ({before!s:.40}, this is {version})"
        raise RunError(
            f"the run was begun by another version of morphnas{which}, with another plan ({error}): go on with that "
            "version, or fit in another path; load still reads its model, and load_run the networks that are known here"
        ) from error


@dataclass(frozen=True)
class Pace:
    """How this machine trains fastest: seconds of a pass over the data per FLOP of `Graph.work`, and with what."""

    seconds_per_flop: float
    threads: int
    precision: Precision
    cuda_graphs: bool = False


def measure(task: Task, seconds: float, recipe: Recipe, record: bool = True, max_memory: int | None = None) -> Pace:
    """The pace of the number of threads, the precision and the kind of steps that are the fastest here.

    Times a few steps of a small network on real batches, for at most about `seconds`; on a CPU, where these would take
    more than `PROBED` bytes or max_memory, on smaller ones, and on a corner of large examples. record: whether steps
    may be recorded. Not where processes share a GPU: it stopped some of those that replayed recorded ones
    (`benchmarks/gpu.py shared`).
    """
    if task.device.type in RECORDERS:
        return _measure_recording(task, recipe, record)
    most = PROBED if max_memory is None else min(PROBED, max_memory)
    graph, n = _probe(tuple(task.train.x.shape[1:]), task.goal.outputs, recipe.batch_size, most)
    shape = graph.shapes[graph.input.name]
    module = to_module(graph).to(task.device).train()
    if len(shape) == 3:
        to_memory_format(module, torch.channels_last)
    batch = task.train[:n]
    x = task.normalised(batch.x)[(slice(None), slice(None), *map(slice, shape[1:]))].contiguous()

    def step(precision: Precision) -> float:
        begun = time.perf_counter()
        with computing(precision, task.device):
            outputs = module(x)
        task.goal.loss(outputs.float(), batch.y).backward()
        return time.perf_counter() - begun

    most = torch.get_num_threads()
    ways = [(count, precision) for count in sorted({1, most}) for precision in get_args(Precision)]
    times: dict[tuple[int, Precision], list[float]] = {way: [] for way in ways}
    until = time.perf_counter() + seconds
    try:
        for turn in range(11):  # in turns, so that what else the machine does hits all alike
            for count, precision in ways:
                torch.set_num_threads(count)
                times[count, precision].append(step(precision))
            if turn and time.perf_counter() > until:
                break
    finally:
        torch.set_num_threads(most)
    warm = {way: several[1:] for way, several in times.items()}
    best = ways[0]
    for way in ways[1:]:
        if statistics.median(one / other for one, other in zip(warm[way], warm[best], strict=True)) < CLEARLY:
            best = way
    fastest, (threads, precision) = statistics.median(warm[best]), best
    return Pace(fastest / len(batch) / graph.work * len(task.train), threads, precision)


def _probe(shape: Shape, outputs: int, batch_size: int, most: int) -> tuple[Graph, int]:
    """A small network, and a batch whose training takes at most so many bytes: of at least 2, since batch norm cannot
    train on one, and of smaller examples where these take too much."""
    while True:
        graph = cnn(shape, outputs, width=16) if len(shape) > 1 else mlp(shape, outputs, width=64)
        n = max(2, batch_size)
        while n > 2 and graph.peak_bytes(n) > most:
            n = max(2, n // 2)
        if graph.peak_bytes(n) <= most or max(shape[1:], default=1) <= 8:
            return graph, n
        shape = (shape[0], *(max(1, side // 2) if side > 8 else side for side in shape[1:]))


def _measure_recording(task: Task, recipe: Recipe, record: bool) -> Pace:
    """That of a device which can record steps: of whole ones, and of a network that is large enough to keep it busy.

    In bfloat16, where the device itself computes in it: what that gains does not show step by step, since the device
    mostly waits for what it is to do next (`benchmarks/gpu.py`). Recorded steps are taken unless they are slower, or do
    not train the same network: its weights must move as they do otherwise, up to a tenth of the way.
    """
    shape = tuple(task.train.x.shape[1:])
    graph = cnn(shape, task.goal.outputs, width=BUSY) if len(shape) > 1 else mlp(shape, task.goal.outputs, width=256)
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

    def tried(cuda_graphs: bool) -> tuple[Pace, Tensor]:
        """The pace, and how the weights have moved."""
        module = copy.deepcopy(start)
        way = replace(recipe, precision=precision, cuda_graphs=cuda_graphs)
        step, took, rate = Step(module, task, way, mirrored=mirrored), [], min(0.1, RATE / recipe.lr)
        for _ in range(EAGER + 1):
            step(draw, rate).item()
        for _ in range(3):
            begun = time.perf_counter()
            for _ in range(AHEAD):
                loss = step(draw, rate)
            loss.item()  # waits for the device
            took.append((time.perf_counter() - begun) / AHEAD)
        per_flop = min(took) / len(draw) / graph.work * len(task.train)
        return Pace(per_flop, torch.get_num_threads(), precision, step.records), weights(module) - weights(start)

    plain, moved = tried(False)
    if not record:
        return plain
    recorded, otherwise = tried(True)
    apart = (otherwise - moved).norm()
    if apart <= 0.1 * moved.norm() and recorded.seconds_per_flop * CLEARLY < plain.seconds_per_flop:
        return recorded
    times, far = recorded.seconds_per_flop / plain.seconds_per_flop, apart / moved.norm()
    log.info("CUDA graphs are not used: they take %.2f times as long, and change the updates by %.2g", times, far)
    return plain


def _computes_bfloat16(device: torch.device) -> bool:
    """Whether it does itself; older GPUs do in software, which is slow."""
    if device.type != "cuda":
        return True
    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def measure_latency(task: Task, seconds: float) -> tuple[float, float]:
    """Seconds per node and per FLOP from one example to its outputs here, by a narrow and a wide network.

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
    """Examples per step, a power of 2: an epoch of large data has about 400 steps, on a GPU about 100 (`gpu.py`)."""
    smallest, largest, several = (128, 512, 100) if device.type == "cuda" else (64, 128, 400)
    return min(largest, max(smallest, 1 << (n // several).bit_length()))


def default_recipe(n: int, device: torch.device, augment: bool | None, shape: Shape) -> Recipe:
    """The recipe of a child.

    Whitening first filters gain on colour images and lose on grey ones (`benchmarks/ablation_recipe.py`).
    """
    size, spatial = batch_size(n, device), len(shape) > 1
    shift = {None: None, True: SHIFT, False: 0.0}[augment]
    change = Augment(shift=shift, flip=None) if spatial and augment is not False else Augment()
    optimizer: Optimizer = "muon" if spatial else "sgd"
    epochs = EPOCHS if spatial else max(EPOCHS, min(MOST_EPOCHS, math.ceil(STEPS / steps(n, size))))
    recipe = Recipe(epochs=epochs, batch_size=size, optimizer=optimizer, whiten=is_colour(shape), augment=change)
    return at_usual_rate(recipe if spatial else replace(recipe, weight_decay=DECAY_OF_ROWS))


def is_colour(shape: Shape) -> bool:
    return len(shape) == 3 and shape[0] >= COLOURS


def seen(shape: Shape) -> int:
    """Examples of that shape that the final trainings should see, at least."""
    return SEEN_COLOURED if is_colour(shape) else SEEN


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
    """Starters that are affordable within `seconds` of the whole run on n examples.

    Networks are as large as lets the final trainings see all examples `PASSES` times, and `seen` of them: of few,
    larger and smaller ones trained on a CPU for the same seconds do worse (`benchmarks/sizes.py`); and where there is
    more time, more often. Children see what they have time for, of much data a part.

    recipe: of children; its `examples` are found unless they are given. depth, width: of all starters, instead of what
    is affordable. initial: graphs to start from instead of starters. workers: that train at a time, of which the final
    trainings use one. device: that the pace is of. finals: whether the winner is trained longer, for which networks
    must not grow too large. ValueError when no starter meets the limits, or a graph given does not, or does not fit the
    examples.
    """
    cost = max(pace.seconds_per_flop, 1e-30)
    room = RESERVED * seconds / cost  # work, times passes
    many, few = (max(1.0, n * room / much) ** (1 / 3) for much in (AMPLE, AMPLE_FOR_FEW))
    passes = min(MOST_PASSES, max(PASSES * many, seen(shape) / n * (few if is_colour(shape) else 1.0)))
    largest = room / passes
    _check(initial, shape, outputs, limits)
    graphs = initial or _starters(shape, outputs, largest, limits, depth, width, device)
    starts = {graph.key: graph for graph in graphs}
    typical = statistics.median(graph.work for graph in starts.values())
    recipe = _parted(recipe, n, CHILD * seconds / (cost * typical))
    final = max(FINAL, 0.75 * seen(shape) / n, min(FINAL_COLOURED, SEEN_LAST / n) if is_colour(shape) else 0.0)
    about = USUAL * largest  # of starters, whichever widths there are: those of similar machines should be alike
    final *= cost * GROWN * (about if about / 2 < typical < 2 * about else typical) / seconds
    share = 1 - min(1.0 if workers == 1 else 0.6, max(RESERVED, final))
    searches = share * workers >= ENOUGH * CHILD
    if not searches:
        share = share_of(len(starts))
    part = 1.0 if recipe.examples is None else recipe.examples / n
    dearest = DEAREST * max(typical, CHILD * seconds / (cost * part * recipe.epochs))
    most = int(max(min(GROWN * largest, dearest) if finals else dearest, *(graph.work for graph in starts.values())))
    if limits.max_work is None or most < limits.max_work:
        limits = replace(limits, max_work=most)
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
    """First networks of about that much work, within the limits, see `plan`."""
    families: list[tuple[Callable[..., Graph], float, int]] = [(mlp, 1.0, 2), (mlp, 2.0, 3), (mlp, 0.5, 1)]
    families.append((mlp, 1.0, 0))  # of few rows with much noise a linear map may say all that there is to say
    affordable: Sequence[int] = [w for w in WIDTHS if w >= 8]
    if len(shape) > 1:
        families = [(cnn, 1.0, 4), (resnet, 1.0, 2)]
        affordable = [w for w in WIDTHS if w <= WIDEST.get(device.type, max(WIDTHS))]

    def made(make: Callable[..., Graph], deep: int, most: float, limits: Limits = limits) -> Graph:
        """That of a family with the most parameters within the limits and the work, of tiny ones within the limits; the
        one with the least work if there is none."""
        for widths in [(width,)] if width else [affordable, TINY]:
            graphs = [_starter(make, shape, outputs, w, depth or deep) for w in widths]
            if fitting := [graph for graph in graphs if limits.refuse(graph) is None]:
                quick = [graph for graph in fitting if graph.work <= most or widths is TINY]
                return max(quick, key=lambda g: g.parameters) if quick else min(fitting, key=lambda g: g.work)
        return graphs[-1]

    deeper = [made(make, deep, factor * largest) for make, factor, deep in families]
    starts = [graph for graph in deeper if limits.refuse(graph) is None]
    if not starts:
        shallow = [made(make, 1, 0) for make, _, _ in families]
        starts = [graph for graph in shallow if limits.refuse(graph) is None]
    if not starts:
        tiny = min((*deeper, *shallow), key=lambda graph: (limits.latency(graph), graph.parameters))
        raise ValueError(f"limits: no first network meets them; the smallest one has {limits.refuse(tiny)}")
    if limits.max_latency_ms is not None and not depth:
        surely = replace(limits, max_latency_ms=SURELY * limits.max_latency_ms)
        make, factor, deep = families[0]
        less = (made(make, d, factor * largest, surely) for d in range(deep, 0, -1))
        if all(map(surely.refuse, starts)):
            starts += [graph for graph in less if surely.refuse(graph) is None][:1]
    return starts


@lru_cache(maxsize=1024)
def _starter(make: Callable[..., Graph], shape: Shape, outputs: int, width: int, depth: int) -> Graph:
    """One that is made once: many plans ask for it where another time limit is looked for."""
    return make(shape, outputs, width=width, depth=depth)


def share_of(starts: int) -> float:
    """The search's share of a plan that trains so many first networks and nothing else, with some room."""
    return min(1.0, (starts + 1) * CHILD)


def _parted(recipe: Recipe, n: int, passes: float) -> Recipe:
    """The recipe with epochs that make up so many passes over n examples, if they cannot all be whole ones.

    There are fewer of them when they would get too short for a score to say anything.
    """
    if passes >= recipe.epochs or (recipe.examples is not None and recipe.examples * recipe.epochs <= passes * n):
        return recipe
    shortest = min(n, recipe.examples or SHORTEST * recipe.batch_size)
    epochs = int(max(1, min(recipe.epochs, passes * n // shortest)))
    examples = int(max(shortest, min(recipe.examples or n, passes * n / epochs)))
    return replace(recipe, epochs=epochs, examples=None if examples >= n else examples)


def _check(initial: Sequence[Graph], shape: Shape, outputs: int, limits: Limits) -> None:
    for i, graph in enumerate(initial):
        takes, gives = (graph.shapes[node.name] for node in (graph.input, graph.output))
        if takes != shape:
            raise ValueError(f"initial_networks[{i}] takes inputs of shape {takes}, but the examples are {shape}")
        if gives != (outputs,):
            raise ValueError(f"initial_networks[{i}] gives {gives}, but {outputs} outputs are needed")
        if (why := limits.refuse(graph)) is not None:
            raise ValueError(f"initial_networks[{i}] exceeds the limits: {why}")
