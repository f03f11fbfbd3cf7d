"""The command line: `morphnas fit | evaluate | predict | info | explain | report | draw | compare | export | bundle`.

Every command prints text, or with --json one JSON value, to standard output; progress, warnings and errors go to
standard error. The exit status is 0 on success, 1 after an error, which is described in one line, 2 after wrong usage,
130 after Ctrl-C without a model, 143 after SIGTERM.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import morphnas

if TYPE_CHECKING:
    from morphnas.commands import Answer

INTERRUPTED = 130
SEARCHES = ("bayesian", "climbing", "evolution", "greedy", "grid", "halving", "pareto", "random")
"""The names in `morphnas.search.SEARCHERS`, which takes seconds to load."""
LIMITS = (
    "max_params", "max_flops", "max_work", "max_depth", "max_width", "max_activation_bytes", "max_memory",
    "max_latency_ms", "morphs",
)  # fmt: skip
"""The fields of `morphnas.Limits` that users set."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status, as described in the module docstring."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="morphnas: %(levelname)s: %(message)s", stream=sys.stderr)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            commands = importlib.import_module("morphnas.commands")  # takes seconds, which --help does not need
            answer: Answer = getattr(commands, args.command)(args)
        print(json.dumps(answer.data, indent=2, allow_nan=False) if args.json else answer.text, flush=True)
    except KeyboardInterrupt:
        print("morphnas: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ImportError, RuntimeError, MemoryError) as error:
        if args.debug:
            raise
        message = re.sub(r'\b(overwrite|resume)=(True|"auto")', r"--\1", " ".join(str(error).split()))
        print(f"morphnas: error: {message or repr(error)}", file=sys.stderr)
        return 1
    return 0


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"morphnas: warning: {message}", file=sys.stderr)


