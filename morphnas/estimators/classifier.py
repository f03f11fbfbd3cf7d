"""`ImageClassifier`: predicts the class, or several labels, of an image."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score

from morphnas.estimators.base import ImageEstimator
from morphnas.estimators.labels import ClassTarget
from morphnas.estimators.model import Model
from morphnas.estimators.targets import (
    MultiLabelTarget,
    RegressionTarget,
    SampleWeight,
    checked_weights,
    classification_target,
)


class ImageClassifier(ClassifierMixin, ImageEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Image classifier whose neural network is found by a search within a time limit.

    A scikit-learn estimator. Each example has one class (y holds labels, (n,) or (n, 1)) or any number of labels
    (multi-label: y is (n, k) of 0 and 1). Examples may also be rows of features, sequences or volumes: see `fit`.

    Parameters
    ----------
    path : str or Path, optional
        Run folder. None: a new temporary folder, see `path_`.
    verbose : bool or int
        Show progress during a fit, and a table of the trials at its end.
    augment : bool, optional
        True: training images are shifted at random, and also flipped horizontally unless flips cost accuracy. False: no
        augmentation. None: as True, but images are shifted in the final trainings only, and only if shifts are found to
        help there; if a network memorises its colour images, larger shifts and cutout are tried there too.
    resume : bool or "auto"
        True continues the run in `path`; "auto" continues it if there is one, and otherwise starts one.
    searcher_args : dict, optional
        Settings of the searcher. "trainer_args" (fields of `Recipe`) set how networks are trained during the search; a
        field given as a tuple (low, high) or as a list of values is searched, see `morphnas.search.Tuned`.
        "default_model_len" and "default_model_width" are the depth and width of the starters, the first networks.
    search_type : str or callable, optional
        "bayesian" (the default), "pareto", "random", "evolution", "greedy", "climbing", "grid", "halving", or a
        callable (space, recipe=, limits=, seed=) that returns a searcher.
    time_limit : float, optional
        Seconds that a fit may take in all, unless `fit` is given a limit. None: 24 hours.
    max_trials : int, optional
        Number of trainings after which the search ends; further training of an earlier network counts too. None: no
        limit.
    search_patience : int, optional
        Number of successive trainings of the search without improvement after which it ends. None: no limit.
    random_state : int or numpy.random.RandomState, optional
        Seed of splits, initial weights, batches and proposals. None: a new one for each fit.
    device : str or torch.device, optional
        Such as "cpu", "cuda" or "cuda:1". None: a GPU if there is one.
    refit : bool
        Train the winner longer at the end, on all examples.
    image_shape : tuple of int, optional
        (height, width) or (height, width, channels) of images that are given as rows.
    image_size : int or (int, int), optional
        Side or (height, width) to which all images are resized. None: images keep their size, unless sizes are mixed.
    normalization : (mean, std), optional
        Mean and standard deviation, in the units of x, with which values are normalised: (x - mean) / std. Each is a
        number or one for each channel. For `initial_networks` that were trained with these, such as torchvision's. Not
        for rows. None: those of the training examples.
    axes : {1, 2, 3}, optional
        Number of axes of an example, not counting channels: 1 for sequences such as time series and spectra, (n,
        length) or (n, length, channels); 2 for images; 3 for volumes, (n, d, h, w) or (n, d, h, w, channels). None:
        images, except that (n, d) are rows, and arrays of five axes are volumes. With `image_shape`: the number of axes
        of that shape.
    limits : Limits or dict, optional
        `morphnas.Limits`, or a dict of its fields: network size, memory, latency, allowed morphs.
    max_memory : int, optional
        Bytes that training a network may take, as estimated: batches are split into micro-batches that fit, and
        networks that do not fit at all are not tried. None: on a CPU, micro-batches that take at most half of the free
        memory; on a GPU, no limit.
    initial_networks : list of Graph or Network, optional
        Starters, instead of networks sized for the time limit. A `morphnas.Graph`, whose inputs are channels first and
        whose outputs are one value per class, starts with fresh weights. A `morphnas.Network`, from an earlier run
        (`network_`) or a trained module (`from_module`), starts with its own weights, adapted to other images and
        classes if necessary (see `Network.adapted`): first only its last layer is trained, if that is dense, and then
        all layers, gently or by the usual recipe, whichever is better. See also `normalization`.
    data_memory : int, optional
        Bytes that the prepared examples of x, and those of validation_data, may take in main memory and in GPU memory.
        None: half of what is free. Data too large for the GPU stays in main memory and is loaded batch by batch; data
        too large for main memory is kept in a temporary file on the disk of `path` (without `path`, in the system's
        temporary folder).
    keep : int or "all"
        Number of best networks whose weights are kept in the run folder. The weights of the winner, of the final
        network and of networks that the search may still start from are kept in any case. "pareto", "evolution" and
        "climbing" need "all".
    ensemble : int
        Maximum number of networks in the final model. If more than 1, other networks of the run are averaged with the
        final one if that improves predictions on held-out examples. The result is one network, with the latency of all
        its members together, and within `limits` as a whole; not with a limit on the latency. See `members_`.
    overwrite : bool
        Replace the run in `path`.
    executor : str, optional
        Where networks are trained. None: in this process, one after the other. "process": in parallel worker processes;
        a crash or hang costs only the network in training there. "ray": in parallel, on a private Ray cluster on this
        machine. The address of a Ray cluster ("auto", "host:port", "ray://host:port"): in parallel, on that cluster.
    devices : int or list of str, optional
        For executor="process": the number of GPUs (on a CPU: of worker processes, which share its cores), or a list
        such as ["cuda:0", "cuda:1"], in which a device named twice gets two workers. On Ray: the maximum number of
        workers. None: all there are.
    per_trial : float, optional
        CPUs (or GPUs, if `device` is one) that each trial takes on a Ray cluster; 0.5 is half a GPU. None: 1.
    metric : str or callable, optional
        Score that decides early stopping, guides the search, selects the final model, and is returned by `evaluate`;
        except for the last, it is measured on held-out examples. The name of a scikit-learn scorer, such as "f1_macro"
        or "roc_auc_ovr", or a scorer as made by `sklearn.metrics.make_scorer`: a function (estimator, x, y,
        sample_weight=None) whose value is higher for better predictions. A scorer that is higher for wrong answers than
        for right ones is refused before training. None: the log loss; `evaluate` returns the accuracy.
    loss : callable, optional
        Training loss and, without a `metric`, the criterion by which networks are chosen: a function or module
        (outputs, y) that returns a tensor (n,) of losses or their mean. For labels, outputs are logits (n, classes) in
        the order of `classes_`, and y are class indices (n,) int64; for multi-label data, logits and y are (n, k). It
        is scaled so that its gradients are as large as those of the log loss; there is no label smoothing; parameters
        of a module are not trained. None: cross-entropy.

    Attributes
    ----------
    classes_ : ndarray
        The sorted labels; for multi-label data the column names of y if it was a data frame, else column indices.
    multilabel_ : bool
        Whether y was multi-label.
    path_ : str
        The run folder.
    best_trial_ : int
        Trial id of the winner, the best network of the search.
    final_trial_ : int
        Trial id of the final network.
    network_ : Network
        The network that makes predictions: the final network, or an ensemble that contains it.
    members_ : dict of int to float
        Weight of each member of the ensemble, by trial id; they sum to 1.
    test_metric_ : float
        Value of `evaluate` on the test set given to `final_fit`.
    mirrors_ : bool
        Whether predictions average the logits of each image and of its mirror image (test-time augmentation): True if
        the final network was trained with horizontal flips, unless latency is limited. May be set, to False for twice
        the speed.
    n_features_in_ : int
        Number of features, if x was (n, d).
    feature_names_in_ : ndarray
        Column names of x, if it was a data frame with strings as column names.
    """

    _target_types = (ClassTarget, MultiLabelTarget)

    def predict(self, x_test: Any) -> NDArray[Any]:
        """Predict labels.

        Parameters
        ----------
        x_test
            Examples (n, ...), or anything else that `fit` takes as x. Those of a folder are taken in order of path.

        Returns
        -------
        ndarray
            Labels (n,); for multi-label data (n, k) of 0 and 1, where 1 means a probability of at least 0.5.
        """
        probabilities = self.predict_proba(x_test)
        return self._target.most_probable(probabilities)

    def predict_proba(self, x_test: Any) -> NDArray[np.float64]:
        """Predict class probabilities.

        Parameters
        ----------
        x_test
            As for `predict`.

        Returns
        -------
        ndarray
            Probabilities (n, classes) float64, in the order of `classes_`. For multi-label data each column is the
            probability of one label, independent of the others.
        """
        source, _ = self._open(x_test)
        return self._target.probabilities(self._predict_outputs(source))

    def evaluate(self, x_test: Any, y_test: Any = None, sample_weight: SampleWeight = None) -> float:
        """Accuracy on labelled examples, or the `metric` if one is set.

        Parameters
        ----------
        x_test, y_test
            What `fit` takes as x and y.
        sample_weight : array-like or "balanced", optional
            As for `fit`.

        Returns
        -------
        float
            The accuracy (for multi-label data, the fraction of examples with all labels right), or the `metric`.

        Raises
        ------
        ValueError
            If y_test holds labels that `fit` did not see.
        """
        return super().evaluate(x_test, y_test, sample_weight)

    def score(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> float:  # noqa: N803  # scikit-learn's
        """Accuracy, as scikit-learn defines it, whatever the `metric`.

        Parameters
        ----------
        X
            As for `predict`.
        y : array-like
            Labels; one that `fit` did not see counts as a wrong prediction.
        sample_weight : array-like, optional
            Weights (n,) of the examples.

        Returns
        -------
        float
            The accuracy; for multi-label data, the fraction of examples with all labels right.
        """
        predicted = self.predict(X)
        weights = None if sample_weight is None else checked_weights(sample_weight, len(predicted))
        if isinstance(self._target, MultiLabelTarget):
            return float(accuracy_score(self._target.encode(y, len(predicted)), predicted, sample_weight=weights))
        right = [a == b for a, b in zip(self._target.read(y, len(predicted)), predicted.tolist(), strict=True)]
        return float(np.average(right, weights=weights))

    @staticmethod
    def _read_y(y: ArrayLike, n: int) -> tuple[ClassTarget | MultiLabelTarget, NDArray[Any]]:
        return classification_target(y, n)

    @property
    def _target(self) -> ClassTarget | MultiLabelTarget:
        assert not isinstance(self._model.target, RegressionTarget)
        return self._model.target

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    def _set_model(self, model: Model) -> None:
        super()._set_model(model)
        self.classes_ = self._target.classes
        self.multilabel_ = isinstance(model.target, MultiLabelTarget)
