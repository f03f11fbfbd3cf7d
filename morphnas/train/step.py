"""What one step of a training does, all of it on the device: a GPU may replay it as one CUDA graph."""

from __future__ import annotations

import copy
import functools
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from morphnas.train.augment import Draw, augmented
from morphnas.train.data import Task, steps
from morphnas.train.muon import Muon
from morphnas.train.recipe import Precision, Recipe

log = logging.getLogger(__name__)

WEIGHTED = nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d
"""Layers whose weights multiply what they read."""
WIDE = 256
"""Inputs of a layer with a bias from which on its weights are trained at a lower rate, by as many times as there are
more."""

TEACHER_SHARE = 0.5
"""What agreeing with a teacher counts of a loss; the rest is what y say."""

EAGER = 10
"""Steps before one is recorded: they make what a recording cannot, and short trainings are not worth one."""

_OUT_OF_MEMORY = (
    "DefaultCPUAllocator", "CUDA error: out of memory", "CUDA driver error: out of memory", "_STATUS_ALLOC_FAILED",
    "DEVICE_ALLOCATION_FAILED", "was unable to find an engine",
)  # fmt: skip
"""One stands in the RuntimeError that torch raises when a CPU, CUDA, cuDNN or cuBLAS is out of memory, where there is
no class for it, or its driver is. The last one where none of cuDNN's ways to convolve has what it works in (pytorch
issue 108645)."""

_RECORDING = threading.Lock()

Run = Callable[[Draw], Tensor]
"""A step on a batch, which gives the loss; that of a recorded one is overwritten by the next step."""


class CudaGraphs:
    """Records steps as CUDA graphs, which share their memory since only one runs at a time.

    For that they are recorded on one stream, too (see `torch.cuda.graph`).
    """

    def __init__(self, device: torch.device) -> None:
        self.pool, self.stream = torch.cuda.graph_pool_handle(), _stream(device, threading.get_ident())

    def __call__(self, run: Run, draw: Draw) -> Run:
        """The step, for batches as long as the one given. Recording it changes nothing.

        Every tensor must be where it will be whenever the graph is replayed, and nothing may wait for a value. One
        thread records at a time, and meanwhile none may wait for the device as a whole, which torch does before it.
        """
        given, graph = draw.each(Tensor.clone), torch.cuda.CUDAGraph()
        with _RECORDING, torch.cuda.device(self.stream.device):
            before, random = torch.cuda.current_stream(), torch.cuda.default_generators[self.stream.device.index or 0]
            recording = torch.cuda.graph(
                graph,
                pool=self.pool,
                stream=self.stream,
                capture_error_mode="thread_local",  # other threads may use the GPU meanwhile
            )
            try:
                with recording:
                    loss = run(given)
            except BaseException:  # torch leaves all three as they are when an error ends the recording
                torch.cuda.set_stream(before)
                random.graphsafe_set_state(random.clone_state())
                with suppress(RuntimeError):  # where it does not any more: pytorch pull request 180395
                    torch._C._cuda_endAllocateToPool(self.stream.device.index, self.pool)  # noqa: SLF001
                raise

        def replayed(draw: Draw) -> Tensor:
            given.copy_(draw)
            graph.replay()
            return loss

        return replayed


@functools.cache
def _stream(device: torch.device, thread: int) -> torch.cuda.Stream:  # noqa: ARG001  # each has its own
    """The one of all trainings in a thread: cuBLAS keeps memory for every stream that it was used on."""
    return torch.cuda.Stream(device)


RECORDERS: dict[str, Callable[[torch.device], Callable[[Run, Draw], Run]]] = {"cuda": CudaGraphs}
"""What makes a training's recorder for a device, by its type."""


