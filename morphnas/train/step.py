"""The training step, which runs on the device alone: a GPU can replay it as one CUDA graph."""

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
from morphnas.train.data import Examples, Task, batch_count
from morphnas.train.goal import Goal
from morphnas.train.muon import Muon
from morphnas.train.recipe import Precision, Recipe

log = logging.getLogger(__name__)

LINEAR_LAYERS = nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d
"""Dense and convolutional layers."""
FULL_RATE_FAN_IN = 256
"""Fan-in beyond which weights of layers with a bias have a lower learning rate: by the factor `FULL_RATE_FAN_IN` /
fan-in."""

TEACHER_SHARE = 0.5
"""Weight of the distillation loss in the training loss; the rest is the weight of the loss on y."""

EAGER_STEPS = 10
"""Eager steps before one is captured as a CUDA graph. They do initialisations that cannot be captured, and for short
trainings a capture does not pay off."""

_OUT_OF_MEMORY = (
    "DefaultCPUAllocator", "CUDA error: out of memory", "CUDA driver error: out of memory", "_STATUS_ALLOC_FAILED",
    "DEVICE_ALLOCATION_FAILED", "was unable to find an engine",
)  # fmt: skip
"""Parts of the messages of the RuntimeErrors that PyTorch raises when the CPU, CUDA or its driver, cuDNN or cuBLAS is
out of memory and there is no exception class for that. The last one: no convolution algorithm of cuDNN has enough
memory for its workspace (pytorch issue 108645)."""

_CAPTURE_LOCK = threading.Lock()

Run = Callable[[Draw], Tensor]
"""A function that makes a step on a batch and returns the loss; that of a CUDA graph is overwritten by the next step.
"""


class CudaGraphs:
    """Captures steps as CUDA graphs, which share a memory pool, since only one runs at a time.

    Sharing requires that all are captured on the same stream (see `torch.cuda.graph`).
    """

    def __init__(self, device: torch.device) -> None:
        self.pool, self.stream = torch.cuda.graph_pool_handle(), _stream(device, threading.get_ident())

    def __call__(self, run: Run, draw: Draw) -> Run:
        """Capture a step, and return a function that replays it on batches of the same length.

        The capture itself executes nothing. All tensors of the step must have the same addresses at every replay, and
        nothing in it may synchronise with the host. Only one thread captures at a time: PyTorch synchronises the device
        before a capture, which is not allowed while another thread is capturing.
        """
        static_draw, graph = draw.map(Tensor.clone), torch.cuda.CUDAGraph()
        with _CAPTURE_LOCK, torch.cuda.device(self.stream.device):
            stream = torch.cuda.current_stream()
            generator = torch.cuda.default_generators[self.stream.device.index or 0]
            capture = torch.cuda.graph(
                graph,
                pool=self.pool,
                stream=self.stream,
                capture_error_mode="thread_local",  # other threads may use the GPU meanwhile
            )
            try:
                with capture:
                    loss = run(static_draw)
            except BaseException:  # torch restores none of these three when a capture fails
                torch.cuda.set_stream(stream)
                generator.graphsafe_set_state(generator.clone_state())
                with suppress(RuntimeError):  # newer versions restore this one: pytorch pull request 180395
                    torch._C._cuda_endAllocateToPool(self.stream.device.index, self.pool)  # noqa: SLF001
                raise

        def replay(draw: Draw) -> Tensor:
            static_draw.copy_(draw)
            graph.replay()
            return loss

        return replay


@functools.cache
def _stream(device: torch.device, thread: int) -> torch.cuda.Stream:  # noqa: ARG001  # one for each thread
    """The capture stream of all trainings in a thread: cuBLAS keeps a workspace for every stream that used it."""
    return torch.cuda.Stream(device)


GRAPH_RECORDERS: dict[str, Callable[[torch.device], Callable[[Run, Draw], Run]]] = {"cuda": CudaGraphs}
"""Factories, by device type, of a training's recorder: a function that captures a step, as `CudaGraphs`."""


