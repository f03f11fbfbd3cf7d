"""The commands of the command line: each takes the parsed arguments and returns an `Answer`."""

from __future__ import annotations

import argparse
import csv
import importlib.util
import io
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import morphnas
from morphnas.bundles import machine
from morphnas.estimators.files import Files, image_folder, images_in_csv
from morphnas.estimators.settings import LIMITS
from morphnas.estimators.targets import MultiLabelTarget
from morphnas.report.page import about_words
from morphnas.report.summary import results_summary
from morphnas.report.words import metric_words
from morphnas.run.store import is_being_written, user_path
from morphnas.search.trial import lineage

LONGEST_PAUSE = 86_400
"""Maximum number of seconds between two reports of a running fit."""
_EXTRAS = {"images": "PIL", "data frames": "pandas", "ray": "ray", "onnx": "onnxscript", "drawing": "graphviz"}


class CommandError(ValueError):
    """The arguments of a command are wrong, or do not go together; the message says why."""


@dataclass(frozen=True)
class Answer:
    """The result of a command: text for people, and a JSON value for programs."""

    text: str
    data: Any


# -- data


def _arrays(file: Path, *names: str) -> list[Any] | None:
    """The arrays with these names in an .npz file; None if any is missing."""
    try:
        with file.open("rb") as opened, np.lib.npyio.NpzFile(opened, allow_pickle=False) as npz:
            arrays = [npz[name] for name in names] if {*names} <= {*npz.files} else None
    except Exception as error:  # whatever numpy, zipfile and zlib raise for damaged or too large files
        raise CommandError(f"{file} cannot be read as .npz: {error}") from error
    if not all(isinstance(array, np.ndarray) for array in arrays or []):
        raise CommandError(f"{file} cannot be read as .npz: it holds something else than arrays")
    return arrays


def _examples(path: Path, images: Path | None, part: str, labelled: bool = True) -> tuple[Any, Any, list[str]]:
    """Examples, their labels (None: unknown) and their names, from an .npz, a .csv or a folder of images.

    images: folder of the files that a .csv lists. part: "train" or "test", the suffix of the array names in an .npz.
    labelled: whether a .csv must have a label for each file.
    """
    if not path.exists():
        raise CommandError(f"{path} does not exist")
    _check_images(images, [path])
    if path.suffix.lower() == ".csv":
        if images is None:
            raise CommandError(f"{path} lists image files: give their folder with --images")
        listed, names, labels = images_in_csv(path, images, labelled=labelled)
        return listed, np.array(labels) if labelled else None, names
    if path.is_dir():
        files, classes = image_folder(path)
        return files, classes, [str(file) for file in files.paths]
    if path.suffix.lower() != ".npz":
        raise CommandError(f"{path} is not an .npz, a .csv or a folder of images")
    for x_name, y_name in ((f"x_{part}", f"y_{part}"), ("x", "y")):
        if arrays := _arrays(path, x_name):
            x, y = arrays[0], _arrays(path, y_name)
            if not x.shape:
                raise CommandError(f"{x_name} of {path} is a single value")
            return x, y[0] if y else None, [str(i) for i in range(len(x))]
    raise CommandError(f"{path} has neither x_{part} nor x")


def _check_images(images: Path | None, paths: Sequence[Path]) -> None:
    """CommandError if --images is used with anything but a .csv."""
    other = next((path for path in paths if path.suffix.lower() != ".csv"), None)
    if images is not None and other is not None:
        raise CommandError(
            f"--images gives the folder of files listed in a .csv, but {other} is not a .csv: leave it out"
        )


# -- commands