class Step:
    """A step of the optimizer on a batch, and of the running mean of the weights.

    kept: the module that is scored and whose weights count: the mean over `recipe.average` epochs of `per_epoch` steps,
    or the module itself. mirrored: (examples,) bool, which images are mirrored the next time, where any may be. micro:
    examples in memory at a time, about; out of memory, it is halved, down to `smallest`.
    """

    def __init__(
        self,
        module: nn.Module,
        task: Task,
        recipe: Recipe,
        per_epoch: int = 1,
        mirrored: Tensor | None = None,
        micro: int | None = None,
        smallest: int = 2,
    ) -> None:
        self.module, self.task, self.recipe, self.smallest = module.train(), task, recipe, smallest
        self.mirrored = None if mirrored is None else mirrored.to(task.device)
        self.micro = micro or recipe.batch_size
        self.optimizer = optimizer_of(module, recipe)
        self.averaged = recipe.average * per_epoch
        self.kept = copy.deepcopy(module) if self.averaged > 1 else module
        pairs = list(zip(self.kept.state_dict().values(), module.state_dict().values(), strict=True))
        self._means = [pair for pair in pairs if pair[0].is_floating_point()]
        self.fresh = True
        """Whether there was no step yet."""
        self.recorded = False
        """Whether the last step was recorded, which takes far longer than the others."""
        resident = task.train.x.device == task.device
        recorder = RECORDERS.get(task.device.type) if recipe.cuda_graphs and resident else None
        self._record = recorder(task.device) if recorder else None
        self._replays: dict[int, Run] = {}
        self._eager, self._again = 0, True

    @property
    def records(self) -> bool:
        """Whether steps are recorded, once there were enough: not after one could not be."""
        return self._record is not None

    def __call__(self, draw: Draw, rate: float) -> Tensor:
        """Make one at this share of the recipe's rate; the batch's mean loss, until the next step.

        The gradient is that of the whole batch however few are in memory at a time, since every part weighs as its
        share; but batch norm normalises each part by itself, and moves its running statistics once for each. Raises
        what torch does when `smallest` examples are too many.
        """
        for group in self.optimizer.param_groups:
            group["lr"].fill_(group["share"] * self.recipe.lr * rate)
        self.recorded = False
        run = self._replays.get(len(draw)) or self._recording(draw) or self._whole
        loss = run(draw)
        self.fresh = False
        return loss

    def _recording(self, draw: Draw) -> Run | None:
        """A recorded step for batches of this length; None: not now, or never."""
        if self._record is None or self._eager < EAGER or len(draw) > self.micro:
            return None
        try:
            self._replays[len(draw)] = self._record(self._run, draw)
        except Exception as error:
            if self._again and is_out_of_memory(error):  # there may be room without what eager steps have left
                self._eager, self._again = 0, False
                self._empty_cache()
                return None
            log.warning("training runs without CUDA graphs, which cannot be captured here: %s", error)
            self._record = None
            return None
        self.recorded = True
        return self._replays[len(draw)]

    def _whole(self, draw: Draw) -> Tensor:
        """Operation by operation, in parts that fit into the memory."""
        while True:
            try:
                loss = self._run(draw)
                self._eager += 1
                return loss
            except Exception as error:
                self.micro = min(self.micro, len(draw))
                if self.micro <= self.smallest or not is_out_of_memory(error):
                    raise
            self.micro = max(self.smallest, self.micro // 2)
            self._empty_cache()

    def _empty_cache(self) -> None:
        if self.task.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.task.device)  # what failed is not what a step takes

    def forget(self) -> None:
        """Let go of what was recorded, now: the next training records on the same stream."""
        self._replays.clear()

    def _run(self, draw: Draw) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        with dropping(self.module, self.recipe.dropout):
            loss = self._gradients(draw.split(steps(len(draw), self.micro)))
        with computing(self.recipe.precision, self.task.device):
            self.optimizer.step()
        if self.mirrored is not None:
            self.mirrored[draw.index] ^= True  # the other way the next time
        if self.kept is not self.module:
            self._average()
        return loss

    def _gradients(self, parts: Sequence[Draw]) -> Tensor:
        """The mean loss of a batch in parts, whose gradients add up; a method, so that an error frees its tensors."""
        loss = torch.zeros((), device=self.task.device)
        n = sum(map(len, parts))
        for part in parts:
            batch = self.task.train[part.index]
            mirrored = None if self.mirrored is None else self.mirrored[part.index]
            x = self.task.normalised(augmented(batch.x, part, self.recipe.augment, mirrored))
            with computing(self.recipe.precision, self.task.device):
                outputs = self.module(x).float()
            share = self.task.goal.loss(outputs, batch.y, batch.weights, self.recipe.label_smoothing)
            if batch.teacher_outputs is not None:
                share = torch.lerp(
                    share,
                    self.task.goal.distillation_loss(outputs, batch.teacher_outputs, batch.weights),
                    TEACHER_SHARE,
                )
            share = share * (len(part) / n)
            share.backward()
            loss += share.detach()
        return loss

    @torch.no_grad()
    def _average(self) -> None:
        """Exponentially, from the weights after the first step on."""
        means, values = zip(*self._means, strict=True)
        torch._foreach_lerp_(means, values, 1.0 if self.fresh else 1 / self.averaged)


