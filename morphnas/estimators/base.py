"""The base class of the estimators: fitting, final training, evaluation, loading and inspection."""

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
from morphnas.estimators.distillation import Teacher, teacher_outputs
from morphnas.estimators.fitting import Fitting
from morphnas.estimators.inputs import ImageSize, Problem, prepare_examples
from morphnas.estimators.model import Model, scales_of
from morphnas.estimators.objective import Loss, Metric, Scorer, check_functions_given, check_metric, with_objective
from morphnas.estimators.placement import torch_device
from morphnas.estimators.settings import (
    MakeSearcher,
    Settings,
    check_unchanged,
    chosen_seed,
    data_memory,
    fixed_settings,
    plain,
    restored_settings,
    stored_layers,
    time_limit_seconds,
    with_trainer_args,
)
from morphnas.estimators.sizes import Sizes, use_fastest_threads
from morphnas.estimators.sources import Source, open_data
from morphnas.estimators.space import SearchSpace
from morphnas.estimators.splits import Groups, groups_of
from morphnas.estimators.targets import SampleWeight, Target, weights_of
from morphnas.graph import Graph, Limits, Network
from morphnas.report.progress import Progress
from morphnas.report.summary import Results, results_summary
from morphnas.report.tables import trials_table
from morphnas.report.words import measured_words
from morphnas.run.epochs import EachEpochReport, EpochCalls, StopFit
from morphnas.run.expectation import SearchConditions
from morphnas.run.files import RunError
from morphnas.run.interrupt import stop_on_signals
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
from morphnas.train.trainer import load_optimizers

log = logging.getLogger("morphnas")


