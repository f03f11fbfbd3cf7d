"""The plan of a fit from measurements of this machine: sizes of networks, and number of threads."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from morphnas.estimators.settings import Settings, with_trainer_args
from morphnas.graph import Shape
from morphnas.run.expectation import SMALL_WIDTH, seconds_for_search
from morphnas.run.plan import Pace, Plan, default_recipe, measure, measure_latency, plan
from morphnas.train.data import Task
from morphnas.train.recipe import Recipe
from morphnas.train.step import GRAPH_RECORDERS


@dataclass(frozen=True)
class Sizes:
    """All that a plan depends on except the time limit: examples, settings, and the speed of this machine.

    shape: of an example. outputs: of a network. n: number of training examples. recipe: of the trainings of the search.
    finals: whether the winner is trained longer.
    """

    shape: Shape
    outputs: int
    n: int
    settings: Settings
    recipe: Recipe
    pace: Pace
    finals: bool = True

    @staticmethod
    def measured(task: Task, settings: Settings, augment: bool | None, seconds: float, finals: bool = True) -> Sizes:
        """Measure the speed: on a CPU in about 1 % of `seconds`, on a GPU until two kinds of steps are compared."""
        n, shape = len(task.train), tuple(task.train.x.shape[1:])
        default = default_recipe(n, settings.device, augment, shape)
        budget = min(0.8, 0.01 * max(seconds, 1e-3))  # preparing the data may have left no time
        budget *= 1 if settings.device.type == "cpu" else 4
        recipe, memory = with_trainer_args(default, settings.trainer_args, n), settings.limits.max_memory
        pace = measure(task, budget, recipe, settings.allows_cuda_graphs, memory)
        fastest = replace(default, precision=pace.precision, cuda_graphs=pace.cuda_graphs)
        recipe = with_trainer_args(fastest, settings.trainer_args, n)
        if settings.limits.max_latency_ms is not None:
            limits = replace(settings.limits, pace=(*measure_latency(task, budget), 0.0))
            settings = replace(settings, limits=limits)
        return Sizes(shape, task.goal.outputs, n, settings, recipe, pace, finals)

    def plan(self, seconds: float, width: int | None = None) -> Plan:
        """The plan of a run of so many seconds. width: of the starters, unless the user has set it."""
        settings = self.settings
        return plan(
            self.shape,
            self.outputs,
            self.n,
            self.recipe,
            max(seconds, 1e-3),
            self.pace,
            settings.limits,
            depth=settings.depth,
            width=settings.width or width,
            initial=settings.graphs,
            workers=settings.place.parallel_trials,
            device=settings.device,
            finals=self.finals,
        )

    def for_search(self, seconds: float) -> tuple[float | None, bool]:
        """What would allow a search if this time limit allows none, see `Expectation`.

        The time limit for one, and whether small networks would leave time for it in this limit. (None, False) if there
        is a search, or no final training.
        """
        search_limit = seconds_for_search(self.plan, seconds) if self.finals else None
        if search_limit is None:
            return None, False
        try:
            return search_limit, self.plan(seconds, SMALL_WIDTH).searches
        except ValueError:  # the limits exclude networks of that width
            return search_limit, False


def use_fastest_threads(task: Task, recipe: Recipe, max_threads: int, seconds: float) -> None:
    """Set torch's number of threads to the fastest, once workers that shared the machine have ended.

    seconds: time left.
    """
    torch.set_num_threads(max_threads)
    if task.device.type not in GRAPH_RECORDERS:  # devices that capture steps do not depend on the number
        torch.set_num_threads(measure(task, min(0.8, 0.01 * seconds), recipe).threads)