def optimizer_of(module: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's, whose rates are tensors: a recorded step reads them anew. A group's `share` multiplies its rate.

    Weight decay on weights alone: tensors of two and more axes. turned: whether the group holds convolutions' weights
    that Muon is to turn: not those with a bias, as of other libraries' networks, whose length matters where there is no
    norm behind them, and not those of single channels, which have no directions in common. A step of gradient descent
    changes what a layer gives by as much as it has inputs (Yang et al. 2022, arXiv:2203.03466, table 3): wide ones
    without a norm behind them, which have a bias, take shorter steps.
    """
    norms = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    shifts = {id(layer.bias) for layer in norms}
    shares = dict.fromkeys(shifts, recipe.bias_rate)
    weighted = (layer for layer in module.modules() if isinstance(layer, WEIGHTED) and layer.bias is not None)
    biased = {id(layer.weight): layer.weight for layer in weighted}
    apart = {id(layer.weight) for layer in module.modules() if getattr(layer, "groups", 1) > 1}
    if recipe.optimizer != "adamw":
        shares |= {id: min(1.0, WIDE / weight[0].numel()) for id, weight in biased.items()}
    groups: dict[tuple[float, float, bool], list[Tensor]] = {}
    for p in (p for p in module.parameters() if p.requires_grad):
        share, decay = shares.get(id(p), 1.0), recipe.weight_decay if p.ndim > 1 else 0.0
        turned = recipe.optimizer == "muon" and p.ndim > 2 and id(p) not in biased.keys() | apart
        groups.setdefault((share, decay, turned), []).append(p)
    settings = [
        {
            "params": ps, "lr": torch.tensor(recipe.lr, device=ps[0].device), "share": share,
            "weight_decay": decay, "turned": turned,
        }
        for (share, decay, turned), ps in groups.items()
    ]  # fmt: skip
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(settings, fused=True, capturable=any(p.is_cuda for p in module.parameters()))
    kind = Muon if recipe.optimizer == "muon" else torch.optim.SGD
    return kind(settings, momentum=recipe.momentum, nesterov=recipe.momentum > 0, fused=True)


@contextmanager
def dropping(module: nn.Module, share: float) -> Iterator[None]:
    """Where dense layers read what a share is missing of, see `Recipe.dropout`. The module is afterwards as it was."""

    def dropped(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (F.dropout(inputs[0], share), *inputs[1:])

    layers = [layer for layer in module.modules() if isinstance(layer, WEIGHTED)] if share else []
    dense = [layer for layer in layers[1:] if isinstance(layer, nn.Linear)]
    hooks = [layer.register_forward_pre_hook(dropped) for layer in dense]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def computing(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Where a network's layers compute in that precision; weights, gradients and the loss stay in float32."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)  # of weights, which every step changes


def to_memory_format(module: nn.Module, order: torch.memory_format) -> None:
    """Bring the weights of its convolutions over two axes into a memory format."""
    module.to(memory_format=order)  # type: ignore[call-overload]  # which torch's own annotations lack


def is_out_of_memory(error: BaseException) -> bool:
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or any(words in str(error) for words in _OUT_OF_MEMORY)


def is_device_lost(device: torch.device) -> bool:
    """Whether the device does nothing any more for this process, since something that it did there went wrong.

    Then everything that is asked of a GPU is the same error, until the process ends.
    """
    if device.type == "cpu":
        return False
    try:
        torch.zeros((), device=device).item()
    except RuntimeError as error:
        return not is_out_of_memory(error)
    return False
