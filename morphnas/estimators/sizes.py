"""What this machine allows: how large the networks of a fit are to be, and with how many threads they are trained."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from morphnas.estimators.settings import Settings, changed
from morphnas.graph import Shape
from morphnas.run.expectation import SMALL_WIDTH, seconds_for_search
from morphnas.run.plan import Pace, Plan, default_recipe, measure, measure_latency, plan
from morphnas.train.data import Task
from morphnas.train.recipe import Recipe
from morphnas.train.step import RECORDERS


@dataclass(frozen=True)
class Sizes:
    """What the networks of a run follow from, but for its seconds: examples, settings, and this machine's pace.

    shape, outputs, n: of the examples trained on. recipe: of children. finals: whether the winner is trained longer.
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
        """The pace is measured in about 1 % of the seconds on a CPU; on a GPU in as long as two ways take."""
        n, shape = len(task.train), tuple(task.train.x.shape[1:])
        default = default_recipe(n, settings.device, augment, shape)
        spare = min(0.8, 0.01 * max(seconds, 1e-3))  # preparing the data may have taken all
        spare *= 1 if settings.device.type == "cpu" else 4
        memory = settings.limits.max_memory
        pace = measure(task, spare, changed(default, settings.trainer_args, n), settings.records, memory)
        found = replace(default, precision=pace.precision, cuda_graphs=pace.cuda_graphs)
        recipe = changed(found, settings.trainer_args, n)
        if settings.limits.max_latency_ms is not None:
            limits = replace(settings.limits, pace=(*measure_latency(task, spare), 0.0))
            settings = replace(settings, limits=limits)
        return Sizes(shape, task.goal.outputs, n, settings, recipe, pace, finals)

    def plan(self, seconds: float, width: int | None = None) -> Plan:
        """That of a run of so many seconds. width: of the first networks, where the user has given none."""
        own = self.settings
        return plan(
            self.shape,
            self.outputs,
            self.n,
            self.recipe,
            max(seconds, 1e-3),
            self.pace,
            own.limits,
            depth=own.depth,
            width=own.width or width,
            initial=own.graphs,
            workers=own.place.at_a_time,
            device=own.device,
            finals=self.finals,
        )

    def for_search(self, seconds: float) -> tuple[float | None, bool]:
        """A limit in which something is searched, where in this one nothing is, and whether smaller networks would
        leave time for it, see `Expectation`; None and False where there is a search, or no final training after it."""
        longer = seconds_for_search(self.plan, seconds) if self.finals else None
        if longer is None:
            return None, False
        try:
            return longer, self.plan(seconds, SMALL_WIDTH).searches
        except ValueError:  # the limits have no room for networks of that width
            return longer, False


def take_threads(task: Task, recipe: Recipe, most: int, seconds: float) -> None:
    """Have this process compute with as many threads as are fastest, where others that shared the machine are gone.

    most: threads. seconds: that are left.
    """
    torch.set_num_threads(most)
    if task.device.type not in RECORDERS:  # there it does not matter how many
        torch.set_num_threads(measure(task, min(0.8, 0.01 * seconds), recipe).threads)