class Step:
    """Makes optimizer steps on batches, and updates the running average of the weights.

    per_epoch: steps per epoch. mirrored: (examples,) bool, which images of the training set are flipped horizontally
    the next time they are seen; None: no flips. micro: micro-batch size, about; None: the batch size. It is halved when
    memory runs out, down to `smallest`.

    evaluated: the module that is scored and kept: it has the exponential average of the weights over `recipe.average`
    epochs, or is the module itself. fresh: whether no step has been made. recorded: whether the last step was captured
    as a CUDA graph, which takes far longer than other steps.
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
        self.module, self.task, self.recipe, self.smallest = module, task, recipe, smallest
        set_training_mode(module, recipe)
        self.mirrored = None if mirrored is None else mirrored.to(task.device)
        self.micro = micro or recipe.batch_size
        self.optimizer = make_optimizer(module, recipe)
        self.averaged_steps = recipe.average * per_epoch
        self.evaluated = copy.deepcopy(module) if self.averaged_steps > 1 else module
        pairs = list(zip(self.evaluated.state_dict().values(), module.state_dict().values(), strict=True))
        self._averages = [pair for pair in pairs if pair[0].is_floating_point()]
        self.fresh, self.recorded = True, False
        resident = task.train.x.device == task.device
        recorder = GRAPH_RECORDERS.get(task.device.type) if recipe.cuda_graphs and resident else None
        self._record = recorder(task.device) if recorder else None
        self._replays: dict[int, Run] = {}
        self._eager_steps, self._retry_capture = 0, True

    @property
    def records(self) -> bool:
        """Whether steps are captured as CUDA graphs, after enough eager ones; False after a capture failed."""
        return self._record is not None

    def __call__(self, draw: Draw, rate: float) -> Tensor:
        """Make a step at `rate` times the recipe's learning rate, and return the batch's mean loss.

        The returned tensor is valid until the next step. The gradient is that of the whole batch whatever the
        micro-batch size; but batch norm normalises every micro-batch by itself, and updates its running statistics for
        each. Raises PyTorch's out-of-memory error when even `smallest` examples do not fit.
        """
        for group in self.optimizer.param_groups:
            group["lr"].fill_(group["share"] * self.recipe.lr * rate)
        self.recorded = False
        run = self._replays.get(len(draw)) or self._captured(draw) or self._eager
        loss = run(draw)
        self.fresh = False
        return loss

    def _captured(self, draw: Draw) -> Run | None:
        """Capture a step for batches of this length; None if it is too early for that, not possible, or it failed."""
        if self._record is None or self._eager_steps < EAGER_STEPS or len(draw) > self.micro:
            return None
        try:
            self._replays[len(draw)] = self._record(self._run, draw)
        except Exception as error:
            if self._retry_capture and is_out_of_memory(error):  # it may fit once the cache of eager steps is freed
                self._eager_steps, self._retry_capture = 0, False
                self._empty_cache()
                return None
            log.warning("training runs without CUDA graphs, which cannot be captured here: %s", error)
            self._record = None
            return None
        self.recorded = True
        return self._replays[len(draw)]

    def _eager(self, draw: Draw) -> Tensor:
        """Make a step in eager mode, in micro-batches that fit into memory."""
        while True:
            try:
                loss = self._run(draw)
                self._eager_steps += 1
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
            torch.cuda.reset_peak_memory_stats(self.task.device)  # the failed step does not count

    def release_graphs(self) -> None:
        """Free the captured graphs at once: the next training captures on the same stream."""
        self._replays.clear()

    def _run(self, draw: Draw) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        with input_dropout(self.module, self.recipe.dropout):
            loss = self._accumulate_gradients(draw.split(batch_count(len(draw), self.micro)))
        with autocast_to(self.recipe.precision, self.task.device):
            self.optimizer.step()
        if self.mirrored is not None:
            self.mirrored[draw.index] ^= True  # flipped the next time if not this time
        if self.evaluated is not self.module:
            self._update_average()
        return loss

    def _accumulate_gradients(self, micro_batches: Sequence[Draw]) -> Tensor:
        """Forward and backward passes of all micro-batches; returns the mean loss of the whole batch.

        A method of its own, so that its tensors are freed when an error leaves it.
        """
        total = torch.zeros((), device=self.task.device)
        n = sum(map(len, micro_batches))
        for draw in micro_batches:
            batch = self.task.train[draw.index]
            mirrored = None if self.mirrored is None else self.mirrored[draw.index]
            x = self.task.normalised(augmented(batch.x, draw, self.recipe.augment, mirrored))
            with autocast_to(self.recipe.precision, self.task.device):
                outputs = self.module(x).float()
            loss = training_loss(outputs, batch, self.task.goal, self.recipe.label_smoothing) * (len(draw) / n)
            loss.backward()
            total += loss.detach()
        return total

    @torch.no_grad()
    def _update_average(self) -> None:
        """Update the exponential average, which starts from the weights after the first step."""
        averages, values = zip(*self._averages, strict=True)
        torch._foreach_lerp_(averages, values, 1.0 if self.fresh else 1 / self.averaged_steps)


def training_loss(outputs: Tensor, batch: Examples, goal: Goal, label_smoothing: float) -> Tensor:
    """The mean loss of a batch's outputs on y, and on the teacher's outputs if there are any."""
    loss = goal.loss(outputs, batch.y, batch.weights, label_smoothing)
    if batch.teacher_outputs is None:
        return loss
    return torch.lerp(loss, goal.distillation_loss(outputs, batch.teacher_outputs, batch.weights), TEACHER_SHARE)


def set_training_mode(module: nn.Module, recipe: Recipe) -> None:
    """Set the module to training mode, except for batch norms that the recipe freezes."""
    module.train()
    if recipe.freeze_norms:
        for layer in batch_norms(module):
            layer.eval()


def batch_norms(module: nn.Module) -> list[nn.Module]:
    return [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]


def make_optimizer(module: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer, for the parameters that require gradients.

    Learning rates are tensors, as a CUDA graph reads these anew at every replay. Parameter groups have two more
    settings. share: factor on the learning rate. orthogonalised: whether Muon trains these weights of convolutions. It
    does not where there is a bias, as in networks from other libraries: without a norm after them the norm of the
    weights matters. Nor does it train grouped convolutions, whose channels have no directions in common.

    Weight decay applies to weights alone: tensors of two or more axes. A step of gradient descent changes the outputs
    of a layer in proportion to its fan-in (Yang et al. 2022, arXiv:2203.03466, table 3), so wide layers with a bias,
    which have no norm after them, have a lower learning rate (see `FULL_RATE_FAN_IN`), except with AdamW.
    """
    shares = dict.fromkeys((id(layer.bias) for layer in batch_norms(module)), recipe.bias_rate)
    linear = (layer for layer in module.modules() if isinstance(layer, LINEAR_LAYERS) and layer.bias is not None)
    biased = {id(layer.weight): layer.weight for layer in linear}
    grouped = {id(layer.weight) for layer in module.modules() if getattr(layer, "groups", 1) > 1}
    if recipe.optimizer != "adamw":
        shares |= {id: min(1.0, FULL_RATE_FAN_IN / weight[0].numel()) for id, weight in biased.items()}
    groups: dict[tuple[float, float, bool], list[Tensor]] = {}
    for p in (p for p in module.parameters() if p.requires_grad):
        share, decay = shares.get(id(p), 1.0), recipe.weight_decay if p.ndim > 1 else 0.0
        orthogonalised = recipe.optimizer == "muon" and p.ndim > 2 and id(p) not in biased.keys() | grouped
        groups.setdefault((share, decay, orthogonalised), []).append(p)
    settings = [
        {
            "params": ps, "lr": torch.tensor(recipe.lr, device=ps[0].device), "share": share,
            "weight_decay": decay, "orthogonalised": orthogonalised,
        }
        for (share, decay, orthogonalised), ps in groups.items()
    ]  # fmt: skip
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(settings, fused=True, capturable=any(p.is_cuda for p in module.parameters()))
    cls = Muon if recipe.optimizer == "muon" else torch.optim.SGD
    return cls(settings, momentum=recipe.momentum, nesterov=recipe.momentum > 0, fused=True)


