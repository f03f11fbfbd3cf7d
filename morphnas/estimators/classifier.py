"""`ImageClassifier`: predicts the class, or the labels, of an image."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score

from morphnas.estimators.base import ImageEstimator
from morphnas.estimators.labels import ClassTarget
from morphnas.estimators.model import Model
from morphnas.estimators.targets import MultiLabelTarget, RegressionTarget, SampleWeight, classes_of, given_weights


class ImageClassifier(ClassifierMixin, ImageEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Finds a neural network for images, or for rows of numbers, within a time limit.

    Each example has one class (y are labels, (n,) or (n, 1)), or any number of labels (multi-label: y is (n, k) of 0
    and 1).

    Parameters
    ----------
    path : str or Path, optional
        Folder of the run. None: a new temporary one, see `path_`.
    verbose : bool or int
        Show progress while fitting, and a table of the networks tried at the end.
    augment : bool, optional
        Whether training images are shifted at random, and mirrored if that does no harm. None: shifted only in the
        final trainings, and only if that is found to be better.
    resume : bool or "auto"
        True continues the run in `path`; "auto" does so if there is one.
    searcher_args : dict, optional
        Settings of the searcher. "trainer_args" (fields of `Recipe`) set how children are trained; a field that is a
        tuple (low, high) or a list of values is searched, see `morphnas.search.Tuned`. "default_model_len" and
        "default_model_width" are the depth and the width of the first networks.
    search_type : str or callable, optional
        "bayesian" (the default), "pareto", "random", "evolution", "greedy", "climbing", "grid", "halving", or a
        callable (space, recipe=, limits=, seed=) that returns a searcher.
    time_limit : float, optional
        Seconds for a fit, everything included, if `fit` is given none. None: 24 hours.
    max_trials : int, optional
        Number of trainings after which the search ends; one that trains a network for longer counts, too. None: as many
        as there is time for.
    search_patience : int, optional
        Number of trainings in a row without improvement after which the search ends. None: it continues for as long as
        there is time.
    random_state : int or numpy.random.RandomState, optional
        Seed: the same value repeats the same search. None: a different one each time.
    device : str or torch.device, optional
        "cpu", "cuda", "cuda:1". None: a GPU if there is one.
    refit : bool
        Train the winner longer at the end, and on all examples.
    image_shape : tuple of int, optional
        (height, width) or (height, width, channels) of images that are given as rows.
    image_size : int or (int, int), optional
        Side or (height, width) that all images are resized to. None: unchanged, unless their sizes are mixed.
    axes : {1, 2, 3}, optional
        Number of axes of an example besides channels: 1 for sequences, (n, length) or (n, length, channels), such as
        time series and spectra; 2 for images; 3 for volumes, (n, d, h, w) or (n, d, h, w, channels). None: images,
        except for rows (n, d) and volumes of five axes. With `image_shape`, of the shape that rows stand for.
    limits : Limits or dict, optional
        `morphnas.Limits`, or a dict of its fields: sizes, memory, latency, the kinds of morphs.
    max_memory : int, optional
        Estimated bytes that training a network may take at most: batches are split into parts that fit, and networks
        that do not fit at all are not tried. None: on a CPU, parts that take at most half of the free memory.
    initial_networks : list of Graph or Network, optional
        Networks that the search starts from, instead of ones sized to the time. A `morphnas.Graph` begins with fresh
        weights: its inputs are channels first, its outputs one value per class. A `morphnas.Network`, from an earlier
        run (`network_`) or a trained module (`from_module`), begins with its own weights, adapted to other images and
        classes if necessary (see `Network.adapted`).
    data_memory : int, optional
        Bytes that the prepared examples of x, and those of validation_data, may take in memory, and in a GPU's. None:
        half of what is free. Larger data stays in memory while a GPU loads it batch by batch, or is kept in a file,
        while it is needed, on the disk of `path` (None: the system's temporary folder).
    keep : int or "all"
        Number of best networks whose weights stay in the run's folder; those that the search may still start from, the
        winner's and the final model's stay in any case. "pareto", "evolution" and "climbing" need "all".
    ensemble : int
        Maximum number of networks in the final model. If more than 1, networks that the run has trained anyway are
        averaged with the final one if that helps on held-out examples. The result is one network, which takes as long
        as all of them. See `members_`.
    overwrite : bool
        Replace the run in `path`.
    executor : str, optional
        Where networks are trained. None: in this process, one after the other. "process": in several processes at a
        time; one that crashes or hangs costs only its network. "ray": on Ray, on this machine, or the address of a Ray
        cluster ("auto", "host:port", "ray://host:port").
    devices : int or list of str, optional
        For processes: the number of GPUs or, on a CPU, of workers, which share its cores; or a list of devices,
        ["cuda:0", "cuda:1"], where one that is named twice gets two. None: all. On Ray: the maximum number of workers.
    per_trial : float, optional
        CPUs, or GPUs if `device` is one, that each network takes on a Ray cluster; 0.5 is half of a GPU. None: 1.
    metric : str or callable, optional
        What training is stopped, networks are searched and final models are chosen by, on held-out examples, and what
        `evaluate` returns: the name of a scikit-learn scorer, such as "f1_macro" or "roc_auc_ovr", or a scorer as made
        by `sklearn.metrics.make_scorer`: a function (estimator, x, y, sample_weight=None) that is higher for better
        predictions. It is tried first: one that is higher for wrong answers than for right ones is refused. None: the
        log loss; accuracy is shown.
    loss : callable, optional
        What training minimises and, without a `metric`, networks are chosen by: a function or a module (outputs, y)
        that returns a tensor (n,) or their mean. For labels, outputs are logits (n, classes) in the order of `classes_`
        and y indices (n,) int64; for multi-label data, logits and y are (n, k). It is scaled so that its gradients are
        as large as those of the log loss, there is no label smoothing, and its own parameters are not trained. None:
        cross-entropy.

    Attributes
    ----------
    classes_ : ndarray
        The labels, sorted; for multi-label data the names of a data frame's columns, or else their numbers.
    multilabel_ : bool
        Whether y was multi-label.
    path_ : str
        The run's folder.
    best_trial_ : int
        Id of the search's winner.
    final_trial_ : int
        Id of the final network.
    network_ : Network
        The network that makes the predictions: the final one, or an ensemble around it.
    members_ : dict of int to float
        The shares of the run's networks in it, by id; they sum to 1.
    test_metric_ : float
        What `evaluate` returns for it on the test set that `final_fit` was given.
    mirrors_ : bool
        Whether it evaluates every image and its mirror image, and predicts from the mean of both logits: it does if it
        was trained on mirrored images. May be set, for twice the speed or to see what it gains.
    """

    _kinds = (ClassTarget, MultiLabelTarget)

    def predict(self, x_test: Any) -> NDArray[Any]:
        """Labels (n,) of examples (n, ...), or of anything else that `fit` takes, in its order; a folder's is by path.

        For multi-label data (n, k) of 0 and 1, where 1 means more likely than not.
        """
        chances = self.predict_proba(x_test)
        return self._said.likeliest(chances)

    def predict_proba(self, x_test: Any) -> NDArray[np.float64]:
        """Probabilities (n, classes) float64, in the order of `classes_`; for multi-label data independent ones."""
        source, _ = self._asked(x_test)
        return self._said.probabilities(self._predicted(source))

    def evaluate(self, x_test: Any, y_test: Any = None, sample_weight: SampleWeight = None) -> float:
        """Accuracy on labelled examples, or the `metric`; ValueError for a label that fit did not see.

        For multi-label data, the share of examples with all labels right. sample_weight: see `fit`.
        """
        return super().evaluate(x_test, y_test, sample_weight)

    def score(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> float:  # noqa: N803  # scikit-learn's
        """Accuracy, as in scikit-learn: a label that fit did not see counts as predicted wrongly."""
        said = self.predict(X)
        weights = None if sample_weight is None else given_weights(sample_weight, len(said))
        if isinstance(self._said, MultiLabelTarget):
            return float(accuracy_score(self._said.encode(y, len(said)), said, sample_weight=weights))
        right = [a == b for a, b in zip(self._said.read(y, len(said)), said.tolist(), strict=True)]
        return float(np.average(right, weights=weights))

    @staticmethod
    def _read(y: ArrayLike, n: int) -> tuple[ClassTarget | MultiLabelTarget, NDArray[Any]]:
        return classes_of(y, n)

    @property
    def _said(self) -> ClassTarget | MultiLabelTarget:
        """What y were."""
        assert not isinstance(self._model.target, RegressionTarget)
        return self._model.target

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    def _set(self, model: Model) -> None:
        super()._set(model)
        self.classes_ = self._said.classes
        self.multilabel_ = isinstance(model.target, MultiLabelTarget)