class ImageEstimator(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Base class of `ImageClassifier` and `ImageRegressor`; `ImageClassifier` documents the parameters."""

    _target_types: ClassVar[tuple[type[Target], ...]]
    """The targets that a subclass can predict."""
    _metric_of_fit: str | None = None
    """Name of the metric of a loaded run if that was a function: a run stores only its name."""

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
        normalization: Any = None,
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
        self.normalization = normalization
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
        load_optimizers()

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
        """Search for a network and train the best one, within a time limit.

        Ctrl-C, pressed once, ends the fit early: the best network so far becomes the model, and a warning says how to
        continue. Pressed twice, or before any network is trained, it raises KeyboardInterrupt. SIGTERM has the same
        effect as Ctrl-C and then ends the process by SystemExit.

        Parameters
        ----------
        x : array-like, Dataset, DataLoader, or path
            Images (n, h, w) or (n, h, w, channels), or rows (n, d), uint8 or any real numbers: an array, memory map,
            h5py dataset or data frame, or a list of images or of image file names. Images of mixed sizes are resized to
            `image_size`, or to the median height and width, at most 128 * 128 pixels; if grey and RGB images are mixed,
            all become RGB. Or, without y: a torch Dataset or DataLoader of (image, y) with tensors channels first; a
            dataset of mappings with an "image" and a "label", such as a Hugging Face dataset; or a folder with a
            sub-folder of image files for each class. Sequences and volumes: see `axes`.
        y : array-like, optional
            Labels (n,) or (n, 1): numbers, strings, bytes, booleans or tuples of them. Multi-label: (n, k) of 0 and 1.
            For a regressor: numbers, (n,) or (n, k).
        time_limit : float, optional
            Seconds that the fit may take in all. None: the `time_limit` of the constructor.
        validation_data : tuple, Dataset, or path, optional
            (x, y) or (x, y, sample_weight): the validation set for early stopping, scoring and choosing networks, which
            is never trained on. None: part of x is held out.
        each_epoch : callable, optional
            Called with a `morphnas.EpochReport` after every epoch of every network, in this thread, even if networks
            are trained in other processes. Its time counts towards the limit. If it raises `morphnas.StopFit`, the fit
            ends as after one Ctrl-C, without the warning (with `StopFit` instead of KeyboardInterrupt if no network is
            trained yet); any other exception is only logged.
        sample_weight : array-like or "balanced", optional
            Weights (n,), non-negative, of the examples in training and in scores. "balanced", for labels only: all
            classes have the same total weight. If validation_data has no weights, its examples get the weight of their
            class if this is "balanced", and equal weights otherwise.
        groups : array-like, optional
            Group (n,) of each example, such as its patient, video or plant. Examples are held out by whole groups, so
            that scores are an estimate for new groups.
        teacher : estimator or array-like, optional
            A model whose predictions networks learn in addition to y (knowledge distillation: Hinton, Vinyals and Dean
            2015, arXiv:1503.02531), for example to train a small network from a large one. Any fitted model with
            `predict_proba` (for regression `predict`), which is called on x; or its predictions for x: probabilities
            (n, classes) in the order of the sorted labels, (n, k) for multi-label data, or numbers (n, k) for
            regression. Scores are computed from y alone.

        Returns
        -------
        self
            The fitted estimator.

        Raises
        ------
        ValueError
            If an argument or the data is invalid; raised before anything is trained or written.
        RunError
            If `path` holds other files, a run that is not to be resumed, or one with other data or settings; if no
            network could be trained.
        OSError
            If data that is too large for memory does not fit on the disk either. TimeoutError, a kind of OSError, if
            reading the data takes all of the time limit. ConnectionError, another, if the Ray cluster is not reached.
        ImportError
            If an optional package is needed and not installed: Pillow for image files, Ray for a cluster.

        Warns
        -----
        DataWarning
            For suspicious data, see `morphnas.examine`.

        Examples
        --------
        Learning curves in TensorBoard:

        >>> writer = torch.utils.tensorboard.SummaryWriter("logs")  # doctest: +SKIP
        >>> def each_epoch(report):
        ...     for name, value in report.numbers.items():
        ...         writer.add_scalar(f"{name}/trial {report.trial}", value, report.epoch)
        """
        with usual_modes():
            seconds = time_limit_seconds(time_limit, self.time_limit)
            deadline = Deadline.after(seconds)
            settings = Settings.of(self)
            deadline = deadline.earlier(min(settings.place.shutdown_seconds, 0.1 * seconds))
            _check_callable(each_epoch)
            # absolute, as a callback may change the working directory
            path = None if self.path is None else user_path(self.path).absolute()
            fixed = fixed_settings(self.get_params(deep=False))
            previous = self._run_to_resume(path, fixed)
            seed = chosen_seed(self.random_state) if previous is None else _stored_seed(previous)
            problem = self._problem(x, y, validation_data, settings, seed, sample_weight, groups, teacher, deadline)
            settings = settings.adapted(problem.preprocessing.shape, problem.task.goal.outputs)
            if previous is not None and previous.get("data") != problem.fingerprint:
                same = "the same x, y, sample_weight, groups and teacher, and the same validation_data"
                raise RunError(f"{str(path)!r} holds a run on other data: to resume it, give {same}")
            findings = data_checks.quick_check(problem, deadline.left)
            data_checks.warn(findings)

            with _restored_threads() as all_threads:
                torch.set_num_threads(settings.place.threads or all_threads)
                plan, sizes = self._plan(problem, settings, previous, deadline)
                about = {
                    "estimator": type(self).__name__,
                    "settings": {name: plain(value) for name, value in self.get_params(deep=False).items()},
                    "decides": fixed,
                    "time_limit": seconds,
                    "seed": seed,
                    "data": problem.fingerprint,
                    "scales": {problem.name: problem.task.scale},
                    "versions": {"morphnas": __version__, **versions()},
                    "device": str(settings.device),
                    "plan": plan.to_json(),
                    "findings": findings.to_json(),
                }
                folder = path or Path(tempfile.mkdtemp(prefix="morphnas-"))
                open_store = _open_store(folder, about, previous is not None, self.overwrite)
                with self._running(open_store, deadline, seconds, each_epoch) as (store, deadline, progress, calls):
                    torch.set_num_threads(plan.threads)
                    self._clear_fitted()
                    self.path_ = str(folder.absolute())
                    for network in settings.networks:
                        store.add_start_weights(network)
                    log.info("the run is kept in %s", folder)
                    if previous is not None:
                        store.update_about(findings=findings.to_json())
                    tell = progress.tell if self.verbose else _log_info
                    for finding in findings.found:
                        if not finding.warns:
                            tell(str(finding))
                    fitting = Fitting(store, problem, plan, settings, seed, deadline, self.refit)
                    search_end = fitting.search_end()
                    for_search, small = (None, False) if sizes is None else sizes.for_search(seconds)
                    max_trials = None if self.max_trials is None else int(self.max_trials)
                    forecast = fitting.forecast(search_end, tell, max_trials, for_search, small)
                    fitting.warn_of_settings()
                    fitting.warn_of_large_images()
                    observer = Observers((progress, forecast, calls))
                    with fitting.search(search_end, observer, all_threads, max_trials) as executor:
                        if deadline.stopped and not fitting.has_scored_network:
                            error = StopFit if calls.stopped else KeyboardInterrupt
                            raise error("no network was trained yet")
                        best, final = fitting.finish(executor, observer)
                    self._finish(fitting, best, final)
                    progress.tell(trials_table(store.trials, best=self.best_trial_))
                    if deadline.stopped and not calls.stopped:
                        self._warn_interrupted()
            return self

    def _plan(
        self, problem: Problem, settings: Settings, previous: Mapping[str, Any] | None, deadline: Deadline
    ) -> tuple[Plan, Sizes | None]:
        """The plan in run.json if a run is resumed; else a new one, and the measurements that it is based on."""
        sizes = None
        if previous is None:
            sizes = Sizes.measured(problem.task, settings, self.augment, deadline.left, self.refit)
        plan = Plan.of_run(previous or {}, __version__) if sizes is None else sizes.plan(deadline.left)
        # the run may have been started where GPUs were not shared
        if not settings.allows_cuda_graphs and "cuda_graphs" not in settings.trainer_args:
            plan = replace(plan, recipe=replace(plan.recipe, cuda_graphs=False))
        return plan, sizes

    def _clear_fitted(self) -> None:
        """Delete the attributes of an earlier fit, so that a fit that fails does not leave the model of another run."""
        for name in [
            n for n in vars(self) if n in ("_model", "_metric_of_fit") or (n.endswith("_") and not n.startswith("_"))
        ]:
            delattr(self, name)

    def _run_to_resume(self, path: Path | None, fixed: Mapping[str, Any]) -> dict[str, Any] | None:
        """The contents of run.json if the run in `path` is to be resumed; None if a new run starts.

        RunError if the folder allows neither, or if `fixed` (see `fixed_settings`) differs from the run's.
        """
        if path is not None:
            Store.check(path, overwrite=self.overwrite, resume=bool(self.resume))
        previous = load_about(path) if path is not None and self.resume and holds_run(path) else None
        if previous is None and self.resume is True:
            raise RunError(f'{str(path)!r} holds no run to resume; resume="auto" starts one if there is none')
        if previous is not None:
            check_unchanged(path, previous.get("decides", {}), fixed)
        return previous

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
        """Train the winner of the search further on the given data, within a time limit.

        Adds trials to the run and changes none. On the same data, the existing model is kept if the new one has seen
        fewer examples in its final trainings (if it is another network, fewer than half as many), unless `retrain`, a
        number of epochs or a `trial` other than the winner is given.

        Parameters
        ----------
        x_train, y_train
            What `fit` takes as x and y.
        x_test, y_test : optional
            Test set, in the same forms: evaluated at the end (`test_metric_`), never used to stop or to choose.
        trainer_args : dict, optional
            Any fields of `Recipe` except examples, or the legacy keys max_iter_num (epochs) and max_no_improvement_num
            (patience). Fields left out are as in the winner's recipe, except that the length follows from the time.
        retrain : bool
            Train from fresh weights only.
        time_limit : float, optional
            Seconds that the training may take in all. None: the time limit of the fit.
        each_epoch, sample_weight, groups, teacher : optional
            As for `fit`; the values given to `fit` are not used here.
        trial : int, optional
            Id of another network of the run to train instead of the winner; it becomes `best_trial_`.

        Returns
        -------
        self
            The estimator.

        Raises
        ------
        ValueError
            If an argument or the data is invalid, including labels that `fit` did not see; if `metric` or `loss` of the
            fit was a function and is not set again after `load`.
        RunError
            If the run has no such trial, or not its weights.
        """
        with usual_modes():
            self._check_fitted()
            _check_callable(each_epoch)
            settings = Settings.of(self)
            about = load_about(Path(self.path_))
            check_functions_given(about.get("settings"), self.metric, self.loss)
            seconds = time_limit_seconds(time_limit, about.get("time_limit"))
            deadline = Deadline.after(seconds)
            with_trainer_args(Recipe(), trainer_args or {})
            place, memory, args = settings.place, settings.data_memory, dict(trainer_args or {})
            deadline = deadline.earlier(min(place.shutdown_seconds, 0.1 * seconds))
            if "examples" in args:
                raise ValueError("trainer_args: final_fit trains on all examples, it takes no 'examples'")
            if retrain and args.get("layers") == "last":
                raise ValueError('trainer_args: layers "last" keeps all other layers, so it excludes retrain')
            settings = replace(settings, trainer_args={**stored_layers(about.get("settings")), **settings.trainer_args})
            model = self._model
            source, y_train = open_data(x_train, y_train, "x_train", memory, self._axes, deadline)
            codes, test = model.target.encode(y_train, len(source)), None
            weights = weights_of(sample_weight, len(source), codes, model.target)
            if x_test is not None:
                test_source, y_test = open_data(x_test, y_test, "x_test", memory, self._axes, deadline)
                if y_test is not None:
                    test = prepare_examples(test_source, y_test, model.preprocessing, model.target, memory)
            if test is None and (x_test is not None or y_test is not None):
                raise ValueError("final_fit needs both x_test and y_test, or neither")
            seed = _stored_seed(about)
            group_codes = groups_of(groups, len(source))
            taught = teacher_outputs(teacher, source, model.target)
            options = (model.target, model.preprocessing, seed, place.device, memory)
            problem = Problem.from_source(source, codes, weights, group_codes, taught, None, *options)
            problem = with_objective(problem, self.metric, self.loss, deadline)
            findings = data_checks.quick_check(problem, deadline.left)
            open_store = _open_store(Path(self.path_), {}, True, False)
            running = self._running(open_store, deadline, seconds, each_epoch)
            with _restored_threads() as all_threads, running as (store, deadline, progress, calls):
                plan = Plan.of_run(about, __version__)
                if place.workers:  # the plan's number of threads is a worker's share of the cores
                    use_fastest_threads(problem.task, plan.recipe, all_threads, deadline.left)
                else:
                    torch.set_num_threads(plan.threads)
                data_checks.warn(findings.new_kinds(about.get("findings")))
                best = store.trial(self.best_trial_ if trial is None else trial)
                if trial is not None:
                    store.network(best.id)  # raises RunError if its weights are missing
                inherited_args = {name: value for name, value in settings.trainer_args.items() if name == "lr"}
                if not settings.allows_cuda_graphs:
                    inherited_args["cuda_graphs"] = settings.trainer_args.get("cuda_graphs", False)
                fitting = Fitting(store, problem, plan, settings, seed, deadline, refit=True)
                best_recipe = fitting.recipe_of(best, store.trials, retrain)
                recipe = with_trainer_args(best_recipe, inherited_args | args, len(problem.task.train))
                if recipe.augment.flip is None:  # use what was decided for the winner
                    recipe = replace(recipe, augment=replace(recipe.augment, flip=best_recipe.augment.flip))
                ids_before = {trial.id for trial in store.trials}
                store.update_about(scales={problem.name: problem.task.scale} | scales_of(store.about))
                epochs_given = bool({"epochs", "max_iter_num"} & args.keys())
                executor = place.final(problem.task, problem.all_examples)
                try:
                    final = fitting.train_final(
                        best,
                        recipe,
                        executor,
                        Observers((progress, calls)),
                        retrain=retrain,
                        epochs=recipe.epochs if epochs_given else None,
                        n_test=0 if test is None else len(test),
                    )
                finally:
                    executor.shutdown()
                ended_ids = {other.id for other in store.trials if other.outcome is not None}
                if ended_ids <= ids_before and final.id == best.id and not deadline.stopped:
                    warnings.warn("nothing was trained: there was no time for a batch", stacklevel=2)
                if trial in (None, store.about.get("best")):  # another network becomes the model in any case
                    name = None if retrain or epochs_given else problem.name
                    best, final = model_to_keep(store, best, final, problem.task, problem.all_examples, name)
                self._finish(fitting, best, final)
                if deadline.stopped and not calls.stopped:
                    self._warn_interrupted()
                self.__dict__.pop("test_metric_", None)  # of the previous model
                if test is not None:
                    self.test_metric_ = self._test_metric(test)
                    progress.tell(f"{self.format_metric(self.test_metric_)} on the {len(test):,} test examples")
            return self

    def _test_metric(self, test: Examples) -> float:
        """See `evaluate`; NaN, with a warning, if the metric is undefined: that should not cost a finished training."""
        try:
            return self._measure(self._outputs([test.x]), test.y)
        except UndefinedMetric as error:
            warnings.warn(f"x_test, y_test: {error}", stacklevel=3)
            return math.nan

    # -- using

    def evaluate(self, x_test: Any, y_test: ArrayLike | None = None, sample_weight: SampleWeight = None) -> float:
        """The quality of predictions on examples with known y, see the subclasses."""
        with usual_modes():
            if self.metric is None and self._metric_of_fit is not None:
                words = f"the metric of the fit, {self._metric_of_fit:.100}, is a function, which a run does not store"
                warnings.warn(f"{words}: the default metric is used; set metric to use it again", stacklevel=2)
            source, y_test = self._open(x_test, y_test)
            codes = self._model.target.encode(y_test, len(source))
            weights = weights_of(sample_weight, len(source), codes, self._model.target)
            return self._measure(self._predict_outputs(source), torch.from_numpy(codes), weights)

    def _measure(self, outputs: Tensor, y: Tensor, weights: NDArray[np.float32] | None = None) -> float:
        """The value of `evaluate` for outputs (n, outputs) on the CPU. y: encoded as for training."""
        if self.metric is None:
            return self._model.target.metric(outputs, y, weights)
        check_metric(self.metric)
        return Scorer(self.metric, self._model.target)(
            outputs, y, None if weights is None else torch.from_numpy(weights)
        )

    def format_metric(self, measured: float) -> str:
        """Format a value of `evaluate` as text, such as "accuracy 97.20%".

        Parameters
        ----------
        measured : float
            The value.

        Returns
        -------
        str
            The name of the metric and the value.
        """
        if self.metric is None:
            return self._model.target.format_metric(measured)
        return measured_words(Scorer(self.metric, self._model.target).name, measured)

    def _open(self, x: Any, y: Any = None) -> tuple[Source, Any]:
        """The examples in whatever `fit` takes, and their y (None: unknown); NotFittedError before a fit."""
        self._check_fitted()
        return open_data(x, y, "x_test", data_memory(self), self._axes)

    def to_module(self, trial: int | None = None) -> fx.GraphModule:
        """The final network as a plain PyTorch module in evaluation mode.

        The module takes raw examples, channels first, (n, channels, h, w) or (n, d), of any real dtype. It contains the
        preprocessing and does not depend on morphnas. A classifier's module returns calibrated logits (n, classes) in
        the order of `classes_`, whose softmax (for multi-label data sigmoid) is what `predict_proba` returns; a
        regressor's returns numbers (n, k) float64. Rows of numbers that float32 would round, such as times in seconds,
        must be float64.

        Parameters
        ----------
        trial : int, optional
            Id of another network of the run to return instead; without calibration and test-time augmentation.

        Returns
        -------
        torch.fx.GraphModule
            The module.

        Raises
        ------
        RunError
            If the run has no such trial, or not its weights.
        """
        with usual_modes():
            self._check_fitted()
            model = self._current_model
            if trial is not None:
                run = self.load_searcher()
                model = replace(model, network=run.load_model_by_id(trial), mirrors=False, temperature=1.0)
                chosen = run.trial(trial)
                data = chosen.proposal.why.get("data") if chosen.final else run.data
                if (scale := scales_of(run.about).get(str(data))) is not None:
                    model = model.with_scale(scale)  # the model may have been trained on other data since
            return model.to_module()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Load the fitted estimator of a run, ready to predict.

        It has those constructor arguments of the fitted estimator that matter later: limits, keep, ensemble and a
        metric given by name, for `final_fit` and `evaluate`; augment, image_shape, image_size, normalization,
        axes, max_memory, time_limit and random_state, for another fit.

        Parameters
        ----------
        path : str or Path
            The run folder.

        Returns
        -------
        ImageClassifier or ImageRegressor
            An instance of this class.

        Raises
        ------
        RunError
            If the folder holds no model, or one of the other kind of estimator.
        """
        with usual_modes():
            folder = user_path(path)
            model, settings = Model.stored(folder), None
            if not isinstance(model.target, cls._target_types):
                raise RunError(f"{folder} holds the run of another estimator than {cls.__name__}: use morphnas.load")
            with contextlib.suppress(RunError):  # the folder may hold a model without a run
                settings = load_about(folder).get("settings")
            estimator = cls(path=folder, **restored_settings(settings))
            estimator.path_ = str(folder.absolute())
            estimator._set_model(model)
            metric = settings.get("metric") if isinstance(settings, dict) else None
            estimator._metric_of_fit = metric if estimator.metric is None else None
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
        """The search space and the plan of a fit, before it.

        Writes nothing, and trains nothing except for a few steps that measure the speed of this machine.

        Parameters
        ----------
        x, y, time_limit, validation_data, sample_weight, groups
            As for `fit`.

        Returns
        -------
        SearchSpace
            Starters, allowed morphs, limits, training recipe, and how many networks, and how much disk and memory to
            expect. Print it, or use its fields.

        Raises
        ------
        ValueError
            If an argument or the data is invalid.
        """
        with usual_modes():
            seconds = time_limit_seconds(time_limit, self.time_limit)
            settings = Settings.of(self)
            seed = chosen_seed(self.random_state)
            problem = self._problem(x, y, validation_data, settings, seed, sample_weight, groups)
            settings = settings.adapted(problem.preprocessing.shape, problem.task.goal.outputs)
            with _restored_threads() as all_threads:
                torch.set_num_threads(settings.place.threads or all_threads)
                sizes = Sizes.measured(problem.task, settings, self.augment, seconds, self.refit)
                plan = sizes.plan(seconds)
                max_trials = plan.max_networks(self.max_trials) if self.refit else self.max_trials
                for_search, small = sizes.for_search(seconds)
                conditions = SearchConditions(max_trials, self.refit, for_search=for_search, small=small)
                return SearchSpace.of(plan, problem, settings, seconds, conditions)

    def results_summary(self, n: int = 10) -> Results:
        """The best networks of the run.

        Parameters
        ----------
        n : int
            Number of networks.

        Returns
        -------
        Results
            The networks, best first. Print it, or use its fields.
        """
        return results_summary(self.load_searcher(), n)

    @property
    def history(self) -> list[dict[str, Any]]:
        """One dict per trial of the run that has a score, with model_id, loss, metric_value and more."""
        return self.load_searcher().history

    def trials_dataframe(self) -> Any:
        """All trials of the run, see `Run.trials_dataframe`.

        Returns
        -------
        pandas.DataFrame
            One row per trial.

        Raises
        ------
        ImportError
            If pandas is not installed.
        """
        return self.load_searcher().trials_dataframe()

    def get_best_model_id(self) -> int:
        """Trial id of the winner, the best network of the search.

        Returns
        -------
        int
            `best_trial_`.
        """
        self._check_fitted()
        return self.best_trial_

    def load_searcher(self) -> Run:
        """Read the run from its folder.

        Returns
        -------
        Run
            With `history`, `trials`, `load_model_by_id(id)`, `load_best_model()` and more.
        """
        self._check_fitted()
        return load_run(self.path_)

    # -- internal

    @staticmethod
    def _read_y(y: ArrayLike, n: int) -> tuple[Target, NDArray[Any]]:
        """See `InferTarget`."""
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
        problem = Problem.infer(
            x,
            y,
            validation_data,
            self.image_shape,
            seed,
            settings.device,
            image_size=self.image_size,
            normalization=self.normalization,
            data_memory=settings.data_memory,
            read=self._read_y,
            sample_weight=sample_weight,
            axes=self.axes,
            groups=groups,
            teacher=teacher,
            deadline=deadline,
        )
        return with_objective(problem, self.metric, self.loss, deadline, settings.place.uses_other_processes)

    @contextlib.contextmanager
    def _running(
        self,
        open_store: contextlib.AbstractContextManager[Store],
        deadline: Deadline,
        seconds: float,
        each_epoch: EachEpochReport | None,
    ) -> Iterator[tuple[Store, Deadline, Progress, EpochCalls]]:
        """The open store, the deadline, which signals and `StopFit` bring forward, and the two observers."""
        closing_progress = contextlib.closing(Progress(seconds, enabled=bool(self.verbose)))
        with stop_on_signals() as stop, open_store as store, closing_progress as progress:
            calls = EpochCalls(each_epoch, store.path, stop)
            yield store, deadline.with_stop(stop), progress, calls
            calls.close()

    def _finish(self, fitting: Fitting, best: Trial, final: Trial) -> None:
        """Make the network of the final trial the model, and prune the weights that `keep` does not cover."""
        self._set_model(fitting.model(best, final, getattr(self, "_model", None)))
        prune(fitting.store, fitting.settings.keep)

    def _warn_interrupted(self) -> None:
        how = f"{type(self).__name__}(path={self.path_!r}, resume=True, ...).fit(...)"
        warnings.warn(f"interrupted: the model is the best network so far; continue with {how}", stacklevel=3)

    def _set_model(self, model: Model) -> None:
        self._model = model
        self.network_, self.mirrors_ = model.network, model.mirrors
        self.best_trial_, self.final_trial_, self.members_ = model.best, model.trial, dict(model.members)
        if len(model.preprocessing.given) == 1:
            self.n_features_in_ = model.preprocessing.given[0]
        if model.preprocessing.columns:
            self.feature_names_in_ = np.array(model.preprocessing.columns, dtype=object)

    @property
    def _axes(self) -> int | None:
        """Number of axes of an example of the fit, not counting channels; None for rows, which have none."""
        return len(self._model.preprocessing.shape) - 1 or None

    def _predict_outputs(self, source: Source) -> Tensor:
        """Outputs (n, outputs) of the model for the examples, which are read piece by piece."""
        with usual_modes():
            return self._outputs(self._model.preprocessing.pieces(source))

    def _outputs(self, pieces: Iterable[Tensor]) -> Tensor:
        """Outputs (n, outputs) of the model, on the CPU. pieces: (k, *shape) each; the first one's range is checked."""
        remaining = iter(pieces)
        data_checks.warn_if_range_differs(first := next(remaining), self._model.range, stacklevel=6)
        return self._current_model.outputs(itertools.chain([first], remaining), torch_device(self.device))

    @property
    def _current_model(self) -> Model:
        """The model with `network_` and `mirrors_`, which the user may have set."""
        model = self._model
        if model.network is self.network_ and model.mirrors is self.mirrors_:
            return model
        return replace(model, network=self.network_, mirrors=self.mirrors_)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "network_")

    def _check_fitted(self) -> None:
        if not self.__sklearn_is_fitted__():
            name = type(self).__name__
            hint = f"Call 'fit' with appropriate arguments first, or {name}.load(path)"
            raise NotFittedError(f"This {name} instance is not fitted yet. {hint}")


def _stored_seed(about: Mapping[str, Any]) -> int:
    """The seed in run.json; RunError if it is missing or invalid."""
    seed = about.get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**31:
        raise RunError(f"run.json does not hold the seed of a run, but {seed!r:.100}")
    return seed


def _check_callable(each_epoch: Any) -> None:
    if each_epoch is not None and not callable(each_epoch):
        raise ValueError(f"each_epoch must be None or a function of a morphnas.EpochReport, not {each_epoch!r:.100}")


def _log_info(text: str) -> None:
    log.info("%s", text)


@contextlib.contextmanager
def _restored_threads() -> Iterator[int]:
    """Yield torch's number of threads, and restore it at the end."""
    threads = torch.get_num_threads()
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _open_store(path: Path, about: Mapping[str, Any], resume: bool, overwrite: bool) -> Iterator[Store]:
    store = Store.resume(path) if resume else Store.create(path, about, overwrite)
    try:
        yield store
    finally:
        store.close()