@contextmanager
def input_dropout(module: nn.Module, p: float) -> Iterator[None]:
    """In this context the inputs of dense layers have dropout, see `Recipe.dropout`; the hooks are removed on exit."""

    def drop(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (F.dropout(inputs[0], p), *inputs[1:])

    layers = [layer for layer in module.modules() if isinstance(layer, LINEAR_LAYERS)] if p else []
    dense = [layer for layer in layers[1:] if isinstance(layer, nn.Linear)]
    hooks = [layer.register_forward_pre_hook(drop) for layer in dense]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def autocast_to(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Autocast to a precision, for forward passes and Muon; weights, gradients and the loss stay float32."""
    if precision == "float32":
        return nullcontext()
    # without the cache of converted weights, which change with every step
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


def to_memory_format(module: nn.Module, order: torch.memory_format) -> None:
    """Convert a module's four-dimensional tensors, such as the weights of `Conv2d`, to a memory format, in place."""
    module.to(memory_format=order)  # type: ignore[call-overload]  # missing in torch's annotations


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device or the host is out of memory."""
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or any(words in str(error) for words in _OUT_OF_MEMORY)


def is_device_lost(device: torch.device) -> bool:
    """Whether the device is lost to this process, as after a CUDA error that corrupts its context.

    Then every operation on it raises an error until the process ends.
    """
    if device.type == "cpu":
        return False
    try:
        torch.zeros((), device=device).item()
    except RuntimeError as error:
        return not is_out_of_memory(error)
    return False
