"""Test accuracy of `ImageClassifier.fit` on few examples: sequences, or a part of an image data set.

    pip download --no-deps aeon==1.6.0  # a wheel that contains sequences of the UCR and UEA archives
    python benchmarks/few.py --data aeon-1.6.0-py3-none-any.whl --time-limit 30 --seeds 3 [--python venv/bin/python]
    python benchmarks/few.py --data aeon-1.6.0-py3-none-any.whl --only OSULeaf ACSF1 --variants fit "60 epochs"
    python benchmarks/few.py --data fashion_mnist.npz --examples 100 300 --seeds 3 --variants fit "60 epochs"
    python benchmarks/few.py --pace

--data: a wheel or .zip with files NAME_TRAIN.ts and NAME_TEST.ts, of which all data sets with sequences of equal length
and no missing values are used; or an .npz with x_train, y_train, x_test, y_test, of which --examples random training
images (another draw for each seed) and 3,000 random test images are used; without it sequences of noise with a burst
anywhere, whose frequency is the class. Contenders, in turns within a seed: the variants of `fit`, a network written by
hand that trains for the same time (on sequences the fully convolutional network of Wang, Yan and Oates 2017,
arXiv:1611.06455, on images `handwritten.py`), and on sequences, with the --python of an environment with aeon 1.6,
MiniRocket (Dempster, Schmidt and Webb 2021, arXiv:2012.08791), which takes as long as it takes. Variants: "fit" has no
settings, the others undo one choice. Appends to results/few.json the test accuracies, their mean and standard error.
--pace instead measures sequences per second of plain networks on 251 values, in float32 and in bfloat16, in turns: the
median of 37 steps each, and the quartiles of the ratios.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import statistics
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args
from unittest.mock import patch

import handwritten
import numpy as np
import torch
from machine import append, mean_accuracy, npz
from torch import nn
from torch.nn import functional as F

import morphnas
from morphnas.graph import cnn, starters, to_module
from morphnas.run import final, plan, search, work
from morphnas.run.plan import default_recipe
from morphnas.train.augment import Draw
from morphnas.train.data import Examples, Task
from morphnas.train.goal import Classification
from morphnas.train.recipe import Precision
from morphnas.train.step import Step

RESULTS = Path(__file__).parent / "results" / "few.json"
TEST_IMAGES = 3000
VARIANTS: dict[str, tuple[tuple[Any, str, Any], ...]] = {
    "flattened": ((starters, "_MAX_FLATTENED", {1: 64, 2: 64, 3: 64}),),
    "60 epochs": ((final, "FEW_EXAMPLES", 1),),
    "6 epochs per child": ((plan, "MIN_STEPS", 1),),
    "flips by held-out examples": ((work, "MIN_MIRRORED", 1), (search, "MAX_FLIP_SLACK", 1.0)),
    "narrow probe": ((plan, "PROBE_WIDTHS", {1: 16, 2: 16, 3: 16}),),
}
"""What a variant patches: modules, constants and values."""

Data = tuple[Any, Any, Any, Any]
"""x_train, y_train, x_test, y_test; sequences (n, length, channels)."""
Source = Callable[[int], Data]
"""The data for a seed."""


@contextmanager
def patched(variant: str) -> Iterator[None]:
    with ExitStack() as stack:
        for target in VARIANTS.get(variant, ()):
            stack.enter_context(patch.object(*target))
        yield


# -- data


def read_ts(text: str) -> tuple[Any, Any] | None:
    """The sequences (n, length, channels) and labels of a .ts file; None if lengths differ or values are missing."""
    rows = [line.strip() for line in text[text.lower().index("@data") :].splitlines()[1:] if line.strip()]
    try:
        parts = [[[float(v) for v in channel.split(",")] for channel in row.split(":")[:-1]] for row in rows]
        x = np.array(parts, dtype=np.float32).transpose(0, 2, 1)
    except ValueError:
        return None
    return (x, np.array([row.rpartition(":")[2] for row in rows])) if np.isfinite(x).all() else None


def archive(path: Path) -> dict[str, Source]:
    """The classification data sets in a wheel or .zip, by name."""
    data: dict[str, Source] = {}
    with zipfile.ZipFile(path) as file:
        for member in sorted(file.namelist()):
            test = member.replace("_TRAIN.ts", "_TEST.ts")
            if not member.endswith("_TRAIN.ts") or test not in file.namelist():
                continue
            texts = [file.read(name).decode("utf-8", "replace") for name in (member, test)]
            if any("@classlabel true" not in text.lower() for text in texts):
                continue
            train, valid = map(read_ts, texts)
            if train is not None and valid is not None:
                data[Path(member).name.removesuffix("_TRAIN.ts")] = partial(same, (*train, *valid))
    return data


def same(data: Data, _: int) -> Data:
    return data


def bursts(_: int, n: int = 120, length: int = 200) -> Data:
    """Sequences of noise with a burst of 40 values anywhere, of one of three frequencies, which is the class."""
    rng = np.random.default_rng(0)
    y = np.arange(2 * n) % 3
    x = rng.normal(size=(2 * n, length, 1)).astype(np.float32)
    for row, label in zip(x, y, strict=True):
        start = rng.integers(length - 40)
        row[start : start + 40, 0] += 2 * np.sin(np.arange(40) * (0.3 + 0.3 * label))
    return x[:n], y[:n], x[n:], y[n:]


def images(path: Path, n: int, seed: int) -> Data:
    rng = np.random.default_rng(seed)
    with np.load(path, allow_pickle=False) as file:
        train_index, test_index = (rng.permutation(len(file[name])) for name in ("y_train", "y_test"))
        train, test = train_index[:n], test_index[:TEST_IMAGES]
        return (
            file["x_train"][train],
            file["y_train"][train].ravel(),
            file["x_test"][test],
            file["y_test"][test].ravel(),
        )


# -- contenders


def fit(variant: str, data: Data, seconds: float, seed: int) -> dict[str, Any]:
    x, y, x_test, y_test = data
    axes = 1 if x.ndim == 3 and not np.issubdtype(x.dtype, np.uint8) else None
    with tempfile.TemporaryDirectory() as folder, patched(variant):
        classifier = morphnas.ImageClassifier(Path(folder) / "run", axes=axes, random_state=seed, device="cpu")
        start = time.perf_counter()
        classifier.fit(x, y, time_limit=seconds)
        used = time.perf_counter() - start
        networks, parameters = len(classifier.load_searcher().trials), classifier.network_.graph.parameters
        accuracy = classifier.score(x_test, y_test)
    return {"accuracy": round(accuracy, 5), "seconds": round(used, 1), "networks": networks, "parameters": parameters}


def by_hand(data: Data, seconds: float, seed: int, flip: bool) -> dict[str, Any]:
    x, y, x_test, y_test = data
    classes, codes = np.unique(y, return_inverse=True)
    codes_test: Any = np.searchsorted(classes, y_test)
    start = time.perf_counter()
    if np.issubdtype(x.dtype, np.uint8):
        model, mean, std = handwritten.fit(x, codes, seconds, flip, seed)
        accuracy = handwritten.accuracy(model, mean, std, x_test, codes_test)
    else:
        accuracy = fully_convolutional(x, codes, x_test, codes_test, seconds, seed)
    return {"accuracy": round(accuracy, 5), "seconds": round(time.perf_counter() - start, 1)}


def fully_convolutional(x: Any, y: Any, x_test: Any, y_test: Any, seconds: float, seed: int) -> float:
    """Three convolutions of 128, 256 and 128 filters, the mean over time, and Adam, as in the paper, but the learning
    rate falls to 0 with the time, and the last weights are used."""
    end, started = time.perf_counter() + seconds, time.perf_counter()
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    channels = x.shape[2]
    for filters, kernel in ((128, 8), (256, 5), (128, 3)):
        layers += [nn.Conv1d(channels, filters, kernel, padding=kernel // 2), nn.BatchNorm1d(filters), nn.ReLU()]
        channels = filters
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(128, int(y.max()) + 1))
    mean, std = x.mean((0, 1)), x.std((0, 1)) + 1e-8
    inputs, tests = (torch.from_numpy((part - mean) / std).movedim(2, 1).float().contiguous() for part in (x, x_test))
    labels, batch = torch.from_numpy(y), max(2, min(16, len(x) // 10))
    optimizer = torch.optim.Adam(model.parameters())
    while time.perf_counter() < end:
        for index in torch.randperm(len(x)).split(batch):
            if len(index) < 2:
                continue
            optimizer.param_groups[0]["lr"] = 1e-3 * max(0.0, (end - time.perf_counter()) / (end - started))
            optimizer.zero_grad()
            F.cross_entropy(model(inputs[index]), labels[index]).backward()
            optimizer.step()
    with torch.no_grad():
        predicted = torch.cat([model.eval()(part).argmax(1) for part in tests.split(256)])
    return float((predicted.numpy() == y_test).mean())


ROCKET = """
import io, json, sys, time
import numpy as np
from aeon.classification.convolution_based import MiniRocketClassifier
data, seed = np.load(io.BytesIO(sys.stdin.buffer.read()), allow_pickle=False), int(sys.argv[1])
x, x_test = (data[name].transpose(0, 2, 1).astype(np.float64) for name in ("x", "x_test"))
MiniRocketClassifier(random_state=seed).fit(x[:8], np.arange(8) % 2)  # compiles its code
start = time.perf_counter()
accuracy = MiniRocketClassifier(random_state=seed).fit(x, data["y"]).score(x_test, data["y_test"])
print(json.dumps({"accuracy": round(float(accuracy), 5), "seconds": round(time.perf_counter() - start, 1)}))
"""


def rocket(python: str, data: Data, seed: int) -> dict[str, Any]:
    buffer = io.BytesIO()
    np.savez(buffer, **dict(zip(("x", "y", "x_test", "y_test"), data, strict=True)))
    done = subprocess.run([python, "-c", ROCKET, str(seed)], input=buffer.getvalue(), capture_output=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.decode().splitlines()[-1])
    return result


def pace() -> list[dict[str, Any]]:
    """Sequences per second in training steps, by width, batch size and precision."""
    n, shape, warm_up = 256, (1, 251), 3
    examples = Examples(torch.randn(n, *shape), torch.arange(n) % 4)
    task = Task.of(examples, examples, Classification(4))
    rows: list[dict[str, Any]] = []
    for width, batch in itertools.product((16, 32, 64), (16, 64)):
        times: dict[Precision, list[float]] = {precision: [] for precision in get_args(Precision)}
        recipe = replace(default_recipe(n, torch.device("cpu"), False, shape), batch_size=batch)
        draw = Draw.of(torch.arange(batch), shape, recipe.augment, torch.Generator())
        network = cnn(shape, 4, width=width, depth=4)
        steps = {p: Step(to_module(network).train(), task, replace(recipe, precision=p)) for p in times}
        for turn in range(40):
            for precision, step in steps.items():
                start = time.perf_counter()
                step(draw, 0.01).item()
                if turn >= warm_up:
                    times[precision].append(time.perf_counter() - start)
        speeds = {precision: round(batch / statistics.median(seconds)) for precision, seconds in times.items()}
        ratios = [a / b for a, b in zip(times["float32"], times["bfloat16"], strict=True)]
        quartiles = [round(value, 2) for value in statistics.quantiles(ratios)]
        rows.append({"width": width, "batch": batch, "n": len(ratios), "per_second": speeds, "ratio": quartiles})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--examples", type=int, nargs="+", default=[100])
    parser.add_argument("--flip", action="store_true", help="the network written by hand mirrors images")
    parser.add_argument("--only", nargs="*", help="names of the data sets")
    parser.add_argument("--time-limit", type=float, default=30.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variants", nargs="+", choices=["fit", *VARIANTS], default=["fit"])
    parser.add_argument("--alone", action="store_true", help="only the variants")
    parser.add_argument("--python", help="of an environment with aeon")
    parser.add_argument("--pace", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--smoke", action="store_true", help="one seed, 4 s each, nothing written")
    args = parser.parse_args()
    if args.pace:
        rates = pace()
        if not args.smoke:
            append(args.results, {"pace": rates})
        return
    seconds, seeds = (4.0, 1) if args.smoke else (args.time_limit, args.seeds)
    sets: dict[str, Source] = {"bursts": bursts}
    try:
        if args.data is not None and args.data.suffix == ".npz":
            sets = {f"{args.data.stem}, {n}": partial(images, npz(str(args.data)), n) for n in args.examples}
        elif args.data is not None:
            sets = archive(args.data)
    except (OSError, zipfile.BadZipFile, argparse.ArgumentTypeError) as problem:
        parser.error(f"--data: {problem}")
    if missing := [name for name in args.only or () if name not in sets]:
        parser.error(f"--only: {', '.join(missing)} is not in the data, which has {', '.join(sets)}")
    for name in args.only or sets:
        rows: dict[str, list[dict[str, Any]]] = {}
        for seed in range(seeds):
            data = sets[name](seed)
            for variant in args.variants:
                rows.setdefault(variant, []).append(fit(variant, data, seconds, seed))
            if not args.alone:
                rows.setdefault("by hand", []).append(by_hand(data, seconds, seed, args.flip))
                if args.python:
                    rows.setdefault("MiniRocket", []).append(rocket(args.python, data, seed))
            print(name, seed, {contender: fits[-1] for contender, fits in rows.items()}, flush=True)
        means = {
            contender: mean_accuracy([result["accuracy"] for result in results]) for contender, results in rows.items()
        }
        print(name, means, flush=True)
        if not args.smoke:
            about = {"data": name, "train": len(data[0]), "test": len(data[2]), "time_limit": seconds, "n": seeds}
            append(args.results, about | {"means": means, "fits": rows})


if __name__ == "__main__":
    main()
