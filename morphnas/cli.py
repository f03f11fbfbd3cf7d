"""The command line: `morphnas fit | evaluate | predict | info | explain | report | draw | compare | export`.

Every command prints text for people, or with --json one JSON value, to the standard output; progress, warnings and
errors go to the standard error. It ends with 0 when all is well, 1 with one line that says what was wrong, 2 when it
was called wrongly, 130 after Ctrl-C where there is no model to show for it, 143 after SIGTERM.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import io
import json
import logging
import os
import platform
import sys
import time
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import morphnas
from morphnas.estimators.files import Files, folder, load_image_dataset
from morphnas.estimators.settings import LIMITS
from morphnas.estimators.targets import Indicators
from morphnas.report.page import about_words
from morphnas.report.summary import results_summary
from morphnas.report.words import metric_words
from morphnas.run.store import versions
from morphnas.search import SEARCHERS
from morphnas.search.trial import lineage

INTERRUPTED = 130
_EXTRAS = {"images": "PIL", "data frames": "pandas", "ray": "ray", "onnx": "onnxscript", "drawing": "graphviz"}


class _Wrong(ValueError):
    """What was asked for cannot be; the message says why."""


@dataclass(frozen=True)
class _Answer:
    """What a command has to say: to people, and to programs."""

    text: str
    data: Any


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and say how it ended, see the module."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="morphnas: %(levelname)s: %(message)s", stream=sys.stderr)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            answer = args.run(args)
        print(json.dumps(answer.data, indent=2, allow_nan=False) if args.json else answer.text, flush=True)
    except KeyboardInterrupt:
        print("morphnas: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        if args.debug:
            raise
        print(f"morphnas: error: {' '.join(str(error).split()) or repr(error)}", file=sys.stderr)
        return 1
    return 0


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"morphnas: warning: {message}", file=sys.stderr)


# -- data


def _arrays(file: Path, part: str) -> tuple[Any, Any]:
    """x and y (None: there is none) of a part, "train" or "test", of an .npz file."""
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as npz:
            names = [(f"x_{part}", f"y_{part}"), ("x", "y")]
            for x, y in names:
                if x in npz.files:
                    return npz[x], npz[y] if y in npz.files else None
            raise _Wrong(f"{file} has neither x_{part} nor x, only {', '.join(npz.files) or 'nothing'}")
    except _Wrong:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise _Wrong(f"{file} cannot be read as .npz: {error}") from error


def _examples(args: argparse.Namespace, part: str) -> tuple[Any, Any, list[str]]:
    """Examples, their labels (None: unknown) and their names, of an .npz, a .csv or a folder of images."""
    path = args.data
    if not path.exists():
        raise _Wrong(f"{path} is not there")
    if path.suffix.lower() == ".csv":
        if args.images is None:
            raise _Wrong(f"{path} names image files: say with --images which folder they are in")
        x, y = load_image_dataset(path, args.images)
        return x, y, [str(i) for i in range(len(y))]
    if path.is_dir():
        files, labels = folder(path)
        return files[:], labels, [str(file) for file in files.paths]
    if path.suffix.lower() == ".npz":
        x, y = _arrays(path, part)
        return x, y, [str(i) for i in range(len(x))]
    raise _Wrong(f"{path} is no .npz, no .csv and no folder of images")


# -- commands


def _fit(args: argparse.Namespace) -> _Answer:
    x, y, _ = _examples(args, "train")
    if y is None:
        raise _Wrong(f"{args.data} holds no labels")
    limits = dict(_pair(text) for text in args.limit)
    kind = morphnas.ImageRegressor if args.regression else morphnas.ImageClassifier
    estimator = kind(
        args.path,
        verbose=not args.quiet,
        resume="auto" if args.resume else False,
        overwrite=args.overwrite,
        search_type=args.search,
        searcher_args={"default_model_width": args.width} if args.width else None,
        max_trials=args.max_trials,
        random_state=args.seed,
        device=args.device,
        executor=args.executor,
        devices=args.devices,
        refit=not args.no_refit,
        axes=args.axes,
        ensemble=args.ensemble,
        limits=limits or None,
        initial_networks=[morphnas.load(run).network_ for run in args.begin_with] or None,
    )
    teacher = morphnas.load(args.teacher) if args.teacher else None
    weight = "balanced" if args.balanced else None
    estimator.fit(x, y, time_limit=args.time_limit, sample_weight=weight, teacher=teacher)
    run = estimator.load_searcher()
    best = run.trial(estimator.best_trial_)
    measure, tested = ("R2", "test_mean_squared_error") if args.regression else ("accuracy", "test_accuracy")
    found: dict[str, Any] = {"path": estimator.path_, "networks": len(run.trials), "best": best.id}
    found |= {"final": estimator.final_trial_, "score": best.score, f"validation_{measure}": None, tested: None}
    told = [f"the run is in {estimator.path_}, its winner is network {best.id} of {len(run.trials)}"]
    if best.outcome is not None and best.outcome.metric is not None:
        found[f"validation_{measure}"] = best.outcome.metric
        told.append(f"{measure} of the winner on the validation part: {metric_words(best.outcome)}")
    if args.data.suffix.lower() == ".npz":
        with np.load(args.data, allow_pickle=False) as npz:
            if {"x_test", "y_test"} <= set(npz.files):
                found[tested] = estimator.evaluate(npz["x_test"], npz["y_test"])
                told.append(f"the model on the test part: {estimator.words(found[tested])}")
    told.append(f"see it: morphnas report {estimator.path_}")
    return _Answer("\n".join(told), found)


def _pair(text: str) -> tuple[str, Any]:
    """A limit, name=value; morphs are separated by commas."""
    name, equals, value = text.partition("=")
    if not equals or name not in LIMITS:
        raise _Wrong(f"--limit takes name=value, where name is one of {', '.join(LIMITS)}, not {text!r}")
    if name == "morphs":
        return name, tuple(value.split(","))
    fraction = name == "max_latency_ms"
    try:
        return name, float(value) if fraction else int(value)
    except ValueError:
        raise _Wrong(f"--limit {name} needs a {'' if fraction else 'whole '}number, not {value!r}") from None


def _evaluate(args: argparse.Namespace) -> _Answer:
    estimator = morphnas.load(args.path)
    x, y, _ = _examples(args, "test")
    if y is None:
        raise _Wrong(f"{args.data} holds no labels")
    value = estimator.evaluate(x, y)
    measure = "accuracy" if isinstance(estimator, morphnas.ImageClassifier) else "mean_squared_error"
    return _Answer(f"{estimator.words(value)} on {len(y):,} examples", {measure: value, "examples": len(y)})


def _predict(args: argparse.Namespace) -> _Answer:
    estimator = morphnas.load(args.path)
    if args.files and all(path.is_file() and path.suffix.lower() not in (".npz", ".csv") for path in args.files):
        x, names = Files(args.files)[:], list(map(str, args.files))
    elif len(args.files) == 1:
        args.data = args.files[0]
        x, _, names = _examples(args, "test")
    else:
        missing = next((path for path in args.files if not path.exists()), None)
        raise _Wrong(f"{missing} is not there" if missing else "give one .npz, .csv or folder, or image files")
    if isinstance(estimator, morphnas.ImageRegressor):
        return _amounts(estimator.predict(x), names)
    chances = estimator.predict_proba(x)
    labels = estimator.classes_.tolist()
    if estimator.multilabel_:
        return _tags(chances, Indicators(len(labels)).likeliest(chances), names)
    best = chances.argmax(1)
    rows = [(name, labels[i], f"{row[i]:.6f}") for name, i, row in zip(names, best, chances, strict=True)]
    text = _csv(["example", "label", "probability"], rows)
    told = [
        {"example": name, "label": _plain(labels[i]), "probability": float(row[i]), "probabilities": row.tolist()}
        for name, i, row in zip(names, best, chances, strict=True)
    ]
    return _Answer(text, {"labels": [_plain(label) for label in labels], "examples": told})


def _tags(chances: NDArray[np.float64], said: NDArray[np.int64], names: Sequence[str]) -> _Answer:
    """Predictions (n, k) of 0 and 1 of examples with these names, and their probabilities."""
    likely = [np.flatnonzero(row).tolist() for row in said]
    head = ["example", "tags", *(f"probability_{i}" for i in range(chances.shape[1]))]
    every = list(zip(names, likely, chances, strict=True))
    rows = [(name, " ".join(map(str, tags)), *(f"{chance:.6f}" for chance in row)) for name, tags, row in every]
    told = [{"example": name, "tags": tags, "probabilities": row.tolist()} for name, tags, row in every]
    return _Answer(_csv(head, rows), {"examples": told})


def _amounts(amounts: NDArray[np.float64], names: Sequence[str]) -> _Answer:
    """Predictions (n,) or (n, k) of examples with these names."""
    table = amounts.reshape(len(names), -1)
    head = ["amount"] if table.shape[1] == 1 else [f"amount_{i}" for i in range(table.shape[1])]
    rows = [(name, *(f"{value:.7g}" for value in row)) for name, row in zip(names, table, strict=True)]
    told = [{"example": name, "amounts": row.tolist()} for name, row in zip(names, table, strict=True)]
    return _Answer(_csv(["example", *head], rows), {"examples": told})


def _csv(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([head, *rows])
    return text.getvalue().rstrip("\n")


def _plain(label: Any) -> Any:
    return label if isinstance(label, (str, int, float, bool, type(None))) else str(label)


def _info(args: argparse.Namespace) -> _Answer:
    if args.path is None:
        import torch

        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        extras = {name: importlib.util.find_spec(package) is not None for name, package in _EXTRAS.items()}
        about: dict[str, Any] = {"morphnas": morphnas.__version__, **versions(), "system": platform.platform()}
        about |= {"processors": os.cpu_count(), "gpus": gpus, "extras": extras}
        lines = [f"{name}: {value}" for name, value in about.items() if name not in ("gpus", "extras")]
        lines.append(f"GPUs: {', '.join(gpus) or 'none'}")
        lines.append("extras: " + ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in extras.items()))
        return _Answer("\n".join(lines), about)
    run = morphnas.load_run(args.path)
    summary = results_summary(run, args.networks)
    keys = ("estimator", "time_limit", "seed", "data", "decides", "versions", "device", "best", "final", "expected")
    about = {key: run.about[key] for key in keys if key in run.about}
    return _Answer(f"{about_words(run.about)}\n{summary}", about | {"path": str(run.path), "networks": run.history})


def _explain(args: argparse.Namespace) -> _Answer:
    found = morphnas.explain(morphnas.load_run(args.path), args.id)
    return _Answer(str(found), found.to_json())


def _report(args: argparse.Namespace) -> _Answer:
    if args.live is not None and not args.live > 0:
        raise _Wrong(f"--live needs seconds above 0, not {args.live:g}")
    run = morphnas.load_run(args.path)
    while args.live is not None and _goes_on(run):
        file = morphnas.write_report(run, args.out, reload=args.live)
        print(f"morphnas: {file}, {len(run.trials)} networks; Ctrl-C ends this", file=sys.stderr)
        time.sleep(args.live)
        run = morphnas.load_run(args.path)
    file = morphnas.write_report(run, args.out)
    return _Answer(str(file), {"file": str(file), "networks": len(run.trials)})


def _goes_on(run: morphnas.Run) -> bool:
    """Whether its fit has not come to an end yet."""
    settled = run.about.get("settled")
    return not run.trials or not isinstance(settled, int) or settled < max(trial.id for trial in run.trials)


def _draw(args: argparse.Namespace) -> _Answer:
    run = morphnas.load_run(args.path)
    if args.out is None:
        if args.tree or args.lineage or args.id is not None:
            raise _Wrong("say with --out which file to draw to")
        files = morphnas.visualize(run)
    elif args.tree:
        files = [morphnas.draw(run, args.out)]
    else:
        trial = run.trial(run.get_best_model_id() if args.id is None else args.id)
        parent = None if args.against is None else run.trial(args.against)
        what = lineage(run.trials, trial) if args.lineage else trial
        files = [morphnas.draw(what, args.out, parent, fold=not args.no_fold)]
    return _Answer("\n".join(map(str, files)), {"files": [str(file) for file in files]})


def _compare(args: argparse.Namespace) -> _Answer:
    found = morphnas.compare_runs(args.paths)
    if args.svg is not None:
        found.draw(args.svg)
    return _Answer(str(found), found.to_json())


def _export(args: argparse.Namespace) -> _Answer:
    done = morphnas.export(args.path, args.out, args.overwrite, args.id)
    return _Answer(str(done), {"files": [str(file) for file in done.files], "error": done.error})


# -- arguments


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="one JSON value instead of text")
    common.add_argument("--debug", action="store_true", help="the whole traceback of an error")
    parser = argparse.ArgumentParser(
        prog="morphnas",
        description="Finds neural networks for images within the time you give it.",
        epilog="Exit status: 0 all is well, 1 an error, which is told, 2 called wrongly, 130 Ctrl-C, 143 SIGTERM.",
    )
    parser.add_argument("--version", action="version", version=f"morphnas {morphnas.__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, run: Callable[[argparse.Namespace], _Answer], about: str, *examples: str) -> Any:
        text = "examples:\n" + "\n".join(f"  morphnas {example}" for example in examples)
        made = commands.add_parser(
            name, help=about, description=about, epilog=text, parents=[common],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        made.set_defaults(run=run)
        return made

    def data(made: Any, words: str) -> None:
        made.add_argument("data", type=Path, help=words)
        made.add_argument("--images", type=Path, metavar="FOLDER", help="where the files that a .csv names are")

    kinds = "an .npz, a folder with a sub-folder of images per class, or a .csv of file names and labels"
    made = command("fit", _fit, "Search for a network, and train the best one.",
                   "fit mnist.npz --time-limit 600 --path run", "fit photos --time-limit 3600 --path run --resume",
                   "fit labels.csv --images photos --limit max_params=100000 --limit morphs=deeper,wider")  # fmt: skip
    data(made, f"{kinds}; of an .npz x_train and y_train, or x and y; x_test and y_test are measured at the end")
    made.add_argument("--time-limit", type=float, default=600, metavar="SECONDS", help="everything included (600)")
    made.add_argument("--path", default="run", help="the folder of the run (run)")
    made.add_argument("--resume", action="store_true", help="go on with the run in the folder, if there is one")
    made.add_argument("--overwrite", action="store_true", help="replace the run in the folder")
    made.add_argument("--axes", type=int, choices=(1, 2, 3), help="of examples: spans, images, volumes")
    made.add_argument(
        "--balanced",
        action="store_true",
        help="classes count alike, however many examples they have (not tags, not amounts)",
    )
    made.add_argument("--regression", action="store_true", help="labels are amounts, to be predicted as numbers")
    made.add_argument("--search", choices=sorted(SEARCHERS), default="bayesian", help="how to search (bayesian)")
    made.add_argument("--max-trials", type=int, metavar="N", help="end the search after so many networks")
    made.add_argument("--seed", type=int, help="for the same search again")
    made.add_argument("--device", help="cpu, cuda, cuda:1 (a GPU if there is one)")
    made.add_argument("--executor", help="process, ray, or the address of a Ray cluster: several networks at a time")
    made.add_argument("--devices", type=int, metavar="N", help="how many at a time")
    made.add_argument("--width", type=int, metavar="N", help="first width of the networks to start from")
    made.add_argument("--limit", action="append", default=[], metavar="NAME=VALUE", help=", ".join(LIMITS))
    made.add_argument(
        "--begin-with", type=Path, nargs="+", default=[], metavar="RUN", help="start from the networks of earlier runs"
    )
    made.add_argument("--teacher", type=Path, metavar="RUN", help="agree with an earlier run's model as well as with y")
    made.add_argument("--ensemble", type=int, default=1, help="networks of the final model, at most (default: 1)")
    made.add_argument("--no-refit", action="store_true", help="do not train the winner longer at the end")
    made.add_argument("--quiet", action="store_true", help="no progress")

    made = command(
        "evaluate",
        _evaluate,
        "Measure how good a run's model is.",
        "evaluate run mnist.npz",
    )
    made.add_argument("path", help="the folder of a run")
    data(made, f"{kinds}; of an .npz x_test and y_test, or x and y")

    made = command("predict", _predict, "Predict labels or tags with their probabilities, or amounts, as CSV or JSON.",
                   "predict run cat.png dog.png", "predict run mnist.npz --json > labels.json")  # fmt: skip
    made.add_argument("path", help="the folder of a run")
    made.add_argument("files", type=Path, nargs="+", help=f"image files, or {kinds}; of an .npz x_test, or x")
    made.add_argument("--images", type=Path, metavar="FOLDER", help="where the files that a .csv names are")

    made = command("info", _info, "What is in a run; without one, of this machine.", "info run --networks 20", "info")
    made.add_argument("path", nargs="?", help="the folder of a run")
    made.add_argument("--networks", type=int, default=10, metavar="N", help="of the best networks (10)")

    made = command("explain", _explain, "Why a network: lineage, gains, what was expected.", "explain run --id 7")
    made.add_argument("path", help="the folder of a run")
    made.add_argument("--id", type=int, help="of the network (the winner)")

    made = command("report", _report, "Write the page of a run, one HTML file.",
                   "report run", "report run --live 10 --out search.html")  # fmt: skip
    made.add_argument("path", help="the folder of a run")
    made.add_argument("--out", metavar="FILE", help="the page (report.html in the run's folder)")
    made.add_argument("--live", type=float, metavar="SECONDS", help="write it anew so often until the fit has ended")

    made = command("draw", _draw, "Draw networks by Graphviz: .pdf, .svg, .png, .dot.", "draw run",
                   "draw run --id 7 --against 3 --out change.svg", "draw run --tree --out tree.png")  # fmt: skip
    made.add_argument("path", help="the folder of a run")
    made.add_argument("--out", metavar="FILE", help="one drawing; without it all networks and the tree, as .pdf")
    made.add_argument("--id", type=int, help="of the network (the winner)")
    made.add_argument("--against", type=int, metavar="ID", help="show what differs from this network")
    made.add_argument("--no-fold", action="store_true", help="draw repeated layers as often as they are")
    which = made.add_mutually_exclusive_group()
    which.add_argument("--tree", action="store_true", help="all networks and who grew from whom")
    which.add_argument("--lineage", action="store_true", help="the network's ancestors")

    made = command("compare", _compare, "Compare runs on the same data: would another find the same?",
                   "compare run1 run2 run3 --svg curves.svg")  # fmt: skip
    made.add_argument("paths", nargs="+", metavar="path", help="folders of runs")
    made.add_argument("--svg", metavar="FILE", help="draw the best so far over time")

    made = command("export", _export, "Write the model for use without morphnas, and check it.",
                   "export run --out digits.py", "export run --out digits.onnx")  # fmt: skip
    made.add_argument("path", help="the folder of a run")
    made.add_argument("--out", required=True, metavar="FILE", help=".py (with .safetensors beside it), .pt2 or .onnx")
    made.add_argument("--id", type=int, help="of another network of the run (the model)")
    made.add_argument("--overwrite", action="store_true", help="replace what is there")
    return parser