def size(text: str) -> tuple[int, int]:
    """Parse "side" or "HEIGHTxWIDTH" into height and width."""
    height, *width = text.split("x", 1)
    return int(height), int(*width or [height])


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON value instead of text")
    common.add_argument("--debug", action="store_true", help="show the full traceback of an error")
    parser = argparse.ArgumentParser(
        prog="morphnas",
        description="Finds neural networks for images within the time you give it.",
        epilog="Exit status: 0 success, 1 error (with a message), 2 wrong usage, 130 Ctrl-C, 143 SIGTERM.",
    )
    parser.add_argument("--version", action="version", version=f"morphnas {morphnas.__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, about: str, *examples: str) -> Any:
        text = "examples:\n" + "\n".join(f"  morphnas {example}" for example in examples)
        sub = commands.add_parser(
            name, help=about, description=about, epilog=text, parents=[common],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        sub.set_defaults(command=name)
        return sub

    def data(sub: Any, text: str) -> None:
        sub.add_argument("data", type=Path, help=text)
        sub.add_argument("--images", type=Path, metavar="FOLDER", help="folder of the files that a .csv lists")

    kinds = "an .npz, a folder with a sub-folder of images per class, or a .csv of file names and labels"
    sub = command("fit", "Search for a network, and train the best one.",
                  "fit mnist.npz --time-limit 600 --path run", "fit photos --time-limit 3600 --path run --resume",
                  "fit labels.csv --images photos --limit max_params=100000 --limit morphs=deeper,wider")  # fmt: skip
    data(sub, f"{kinds}; an .npz has x_train and y_train, or x and y; x_test and y_test are evaluated at the end")
    sub.add_argument(
        "--time-limit", type=float, default=600, metavar="SECONDS", help="limit of the whole fit (default: 600)"
    )
    sub.add_argument("--path", default="run", help="folder of the run (default: run)")
    sub.add_argument("--resume", action="store_true", help="continue the run in the folder, if there is one")
    sub.add_argument("--overwrite", action="store_true", help="replace the run in the folder")
    sub.add_argument(
        "--image-size", type=size, metavar="PIXELS", help="side, or HEIGHTxWIDTH, that images are resized to"
    )
    sub.add_argument(
        "--augment",
        action=argparse.BooleanOptionalAction,
        help="always shift training images, or never augment them (default: what scores better)",
    )
    sub.add_argument("--axes", type=int, choices=(1, 2, 3), help="1: sequences, 2: images, 3: volumes")
    sub.add_argument(
        "--balanced",
        action="store_true",
        help="give all classes equal weight (not for multi-label data or regression)",
    )
    sub.add_argument("--regression", action="store_true", help="predict numbers instead of classes")
    sub.add_argument("--search-patience", type=int, help="end the search after so many trainings without improvement")
    sub.add_argument("--metric", help="a scikit-learn scorer to choose networks by (default: log loss)")
    sub.add_argument("--search", choices=SEARCHES, help="search strategy (default: bayesian)")
    sub.add_argument("--max-trials", type=int, metavar="N", help="end the search after so many trainings")
    sub.add_argument("--seed", type=int, help="random seed, to repeat a search")
    sub.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    sub.add_argument(
        "--executor", help="train several networks at a time: process, ray, or the address of a Ray cluster"
    )
    sub.add_argument("--devices", type=int, metavar="N", help="number of networks at a time")
    sub.add_argument("--width", type=int, metavar="N", help="width of the first networks")
    sub.add_argument("--limit", action="append", default=[], metavar="NAME=VALUE", help=", ".join(LIMITS))
    sub.add_argument(
        "--begin-with", type=Path, nargs="+", default=[], metavar="RUN", help="start from the networks of earlier runs"
    )
    sub.add_argument("--teacher", type=Path, metavar="RUN", help="also learn the predictions of an earlier run's model")
    sub.add_argument(
        "--ensemble", type=int, default=1, help="maximum number of networks in the final model (default: 1)"
    )
    sub.add_argument("--no-refit", action="store_true", help="do not train the winner longer at the end")
    sub.add_argument("--quiet", action="store_true", help="show no progress")

    sub = command(
        "evaluate",
        "Measure how good a run's model is.",
        "evaluate run mnist.npz",
    )
    sub.add_argument("path", help="folder of a run")
    data(sub, f"{kinds}; an .npz has x_test and y_test, or x and y")

    sub = command("predict", "Predict labels with their probabilities, or numbers, as CSV or JSON.",
                  "predict run cat.png dog.png", "predict run mnist.npz --json > labels.json")  # fmt: skip
    sub.add_argument("path", help="folder of a run")
    sub.add_argument("files", type=Path, nargs="+", help=f"image files, or {kinds}; an .npz has x_test, or x")
    sub.add_argument("--images", type=Path, metavar="FOLDER", help="folder of the files that a .csv lists")

    sub = command("info", "Describe a run or, without one, this machine.", "info run --networks 20", "info")
    sub.add_argument("path", nargs="?", help="folder of a run")
    sub.add_argument(
        "--networks", type=int, default=10, metavar="N", help="number of best networks to list (default: 10)"
    )

    sub = command("explain", "Explain a network: its lineage, gains and predicted scores.", "explain run --id 7")
    sub.add_argument("path", help="folder of a run")
    sub.add_argument("--id", type=int, help="id of the network (default: the winner)")

    sub = command("report", "Write the report of a run, one HTML file.",
                  "report run", "report run --live 10 --out search.html")  # fmt: skip
    sub.add_argument("path", help="folder of a run")
    sub.add_argument("--out", metavar="FILE", help="the report (default: report.html in the run's folder)")
    sub.add_argument(
        "--live", type=float, metavar="SECONDS", help="rewrite it at this interval until the fit has ended"
    )

    sub = command("draw", "Draw networks with Graphviz: .pdf, .svg, .png, .dot.", "draw run",
                  "draw run --id 7 --against 3 --out change.svg", "draw run --tree --out tree.png")  # fmt: skip
    sub.add_argument("path", help="folder of a run")
    sub.add_argument("--out", metavar="FILE", help="one drawing (default: all networks and the tree, as .pdf)")
    sub.add_argument("--id", type=int, help="id of the network (default: the winner)")
    sub.add_argument("--against", type=int, metavar="ID", help="highlight what differs from this network")
    sub.add_argument("--no-fold", action="store_true", help="draw repeated layers in full")
    which = sub.add_mutually_exclusive_group()
    which.add_argument("--tree", action="store_true", help="all networks, as a tree of parents and children")
    which.add_argument("--lineage", action="store_true", help="the network's ancestors")

    sub = command("compare", "Compare runs on the same data, and predict the result of another.",
                  "compare run1 run2 run3 --svg curves.svg")  # fmt: skip
    sub.add_argument("paths", nargs="+", metavar="path", help="folders of runs")
    sub.add_argument("--svg", metavar="FILE", help="draw the best score so far over time")

    sub = command("export", "Write the model for use without morphnas, and check it.",
                  "export run --out digits.py", "export run --out digits.onnx")  # fmt: skip
    sub.add_argument("path", help="folder of a run")
    sub.add_argument("--out", required=True, metavar="FILE", help=".py (with .safetensors beside it), .pt2 or .onnx")
    sub.add_argument("--id", type=int, help="another network of the run (default: the final model)")
    sub.add_argument("--overwrite", action="store_true", help="replace existing files")

    sub = command("bundle", "Write a zip file for a bug report, without data, labels or weights.",
                  "bundle run --out run.zip")  # fmt: skip
    sub.add_argument("path", help="folder of a run")
    sub.add_argument("--out", required=True, metavar="FILE", help=".zip; an earlier bundle is replaced")
    return parser