def fit(args: argparse.Namespace) -> Answer:
    if args.width is not None and args.begin_with:
        raise CommandError("--width and --begin-with exclude each other: --begin-with gives the first networks")
    data = user_path(args.data)
    x, y, _ = _examples(data, args.images, "train")
    if y is None:
        hint = ": a folder must have a sub-folder of images for each class" if data.is_dir() else ""
        raise CommandError(f"{data} holds no labels{hint}")
    limits = dict(_pair(text) for text in args.limit)
    test_set = _arrays(data, "x_test", "y_test") if data.suffix.lower() == ".npz" else None
    kind = morphnas.ImageRegressor if args.regression else morphnas.ImageClassifier
    estimator = kind(
        args.path,
        verbose=not args.quiet,
        resume="auto" if args.resume else False,
        overwrite=args.overwrite,
        search_type=args.search,
        searcher_args=None if args.width is None else {"default_model_width": args.width},
        max_trials=args.max_trials,
        search_patience=args.search_patience,
        random_state=args.seed,
        device=args.device,
        executor=args.executor,
        devices=args.devices,
        refit=not args.no_refit,
        axes=args.axes,
        augment=args.augment,
        image_size=args.image_size,
        ensemble=args.ensemble,
        metric=args.metric,
        limits=limits or None,
        initial_networks=[morphnas.load(run).network_ for run in args.begin_with] or None,
    )
    teacher = morphnas.load(args.teacher) if args.teacher else None
    weight = "balanced" if args.balanced else None
    estimator.fit(x, y, time_limit=args.time_limit, sample_weight=weight, teacher=teacher)
    run = estimator.load_searcher()
    best = run.trial(estimator.best_trial_)
    measure, metric = args.metric or ("R2" if args.regression else "accuracy"), _measure(estimator)
    result: dict[str, Any] = {"path": estimator.path_, "networks": len(run.trials), "best": best.id}
    scored = run.trial(run.trial(estimator.final_trial_).scored_by)  # its score is that of the model
    result |= {"final": estimator.final_trial_, "score": scored.score}
    result |= {f"validation_{measure}": None, f"test_{metric}": None}
    lines = [f"the run is in {estimator.path_}, its winner is network {best.id} of {len(run.trials)}"]
    if scored.outcome is not None and scored.outcome.metric is not None:
        where = "on its training data, as there are too few examples to hold any out"
        if scored.outcome.held_out:
            result[f"validation_{measure}"], where = scored.outcome.metric, "on the validation set"
        when = "" if estimator.final_trial_ == scored.id else f", as network {scored.id}, before its last training"
        lines.append(f"{measure} of the model {where}{when}: {metric_words(scored.outcome)}")
    if test_set is not None:
        try:
            result[f"test_{metric}"] = estimator.evaluate(*test_set)
            lines.append(f"the model on the test set: {estimator.format_metric(result[f'test_{metric}'])}")
        except ValueError as error:
            print(f"morphnas: warning: the model cannot be evaluated on the test set: {error}", file=sys.stderr)
    lines.append(f"for a report: morphnas report {estimator.path_}")
    return Answer("\n".join(lines), result)


def _pair(text: str) -> tuple[str, Any]:
    """Parse a limit, name=value; the morphs of morphs=... are separated by commas."""
    name, equals, value = text.partition("=")
    if not equals or name not in LIMITS:
        raise CommandError(f"--limit takes name=value, where name is one of {', '.join(LIMITS)}, not {text!r}")
    if name == "morphs":
        return name, tuple(value.split(","))
    try:
        return name, float(value)
    except ValueError:
        raise CommandError(f"--limit {name} needs a number, not {value!r}") from None


def evaluate(args: argparse.Namespace) -> Answer:
    estimator = morphnas.load(args.path)
    data = user_path(args.data)
    x, y, _ = _examples(data, args.images, "test")
    if y is None:
        raise CommandError(f"{data} holds no labels")
    value = estimator.evaluate(x, y)
    return Answer(
        f"{estimator.format_metric(value)} on {len(y):,} examples", {_measure(estimator): value, "examples": len(y)}
    )


def _measure(estimator: morphnas.ImageClassifier | morphnas.ImageRegressor) -> str:
    """Name of the metric that the estimator's `evaluate` returns."""
    default = "accuracy" if isinstance(estimator, morphnas.ImageClassifier) else "mean_squared_error"
    return str(estimator.metric or default)


def predict(args: argparse.Namespace) -> Answer:
    estimator = morphnas.load(args.path)
    files = [*map(user_path, args.files)]
    _check_images(args.images, files)
    if files and all(path.is_file() and path.suffix.lower() not in (".npz", ".csv") for path in files):
        x, names = Files(files), list(map(str, files))
    elif len(files) == 1:
        x, _, names = _examples(files[0], args.images, "test", labelled=False)
    else:
        missing = next((path for path in files if not path.exists()), None)
        raise CommandError(f"{missing} does not exist" if missing else "give one .npz, .csv or folder, or image files")
    if isinstance(estimator, morphnas.ImageRegressor):
        return _regression_answer(estimator.predict(x), names)
    probabilities = estimator.predict_proba(x)
    labels = estimator.classes_.tolist()
    if estimator.multilabel_:
        predictions = MultiLabelTarget(len(labels)).most_probable(probabilities)
        return _multi_label_answer(probabilities, predictions, names, labels)
    best = probabilities.argmax(1)
    rows = [(name, labels[i], f"{row[i]:.6f}") for name, i, row in zip(names, best, probabilities, strict=True)]
    text = _csv(["example", "label", "probability"], rows)
    examples = [
        {"example": name, "label": _plain(labels[i]), "probability": float(row[i]), "probabilities": row.tolist()}
        for name, i, row in zip(names, best, probabilities, strict=True)
    ]
    return Answer(text, {"labels": [_plain(label) for label in labels], "examples": examples})


def _multi_label_answer(
    probabilities: NDArray[np.float64],
    predictions: NDArray[np.int64],
    names: Sequence[str],
    labels: Sequence[Any],
) -> Answer:
    """Probabilities and predictions (0 or 1) of the labels, both (n, k), of examples with these names."""
    predicted = [[label for label, positive in zip(labels, row, strict=True) if positive] for row in predictions]
    head = ["example", "tags", *(f"probability_{label}" for label in labels)]
    separator = "; " if isinstance(labels[0], str) else " "  # names may contain spaces
    table = list(zip(names, predicted, probabilities, strict=True))
    rows = [(name, separator.join(map(str, tags)), *(f"{value:.6f}" for value in row)) for name, tags, row in table]
    examples = [{"example": name, "tags": tags, "probabilities": row.tolist()} for name, tags, row in table]
    return Answer(_csv(head, rows), {"examples": examples})


