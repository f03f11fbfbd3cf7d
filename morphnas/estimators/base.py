"""What the estimators have in common: three lines from arrays to a trained network."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from torch import Tensor, fx

from morphnas import __version__
from morphnas.estimators import data_checks
from morphnas.estimators.distillation import Teacher, taught_by
from morphnas.estimators.fitting import Fitting
from morphnas.estimators.inputs import ImageSize, Problem, examples
from morphnas.estimators.model import Model, scales_of
from morphnas.estimators.objective import Loss, Metric, Scorer, aimed, check_metric, check_said
from morphnas.estimators.placement import torch_device
from morphnas.estimators.settings import (
    MakeSearcher,
    Settings,
    changed,
    check_unchanged,
    chosen_seed,
    decisive,
    plain,
    restored,
    room,
    time_limit_seconds,
)
from morphnas.estimators.sizes import Sizes, take_threads
from morphnas.estimators.sources import Source, opened
from morphnas.estimators.space import SearchSpace
from morphnas.estimators.splits import Groups, groups_of
from morphnas.estimators.targets import SampleWeight, Target, weights_of
from morphnas.graph import Graph, Limits, Network
from morphnas.report.progress import Progress
from morphnas.report.summary import Results, results_summary
from morphnas.report.tables import trials_table
from morphnas.report.words import measured_words
from morphnas.run.epochs import EachEpochReport, EpochCalls, StopFit
from morphnas.run.expectation import Terms
from morphnas.run.files import RunError
from morphnas.run.interrupt import stopping
from morphnas.run.observers import Observers
from morphnas.run.plan import Plan
from morphnas.run.pruning import prune
from morphnas.run.replacing import model_to_keep
from morphnas.run.store import Run, Store, holds_run, load_about, load_run, user_path, versions
from morphnas.search.trial import Trial
from morphnas.train.data import Examples
from morphnas.train.deadline import NEVER, Deadline
from morphnas.train.goal import UndefinedMetric
from morphnas.train.modes import usual_modes
from morphnas.train.recipe import Recipe
from morphnas.train.trainer import warm_up

log = logging.getLogger("morphnas")


class ImageEstimator(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """What `ImageClassifier` and `ImageRegressor` have in common; `ImageClassifier` documents the arguments."""

    _kinds: ClassVar[tuple[type[Target], ...]]
    """What y may be."""
    _metric_of_fit: str | None = None
    """Where that was a function, of which a run keeps the name alone."""

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        verbose: bool | int = False,
        augment: bool | None = None,
        resume: bool | str = False,
        searcher_args: Mapping[str, Any] | None = None,
        search_type: str | MakeSearcher | None = None,
        *,
        time_limit: float | None = None,
        max_trials: int | None = None,
        search_patience: int | None = None,
        random_state: int | np.random.RandomState | None = None,
        device: str | torch.device | None = None,
        refit: bool = True,
        image_shape: Sequence[int] | None = None,
        image_size: ImageSize | None = None,
        axes: int | None = None,
        limits: Limits | Mapping[str, Any] | None = None,
        max_memory: int | None = None,
        initial_networks: Sequence[Graph | Network] | None = None,
        data_memory: int | None = None,
        keep: str | int = "all",
        ensemble: int = 1,
        overwrite: bool = False,
        executor: str | None = None,
        devices: int | Sequence[str | torch.device] | None = None,
        per_trial: float | None = None,
        metric: Metric = None,
        loss: Loss = None,
    ) -> None:
        self.path = path
        self.verbose = verbose
        self.augment = augment
        self.resume = resume
        self.searcher_args = searcher_args
        self.search_type = search_type
        self.time_limit = time_limit
        self.max_trials = max_trials
        self.search_patience = search_patience
        self.random_state = random_state
        self.device = device
        self.refit = refit
        self.image_shape = image_shape
        self.image_size = image_size
        self.axes = axes
        self.limits = limits
        self.max_memory = max_memory
        self.initial_networks = initial_networks
        self.data_memory = data_memory
        self.keep = keep
        self.ensemble = ensemble
        self.overwrite = overwrite
        self.executor = executor
        self.devices = devices
        self.per_trial = per_trial
        self.metric = metric
        self.loss = loss
        warm_up()

    # -- fitting

    def fit(
        self,
        x: Any,
        y: ArrayLike | None = None,
        time_limit: float | None = None,
        validation_data: Any = None,
        each_epoch: EachEpochReport | None = None,
        sample_weight: SampleWeight = None,
        groups: Groups = None,
        teacher: Teacher = None,
    ) -> Self:
        """Search for a network, and train the best one, within a time limit.

        Ctrl-C, once, ends it early: the best network so far becomes the model, and a warning says how to continue. It
        raises KeyboardInterrupt the second time, or if no network is trained yet. SIGTERM does the same, and then ends
        the process by SystemExit.

        Parameters
        ----------
        x : array-like, Dataset, DataLoader, or path
            (n, h, w) or (n, h, w, channels), or rows (n, d); uint8 or any real numbers; an array, a memory map, an h5py
            dataset, a data frame, a list of images or of names of image files. Images of mixed sizes are resized to
            `image_size`, or to the median height and width, at most 128 * 128 pixels; grey and RGB ones become RGB. Or,
            without y, a torch Dataset or DataLoader of (image, y), whose tensors are channels first, one of mappings
            with an "image" and a "label", such as a Hugging Face dataset, or a folder with a sub-folder of image files
            for each class.
        y : array-like, optional
            (n,) or (n, 1) labels: numbers, strings, bytes, booleans or tuples of them; or multi-label y, (n, k) of 0
            and 1; for a regressor numbers, (n,) or (n, k).
        time_limit : float, optional
            Seconds, everything included. None: the constructor's.
        validation_data : tuple, Dataset, or path, optional
            (x, y), or (x, y, sample_weight), to stop training, score and choose by, instead of a part of x; never
            trained on.
        each_epoch : callable, optional
            Called with a `morphnas.EpochReport` after every epoch of every network, in this thread, even if networks
            are trained in other processes; its time is part of the limit. If it raises `morphnas.StopFit`, the fit ends
            as after one Ctrl-C, without the warning. Any other exception is only logged.
        sample_weight : array-like or "balanced", optional
            (n,) non-negative numbers, the weight of each example in training and in scores; "balanced", for labels: all
            classes count alike, however many examples they have. Examples of validation_data without weights get those
            of their class if x is balanced, else equal ones.
        groups : array-like, optional
            (n,) which examples belong together, such as those of one patient, one video or one plant: examples held out
            for stopping, scoring and choosing are then of groups that are not trained on, and so show what to expect of
            new groups.
        teacher : estimator or array-like, optional
            A model whose predictions networks learn as well as y, for example a small network from a large one
            (knowledge distillation: Hinton, Vinyals and Dean 2015, arXiv:1503.02531): any fitted model with
            `predict_proba` (for regression `predict`), which is called on x; or its predictions for x, probabilities
            (n, classes) in the order of the sorted labels, (n, k) for multi-label data, or numbers (n, k) for
            regression. Scores are by y alone.

        Raises
        ------
        ValueError
            For what cannot be used, before anything is trained or written.
        RunError
            If `path` holds a run that is not to be resumed, or one with other data or settings; if no network could be
            trained.
        OSError
            If data that is too large for memory does not fit on the disk either. TimeoutError, a kind of OSError, if
            reading the data takes all of the time limit.

        Warns
        -----
        DataWarning
            For everything in the data that looks wrong, see `examine`.

        Examples
        --------
        Curves in TensorBoard:

        >>> writer = torch.utils.tensorboard.SummaryWriter("logs")  # doctest: +SKIP
        >>> def each_epoch(report):
        ...     for name, value in report.numbers.items():
        ...         writer.add_scalar(f"{name}/trial {report.trial}", value, report.epoch)
        """
        with usual_modes():
            seconds = time_limit_seconds(time_limit, self.time_limit)
            deadline = Deadline.after(seconds)
            settings = Settings.of(self)
            deadline = deadline.earlier(min(settings.place.parting, 0.1 * seconds))
            _check_callable(each_epoch)
            path = None if self.path is None else user_path(self.path).absolute()  # whoever calls chdir meanwhile
            decides = decisive(self.get_params(deep=False))
            before = self._before(path, decides)
            seed = chosen_seed(self.random_state) if before is None else _seed(before)
            problem = self._problem(x, y, validation_data, settings, seed, sample_weight, groups, teacher, deadline)
            settings = settings.adapted(problem.preprocessing.shape, problem.task.goal.outputs)
            if before is not None and before.get("data") != problem.fingerprint:
                same = "the same x, y, sample_weight, groups and teacher, and the same validation_data"
                raise RunError(f"{str(path)!r} holds a run on other data: to resume it, give {same}")
            findings = data_checks.glance(problem, deadline.left)
            data_checks.warn(findings)

            with _threads() as all_threads:
                torch.set_num_threads(settings.place.threads or all_threads)
                planned, sizes = self._planned(problem, settings, before, deadline)
                about = {
                    "estimator": type(self).__name__,
                    "settings": {name: plain(value) for name, value in self.get_params(deep=False).items()},
                    "decides": decides,
                    "time_limit": seconds,
                    "seed": seed,
                    "data": problem.fingerprint,
                    "scales": {problem.name: problem.task.scale},
                    "versions": {"morphnas": __version__, **versions()},
                    "device": str(settings.device),
                    "plan": planned.to_json(),
                    "findings": findings.to_json(),
                }
                folder = path or Path(tempfile.mkdtemp(prefix="morphnas-"))
                opened_run = _opened(folder, about, before is not None, self.overwrite)
                with self._running(opened_run, deadline, seconds, each_epoch) as (store, deadline, shown, calls):
                    torch.set_num_threads(planned.threads)
                    self._forget()
                    self.path_ = str(folder.absolute())
                    for network in settings.networks:
                        store.give(network)
                    log.info("the run is kept in %s", folder)
                    if before is not None:
                        store.note(findings=findings.to_json())
                    say = shown.tell if self.verbose else _logged
                    for finding in findings.found:
                        if not finding.warns:
                            say(str(finding))
                    fitting = Fitting(store, problem, planned, settings, seed, deadline, self.refit)
                    end = fitting.search_end()
                    for_search, small = (None, False) if sizes is None else sizes.for_search(seconds)
                    most = None if self.max_trials is None else int(self.max_trials)
                    forecast = fitting.forecast(end, say, most, for_search, small)
                    fitting.warn_of_settings()
                    fitting.warn_of_large_images()
                    observer = Observers((shown, forecast, calls))
                    with fitting.searched(end, observer, all_threads, most) as executor:
                        if deadline.stopped and not fitting.scored:
                            error = StopFit if calls.stopped else KeyboardInterrupt
                            raise error("no network was trained yet")
                        found = fitting.finished(executor, observer)
                    self._finish(fitting, *found)
                    shown.tell(trials_table(store.trials, best=self.best_trial_))
                    if deadline.stopped and not calls.stopped:
                        self._interrupted()
            return self

    def _planned(
        self, problem: Problem, settings: Settings, before: Mapping[str, Any] | None, deadline: Deadline
    ) -> tuple[Plan, Sizes | None]:
        """The plan of a run, as run.json has it where there was one before, or what is measured, and planned, now."""
        sizes = None
        if before is None:
            sizes = Sizes.measured(problem.task, settings, self.augment, deadline.left, self.refit)
        planned = Plan.of_run(before or {}, __version__) if sizes is None else sizes.plan(deadline.left)
        if not settings.records and "cuda_graphs" not in settings.trainer_args:  # a run may have begun elsewhere
            planned = replace(planned, recipe=replace(planned.recipe, cuda_graphs=False))
        return planned, sizes

    def _forget(self) -> None:
        """What an earlier fit has found: a fit that does not come to its end leaves no model of another run."""
        for name in [
            n for n in vars(self) if n in ("_model", "_metric_of_fit") or (n.endswith("_") and not n.startswith("_"))
        ]:
            delattr(self, name)

    def _before(self, path: Path | None, decides: Mapping[str, Any]) -> dict[str, Any] | None:
        """What run.json says of the run to go on with; None: one is begun. RunError where neither can be."""
        if path is not None:
            Store.check(path, overwrite=self.overwrite, resume=bool(self.resume))
        before = load_about(path) if path is not None and self.resume and holds_run(path) else None
        if before is None and self.resume is True:
            raise RunError(f'{str(path)!r} holds no run to resume; resume="auto" starts one if there is none')
        if before is not None:
            check_unchanged(path, before.get("decides", {}), decides)
        return before

    def final_fit(
        self,
        x_train: Any,
        y_train: ArrayLike | None = None,
        x_test: Any = None,
        y_test: ArrayLike | None = None,
        trainer_args: Mapping[str, Any] | None = None,
        retrain: bool = False,
        time_limit: float | None = None,
        each_epoch: EachEpochReport | None = None,
        sample_weight: SampleWeight = None,
        groups: Groups = None,
        teacher: Teacher = None,
        trial: int | None = None,
    ) -> Self:
        """Train the search's winner on the given data, within a time limit.

        Adds trials to the run and changes none.

        Parameters
        ----------
        x_train, y_train
            What `fit` takes as x and y.
        x_test, y_test : optional
            The same: evaluated at the end (`test_metric_`) and never used to stop or to choose.
        trainer_args : dict, optional
            Any fields of `Recipe` except examples, or the legacy keys lr, max_iter_num and max_no_improvement_num.
        retrain : bool
            From fresh weights only.
        time_limit : float, optional
            Seconds. None: as long as the fit had.
        each_epoch, sample_weight, groups, teacher : optional
            As for `fit`; those given to `fit` are not remembered.
        trial : int, optional
            Id of a network of the run to train instead; it becomes `best_trial_`.

        Raises
        ------
        ValueError
            For what cannot be used, including labels that fit did not see.
        RunError
            If the run has no such trial, or not its weights.
        """
        with usual_modes():
            self._check_fitted()
            _check_callable(each_epoch)
            settings = Settings.of(self)
            about = load_about(Path(self.path_))
            check_said(about.get("settings"), self.metric, self.loss)
            seconds = time_limit_seconds(time_limit, about.get("time_limit"))
            deadline = Deadline.after(seconds)
            changed(Recipe(), trainer_args or {})
            place, space, args = settings.place, settings.room, dict(trainer_args or {})
            deadline = deadline.earlier(min(place.parting, 0.1 * seconds))
            if "examples" in args:
                raise ValueError("trainer_args: final_fit trains on all examples, it takes no 'examples'")
            known = self._model
            source, y_train = opened(x_train, y_train, "x_train", space, self._axes, deadline)
            codes, test = known.target.encode(y_train, len(source)), None
            weights = weights_of(sample_weight, len(source), codes, known.target)
            if x_test is not None:
                tested, y_test = opened(x_test, y_test, "x_test", space, self._axes, deadline)
                if y_test is not None:
                    test = examples(tested, y_test, known.preprocessing, known.target, space)
            if test is None and (x_test is not None or y_test is not None):
                raise ValueError("final_fit needs both x_test and y_test, or neither")
            seed = _seed(about)
            together, taught = groups_of(groups, len(source)), taught_by(teacher, source, known.target)
            how = (known.target, known.preprocessing, seed, place.device, space)
            problem = Problem.of(source, codes, weights, together, taught, None, *how)
            problem = aimed(problem, self.metric, self.loss, deadline)
            findings = data_checks.glance(problem, deadline.left)
            opened_run = _opened(Path(self.path_), {}, True, False)
            running = self._running(opened_run, deadline, seconds, each_epoch)
            with _threads() as all_threads, running as (store, deadline, shown, calls):
                planned = Plan.of_run(about, __version__)
                if place.workers:  # of which the run had one's share
                    take_threads(problem.task, planned.recipe, all_threads, deadline.left)
                else:
                    torch.set_num_threads(planned.threads)
                data_checks.warn(findings.beyond(about.get("findings")))
                best = store.trial(self.best_trial_ if trial is None else trial)
                if trial is not None:
                    store.network(best.id)  # raises where its weights are not there
                given = {name: value for name, value in settings.trainer_args.items() if name == "lr"}
                if not settings.records:
                    given["cuda_graphs"] = settings.trainer_args.get("cuda_graphs", False)
                fitting = Fitting(store, problem, planned, settings, seed, deadline, refit=True)
                own = fitting.recipe_of(best, store.trials)
                recipe = changed(own, given | args, len(problem.task.train))
                if recipe.augment.flip is None:  # as the winner has found out
                    recipe = replace(recipe, augment=replace(recipe.augment, flip=own.augment.flip))
                before = {trial.id for trial in store.trials}
                store.note(scales={problem.name: problem.task.scale} | scales_of(store.about))
                own_length = bool({"epochs", "max_iter_num"} & args.keys())
                executor = place.final(problem.task, problem.everything)
                try:
                    final = fitting.final(
                        best,
                        recipe,
                        executor,
                        Observers((shown, calls)),
                        retrain=retrain,
                        epochs=recipe.epochs if own_length else None,
                        tested=0 if test is None else len(test),
                    )
                finally:
                    executor.shutdown()
                tried = {one.id for one in store.trials if one.outcome is not None}
                if tried <= before and final.id == best.id and not deadline.stopped:
                    warnings.warn("nothing was trained: there was no time for a batch", stacklevel=2)
                found = best, final
                if trial in (None, store.about.get("best")):  # another network is to be the model in any case
                    name = None if retrain or own_length else problem.name
                    found = model_to_keep(store, *found, problem.task, problem.everything, name)
                self._finish(fitting, *found)
                if deadline.stopped and not calls.stopped:
                    self._interrupted()
                self.__dict__.pop("test_metric_", None)  # of the model before
                if test is not None:
                    self.test_metric_ = self._tested(test)
                    shown.tell(f"{self.words(self.test_metric_)} on the {len(test):,} test examples")
            return self

    def _tested(self, test: Examples) -> float:
        """What `evaluate` says; NaN where a metric of the user's own says nothing, after all this training."""
        try:
            return self._judged(self._outputs([test.x]), test.y)
        except UndefinedMetric as error:
            warnings.warn(f"x_test, y_test: {error}", stacklevel=3)
            return math.nan

    # -- using

    def evaluate(self, x_test: Any, y_test: ArrayLike | None = None, sample_weight: SampleWeight = None) -> float:
        """How good the predictions are for examples with known y; ValueError for a y that does not match the fit's."""
        with usual_modes():
            if self.metric is None and self._metric_of_fit is not None:
                words = f"the fit's metric, {self._metric_of_fit:.100}, is not stored: this is the usual one;"
                warnings.warn(f"{words} set metric again to measure by it", stacklevel=2)
            source, y_test = self._asked(x_test, y_test)
            codes = self._model.target.encode(y_test, len(source))
            weights = weights_of(sample_weight, len(source), codes, self._model.target)
            return self._judged(self._predicted(source), torch.from_numpy(codes), weights)

    def _judged(self, outputs: Tensor, y: Tensor, weights: NDArray[np.float32] | None = None) -> float:
        """What `evaluate` says of outputs, on the CPU, of examples with this y, as networks learn it."""
        if self.metric is None:
            return self._model.target.measured(outputs, y, weights)
        check_metric(self.metric)
        return Scorer(self.metric, self._model.target)(
            outputs, y, None if weights is None else torch.from_numpy(weights)
        )

    def words(self, measured: float) -> str:
        """A value of `evaluate` in words."""
        if self.metric is None:
            return self._model.target.words(measured)
        return measured_words(Scorer(self.metric, self._model.target).name, measured)

    def _asked(self, x: Any, y: Any = None) -> tuple[Source, Any]:
        """Examples of whatever `fit` takes, and their y (None: unknown); NotFittedError where there was no fit."""
        self._check_fitted()
        return opened(x, y, "x_test", room(self), self._axes)

    def to_module(self, trial: int | None = None) -> fx.GraphModule:
        """The final network as a plain PyTorch module in evaluation mode.

        It takes raw examples, channels first, (n, channels, h, w) or (n, d), of any real dtype. A classifier's returns
        logits (n, classes) in the order of `classes_`; their softmax (for multi-label data their sigmoid) is what
        `predict_proba` returns. A regressor's returns numbers (n, k), float64. Preprocessing is included, and nothing
        of morphnas is needed. Rows that float32 would round, such as times in seconds, must be float64.

        trial: id of another network of the run to return instead. It evaluates no mirror images, and is not calibrated.
        RunError if it, or its weights, are missing.
        """
        with usual_modes():
            self._check_fitted()
            model = self._in_use
            if trial is not None:
                run = self.load_searcher()
                model = replace(model, network=run.load_model_by_id(trial), mirrors=False, temperature=1.0)
                one = run.trial(trial)
                data = one.proposal.why.get("data") if one.final else run.data
                if (scale := scales_of(run.about).get(str(data))) is not None:
                    model = model.scaled(scale)  # the model may have seen other data since
            return model.to_module()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The estimator of the run in a folder, ready to predict; RunError if there is none of this kind.

        It has the settings of the fit that matter later: limits, keep, ensemble and a metric that has a name for
        `final_fit` and `evaluate`; augment, image_shape, image_size, axes and max_memory for another fit.
        """
        with usual_modes():
            folder = user_path(path)
            model, settings = Model.stored(folder), None
            if not isinstance(model.target, cls._kinds):
                raise RunError(f"{folder} holds the run of another estimator than {cls.__name__}: use morphnas.load")
            with contextlib.suppress(RunError):  # a model may be there without a run
                settings = load_about(folder).get("settings")
            estimator = cls(path=folder, **restored(settings))
            estimator.path_ = str(folder.absolute())
            estimator._set(model)
            had = settings.get("metric") if isinstance(settings, dict) else None
            estimator._metric_of_fit = had if estimator.metric is None else None
            return estimator

    # -- looking

    def search_space_summary(
        self,
        x: Any,
        y: ArrayLike | None = None,
        time_limit: float | None = None,
        validation_data: Any = None,
        sample_weight: SampleWeight = None,
        groups: Groups = None,
    ) -> SearchSpace:
        """What `fit` with the same arguments would begin with, what one step may change, and what to expect of it.

        Trains nothing except for the few steps that measure this machine, and writes nothing. Print it, or use its
        fields.
        """
        with usual_modes():
            seconds = time_limit_seconds(time_limit, self.time_limit)
            settings = Settings.of(self)
            seed = chosen_seed(self.random_state)
            problem = self._problem(x, y, validation_data, settings, seed, sample_weight, groups)
            settings = settings.adapted(problem.preprocessing.shape, problem.task.goal.outputs)
            with _threads() as all_threads:
                torch.set_num_threads(settings.place.threads or all_threads)
                sizes = Sizes.measured(problem.task, settings, self.augment, seconds, self.refit)
                planned = sizes.plan(seconds)
                most = planned.most(self.max_trials) if self.refit else self.max_trials
                for_search, small = sizes.for_search(seconds)
                terms = Terms(most, self.refit, for_search=for_search, small=small)
                return SearchSpace.of(planned, problem, settings, seconds, terms)

    def results_summary(self, n: int = 10) -> Results:
        """The n best networks of the run, the best first. Print it, or use its fields."""
        return results_summary(self.load_searcher(), n)

    @property
    def history(self) -> list[dict[str, Any]]:
        """The networks tried, one dict each with model_id, loss, metric_value and more."""
        return self.load_searcher().history

    def trials_dataframe(self) -> Any:
        """The networks tried as a pandas.DataFrame, see `Run.trials_dataframe`."""
        return self.load_searcher().trials_dataframe()

    def get_best_model_id(self) -> int:
        """Id of the search's winner."""
        self._check_fitted()
        return self.best_trial_

    def load_searcher(self) -> Run:
        """The run: `.history`, `.load_model_by_id(i)`, `.load_best_model()`, `.trials`."""
        self._check_fitted()
        return load_run(self.path_)

    # -- inside

    @staticmethod
    def _read(y: ArrayLike, n: int) -> tuple[Target, NDArray[Any]]:
        """See `ReadY`."""
        raise NotImplementedError

    def _problem(
        self,
        x: Any,
        y: Any,
        validation_data: Any,
        settings: Settings,
        seed: int,
        sample_weight: SampleWeight = None,
        groups: Groups = None,
        teacher: Teacher = None,
        deadline: Deadline = NEVER,
    ) -> Problem:
        problem = Problem.found(
            x,
            y,
            validation_data,
            self.image_shape,
            seed,
            settings.device,
            image_size=self.image_size,
            room=settings.room,
            read=self._read,
            sample_weight=sample_weight,
            axes=self.axes,
            groups=groups,
            teacher=teacher,
            deadline=deadline,
        )
        return aimed(problem, self.metric, self.loss, deadline, settings.place.apart)

    @contextlib.contextmanager
    def _running(
        self,
        opened_run: contextlib.AbstractContextManager[Store],
        deadline: Deadline,
        seconds: float,
        each_epoch: EachEpochReport | None,
    ) -> Iterator[tuple[Store, Deadline, Progress, EpochCalls]]:
        """An open run to train something in, until the deadline or a signal, what is shown, and what is called."""
        progress = contextlib.closing(Progress(seconds, enabled=bool(self.verbose)))
        with stopping() as stop, opened_run as store, progress as shown:
            calls = EpochCalls(each_epoch, store.path, stop)
            yield store, deadline.heeding(stop), shown, calls
            calls.close()

    def _finish(self, fitting: Fitting, best: Trial, final: Trial) -> None:
        """Predict with the final trial's network from now on."""
        self._set(fitting.model(best, final, getattr(self, "_model", None)))
        prune(fitting.store, fitting.settings.keep)

    def _interrupted(self) -> None:
        how = f"{type(self).__name__}(path={self.path_!r}, resume=True, ...).fit(...)"
        warnings.warn(f"interrupted: the model is the best network so far; continue with {how}", stacklevel=3)

    def _set(self, model: Model) -> None:
        self._model = model
        self.network_, self.mirrors_ = model.network, model.mirrors
        self.best_trial_, self.final_trial_, self.members_ = model.best, model.trial, dict(model.members)
        if len(model.preprocessing.given) == 1:
            self.n_features_in_ = model.preprocessing.given[0]
        if model.preprocessing.columns:
            self.feature_names_in_ = np.array(model.preprocessing.columns, dtype=object)

    @property
    def _axes(self) -> int | None:
        """Of an example that it was fitted on, besides channels; None: rows, which have none."""
        return len(self._model.preprocessing.shape) - 1 or None

    def _predicted(self, source: Source) -> Tensor:
        """The examples' outputs, read and computed piece by piece."""
        with usual_modes():
            return self._outputs(self._model.preprocessing.pieces(source))

    def _outputs(self, pieces: Iterable[Tensor]) -> Tensor:
        """The model's, (n, outputs) on the CPU. pieces: (k, *shape) each, the first of which is looked at."""
        several = iter(pieces)
        data_checks.warn_of_others(first := next(several), self._model.range, stacklevel=6)
        return self._in_use.outputs(itertools.chain([first], several), torch_device(self.device))

    @property
    def _in_use(self) -> Model:
        """The model as the user has set it."""
        own = self._model
        if own.network is self.network_ and own.mirrors is self.mirrors_:
            return own
        return replace(own, network=self.network_, mirrors=self.mirrors_)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "network_")

    def _check_fitted(self) -> None:
        if not self.__sklearn_is_fitted__():
            name = type(self).__name__
            hint = f"Call 'fit' with appropriate arguments first, or {name}.load(path)"
            raise NotFittedError(f"This {name} instance is not fitted yet. {hint}")


def _seed(about: Mapping[str, Any]) -> int:
    """The run's seed; RunError where run.json does not hold it."""
    seed = about.get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**31:
        raise RunError(f"run.json does not hold the seed of a run, but {seed!r:.100}")
    return seed


def _check_callable(each_epoch: Any) -> None:
    if each_epoch is not None and not callable(each_epoch):
        raise ValueError(f"each_epoch must be None or a function of a morphnas.EpochReport, not {each_epoch!r:.100}")


def _logged(text: str) -> None:
    log.info("%s", text)


@contextlib.contextmanager
def _threads() -> Iterator[int]:
    """Leaves torch's number of threads as it was."""
    threads = torch.get_num_threads()
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _opened(path: Path, about: Mapping[str, Any], resume: bool, overwrite: bool) -> Iterator[Store]:
    store = Store.resume(path) if resume else Store.create(path, about, overwrite)
    try:
        yield store
    finally:
        store.close()