def _regression_answer(predictions: NDArray[np.float64], names: Sequence[str]) -> Answer:
    """Predictions (n,) or (n, k) of examples with these names."""
    table = predictions.reshape(len(names), -1)
    head = ["amount"] if table.shape[1] == 1 else [f"amount_{i}" for i in range(table.shape[1])]
    rows = [(name, *(f"{value:.7g}" for value in row)) for name, row in zip(names, table, strict=True)]
    examples = [{"example": name, "amounts": row.tolist()} for name, row in zip(names, table, strict=True)]
    return Answer(_csv(["example", *head], rows), {"examples": examples})


def _csv(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    minimal = csv.writer(text, lineterminator="\n")
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in (head, *rows):  # the minimal one does not quote "\r", which readers take for the end of a line
        (quoted if any("\r" in str(value) for value in row) else minimal).writerow(row)
    return text.getvalue().rstrip("\n")


def _plain(label: Any) -> Any:
    """A label as a JSON value; its text if it is of another type."""
    return label if isinstance(label, (str, int, float, bool, type(None))) else str(label)


def info(args: argparse.Namespace) -> Answer:
    if args.path is None:
        extras = {name: importlib.util.find_spec(package) is not None for name, package in _EXTRAS.items()}
        about = machine() | {"extras": extras}
        lines = [f"{name}: {value}" for name, value in about.items() if name not in ("gpus", "extras")]
        lines.append(f"GPUs: {', '.join(about['gpus']) or 'none'}")
        lines.append("extras: " + ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in extras.items()))
        return Answer("\n".join(lines), about)
    run = morphnas.load_run(args.path)
    if args.networks < 1:
        raise CommandError(f"--networks must be at least 1, not {args.networks}")
    summary = results_summary(run, args.networks)
    keys = ("estimator", "time_limit", "seed", "data", "decides", "versions", "device", "best", "final", "expected")
    about = {key: run.about[key] for key in keys if key in run.about}
    return Answer(f"{about_words(run.about)}\n{summary}", about | {"path": str(run.path), "networks": run.history})


def explain(args: argparse.Namespace) -> Answer:
    explanation = morphnas.explain(morphnas.load_run(args.path), args.id)
    return Answer(str(explanation), explanation.to_json())


def report(args: argparse.Namespace) -> Answer:
    if args.live is not None and not 0 < args.live <= LONGEST_PAUSE:
        raise CommandError(f"--live needs seconds above 0, at most {LONGEST_PAUSE:,}, not {args.live:g}")
    run = morphnas.load_run(args.path)
    while args.live is not None and is_being_written(run.path):
        file = morphnas.write_report(run, args.out, reload=args.live)
        print(f"morphnas: {file}, {len(run.trials)} networks; Ctrl-C ends the updates", file=sys.stderr)
        time.sleep(args.live)
        run = morphnas.load_run(args.path)
    file = morphnas.write_report(run, args.out)
    return Answer(str(file), {"file": str(file), "networks": len(run.trials)})


def draw(args: argparse.Namespace) -> Answer:
    run = morphnas.load_run(args.path)
    single = args.id is not None or args.against is not None or args.no_fold
    if args.tree and single:
        raise CommandError("--tree draws all networks: --id, --against and --no-fold are for a single one")
    if args.lineage and (args.against is not None or args.no_fold):
        raise CommandError("--lineage draws how a network came about: --against and --no-fold are for a single network")
    if args.out is None:
        if args.tree or args.lineage or single:
            raise CommandError("give the file to draw to with --out")
        files = morphnas.visualize(run)
    elif args.tree:
        files = [morphnas.draw(run, args.out)]
    else:
        trial = run.trial(run.get_best_model_id() if args.id is None else args.id)
        parent = None if args.against is None else run.trial(args.against)
        what = lineage(run.trials, trial) if args.lineage else trial
        files = [morphnas.draw(what, args.out, parent, fold=not args.no_fold)]
    return Answer("\n".join(map(str, files)), {"files": [str(file) for file in files]})


def compare(args: argparse.Namespace) -> Answer:
    comparison = morphnas.compare_runs(args.paths)
    if args.svg is not None:
        comparison.draw(args.svg)
    return Answer(str(comparison), comparison.to_json())


def export(args: argparse.Namespace) -> Answer:
    exported = morphnas.export(args.path, args.out, args.overwrite, args.id)
    return Answer(str(exported), {"files": [str(file) for file in exported.files], "error": exported.error})


def bundle(args: argparse.Namespace) -> Answer:
    file = morphnas.bundle(args.path, args.out)
    size = file.stat().st_size
    return Answer(f"{file}: {size:,} bytes; look through it before you send it", {"file": str(file), "bytes": size})
