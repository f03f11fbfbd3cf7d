"""Comparison with other libraries: the same time, images and CPU thread, in turns within a seed.

    python benchmarks/others.py --python venv-others/bin/python --time-limit 60 --seeds 3
    python benchmarks/others.py --python ... --data fashion_mnist.npz --examples 6000 --time-limit 120 --seeds 3
    python benchmarks/others.py --python ... --data cifar10.npz --examples 6000 --flip --time-limit 300 --seeds 3

--python: of an environment with torch and the packages in `results/others.json`, of those versions (AutoKeras 3.0 does
not run with the newest Keras), where the others run; without it only morphnas and the network of `handwritten.py` do.
--data, --examples: as for `search_pays.py`; without them scikit-learn's digits, a stratified fifth held out. Every
contender runs in its own process, gets raw uint8 images and labels, and must have a model when the time is over; its
clock starts after its imports, so that only preparing, searching and training count. With --flip the contenders whose
training is written here (all but morphnas and AutoKeras, which decide themselves) use random horizontal flips. How the
time limit is enforced for libraries without one:

* AutoKeras: `ImageClassifier(max_trials=3)`, its first three architectures, and its own final training; a callback ends
  each of the four trainings after a quarter of the time.
* KerasTuner: `BayesianOptimization` over a convolutional network (depth, width, dropout, learning rate) for six tenths
  of the time, each trial for at most a tenth; then the best one is trained on all examples with a cosine schedule.
* Optuna: TPE and the median pruner over a convolutional network in PyTorch (depth, width, learning rate, weight decay,
  batch size, shifts by 8 % of the side, before CIFAR-10's results by a pixel) for six tenths of the time, five epochs
  per trial; then the best one is trained on all examples with a one-cycle schedule.

Appends to results/others.json the test accuracy of every fit, seconds beyond the limit, networks tried, parameters,
peak memory and seconds of imports (including the constructor of morphnas's classifier), and the mean and standard error
over seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

PROCESS_START = time.perf_counter()
RESULTS = Path(__file__).parent / "results" / "others.json"
SEARCH = 0.6
"""Share of the time for the search of libraries without a time limit."""
HELD = 0.15
"""Share of the images that they hold out to compare networks; morphnas chooses it itself."""
ALONE = ("morphnas", "by hand")
PACKAGES = ("optuna", "keras-tuner", "autokeras", "keras", "tensorflow-cpu", "tensorboard", "torch")

Fitted = tuple[Callable[[Any], Any], dict[str, Any]]
"""A function that predicts classes (n,), and figures to report: networks, parameters."""


# -- contenders: (x uint8, y, seconds, seed, flip), the clock running


def morphnas(x: Any, y: Any, seconds: float, seed: int, _flip: bool) -> Fitted:
    import morphnas

    folder = tempfile.mkdtemp()
    classifier = morphnas.ImageClassifier(Path(folder) / "run", random_state=seed, device="cpu")
    begin()
    classifier.fit(x, y, time_limit=seconds)
    networks = len(classifier.load_searcher().trials)
    return classifier.predict, {"networks": networks, "parameters": classifier.network_.graph.parameters}


def by_hand(x: Any, y: Any, seconds: float, seed: int, flip: bool) -> Fitted:
    import handwritten

    begin()
    model, mean, std = handwritten.fit(x, y, seconds, flip, seed)

    def predict(images: Any) -> Any:
        import torch

        with torch.no_grad():
            model.eval()
            parts = handwritten.channels_first(images).split(1000)
            return torch.cat([model((part.float() - mean) / std).argmax(1) for part in parts]).numpy()

    return predict, {"networks": 1, "parameters": sum(p.numel() for p in model.parameters())}


def autokeras(x: Any, y: Any, seconds: float, seed: int, _flip: bool) -> Fitted:
    import autokeras as ak
    import keras

    begin()

    class Quarter(keras.callbacks.Callback):  # type: ignore[misc]  # keras is not checked
        def on_train_begin(self, logs: Any = None) -> None:
            self.end = time.perf_counter() + seconds / 4

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if time.perf_counter() > self.end:
                self.model.stop_training = True

    folder = tempfile.mkdtemp()
    classifier = ak.ImageClassifier(int(y.max()) + 1, max_trials=3, overwrite=True, directory=folder, seed=seed)
    classifier.fit(x, y, validation_split=HELD, callbacks=[Quarter()], verbose=0)
    model = classifier.export_model()
    info = {"networks": len(classifier.tuner.oracle.trials), "parameters": model.count_params()}
    return lambda images: classifier.predict(images, verbose=0).astype(int).ravel(), info


def keras_tuner(x: Any, y: Any, seconds: float, seed: int, flip: bool) -> Fitted:
    import keras
    import keras_tuner as kt
    import numpy as np

    clock = begin()
    classes, held = int(y.max()) + 1, int(HELD * len(x))
    x = x.reshape(*x.shape[:3], -1)
    shape = x.shape[1:]

    def build(hp: Any) -> Any:
        layers = [keras.Input(shape), keras.layers.Rescaling(1 / 255)]
        if flip:
            layers.append(keras.layers.RandomFlip("horizontal"))
        width = hp.Int("width", 8, 64, step=8)
        for i in range(hp.Int("depth", 1, 3)):
            for _ in range(hp.Int("convolutions", 1, 2)):
                layers.append(keras.layers.Conv2D(width * 2**i, 3, padding="same", use_bias=False))
                layers += [keras.layers.BatchNormalization(), keras.layers.ReLU()]
            layers.append(keras.layers.MaxPooling2D())
        layers += [keras.layers.Flatten(), keras.layers.Dropout(hp.Float("dropout", 0, 0.5, step=0.1))]
        model = keras.Sequential([*layers, keras.layers.Dense(classes, activation="softmax")])
        rate = hp.Float("rate", 1e-4, 1e-2, sampling="log")
        model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    class Until(keras.callbacks.Callback):  # type: ignore[misc]
        """Ends a training in time, and the search when its time is over."""

        def __init__(self, most: float, end: float, decays: bool = False) -> None:
            super().__init__()
            self.most, self.last, self.decays = most, end, decays

        def on_train_begin(self, logs: Any = None) -> None:
            if clock() > self.last:
                raise kt.errors.FatalError("the time is over")
            self.start = clock()
            self.rate = float(self.model.optimizer.learning_rate)

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            end = min(self.start + self.most, self.last)
            if self.decays:
                done = min(1.0, (clock() - self.start) / (end - self.start))
                self.model.optimizer.learning_rate = self.rate * 0.5 * (1 + math.cos(math.pi * done))
            if clock() > end:
                self.model.stop_training = True

    tuner = kt.BayesianOptimization(
        build, "val_accuracy", max_trials=1000, seed=seed, directory=tempfile.mkdtemp(), overwrite=True
    )
    parts: dict[str, Any] = {"validation_data": (x[:held], y[:held]), "epochs": 100, "batch_size": 64, "verbose": 0}
    stop = keras.callbacks.EarlyStopping("val_accuracy", patience=5)
    with suppress(kt.errors.FatalError):
        tuner.search(x[held:], y[held:], callbacks=[Until(0.1 * seconds, SEARCH * seconds), stop], **parts)
    model = build(tuner.get_best_hyperparameters()[0])
    last = Until(seconds, 0.99 * seconds, decays=True)
    model.fit(x, y, epochs=100_000, batch_size=64, verbose=0, callbacks=[last])
    info = {"networks": len(tuner.oracle.trials), "parameters": model.count_params()}
    return lambda images: np.argmax(model.predict(images.reshape(-1, *shape), verbose=0), 1), info


def optuna(x: Any, y: Any, seconds: float, seed: int, flip: bool) -> Fitted:
    import optuna
    import torch
    from torch import nn
    from torch.nn import functional as F

    clock = begin()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.manual_seed(seed)
    torch.set_num_threads(1)

    def tensor(images: Any) -> Any:
        values = torch.from_numpy(images.reshape(*images.shape[:3], -1)).permute(0, 3, 1, 2).float()
        return ((values - mean) / std).contiguous(memory_format=torch.channels_last)

    mean, std, reach = float(x.mean()), float(x.std()), max(1, round(0.08 * x.shape[1]))
    images, labels = tensor(x), torch.from_numpy(y)
    classes, held = int(y.max()) + 1, int(HELD * len(x))

    def network(params: dict[str, Any]) -> Any:
        layers: list[Any] = []
        channels, width = images.shape[1], params["width"]
        for i in range(params["depth"]):
            for _ in range(params["convolutions"]):
                layers += [nn.Conv2d(channels, width * 2**i, 3, padding=1, bias=False)]
                layers += [nn.BatchNorm2d(width * 2**i), nn.ReLU()]
                channels = width * 2**i
            layers.append(nn.MaxPool2d(2))
        flat = nn.Sequential(*layers)(images[:2].contiguous()).flatten(1).shape[1]
        model = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(params["dropout"]), nn.Linear(flat, classes))
        return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def epoch(model: Any, optimizer: Any, part: Any, params: dict[str, Any], progress: Callable[[], float]) -> bool:
        """Train an epoch, with a one-cycle learning rate by `progress`; False if progress reached 1 before its end."""
        model.train()
        for index in part[torch.randperm(len(part))].split(params["batch"]):
            if (done := progress()) >= 1:
                return False
            for group in optimizer.param_groups:
                group["lr"] = params["rate"] * (done / 0.2 if done < 0.2 else (1 - done) / 0.8)
            batch = images[index]
            if flip:
                batch = torch.where(torch.rand(len(batch), 1, 1, 1) < 0.5, batch.flip(3), batch)
            if params["shift"]:
                padded = F.pad(batch, (reach,) * 4)
                i, j = torch.randint(0, 2 * reach + 1, (2,)).tolist()
                batch = padded[:, :, i : i + images.shape[2], j : j + images.shape[3]]
            if len(batch) > 1:
                loss = F.cross_entropy(model(batch), labels[index], label_smoothing=0.1)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return True

    def sgd(model: Any, params: dict[str, Any]) -> Any:
        return torch.optim.SGD(
            model.parameters(), params["rate"], momentum=0.9, nesterov=True, weight_decay=params["decay"]
        )

    @torch.no_grad()
    def predict(model: Any, given: Any) -> Any:
        model.eval()
        return torch.cat([model(part).argmax(1) for part in given.split(1000)])

    def until(progress: float) -> float:
        return 1.0 if clock() > SEARCH * seconds else progress

    def objective(trial: Any) -> float:
        params = {
            "depth": trial.suggest_int("depth", 1, 3), "convolutions": trial.suggest_int("convolutions", 1, 2),
            "width": trial.suggest_int("width", 8, 64, step=8), "dropout": trial.suggest_float("dropout", 0, 0.5),
            "rate": trial.suggest_float("rate", 1e-2, 0.5, log=True),
            "batch": trial.suggest_categorical("batch", [32, 64, 128]),
            "decay": trial.suggest_float("decay", 1e-5, 1e-2, log=True),
            "shift": trial.suggest_categorical("shift", [False, True]),
        }  # fmt: skip
        model = network(params)
        optimizer, part = sgd(model, params), torch.arange(held, len(x))
        start, value, epochs = clock(), 0.0, 5
        for i in range(epochs):
            progress = (i + 0.5) / epochs
            whole = epoch(model, optimizer, part, params, partial(until, progress))
            value = float((predict(model, images[:held]) == labels[:held]).float().mean())
            trial.report(value, i)
            if not whole or trial.should_prune() or clock() - start > 0.2 * seconds:
                break
        trial.set_user_attr("parameters", sum(p.numel() for p in model.parameters()))
        return value

    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed), pruner=optuna.pruners.MedianPruner()
    )
    study.optimize(objective, timeout=SEARCH * seconds)
    params = study.best_trial.params
    model = network(params)
    optimizer, start = sgd(model, params), clock()
    end = 0.98 * seconds
    while epoch(model, optimizer, torch.arange(len(x)), params, lambda: (clock() - start) / (end - start)):
        pass
    info = {"networks": len(study.trials), "parameters": sum(p.numel() for p in model.parameters())}
    return lambda given: predict(model, tensor(given)).numpy(), info


CONTENDERS: dict[str, Callable[[Any, Any, float, int, bool], Fitted]] = {
    "morphnas": morphnas, "by hand": by_hand, "optuna": optuna, "keras tuner": keras_tuner, "autokeras": autokeras,
}  # fmt: skip
CLOCK_START = [0.0]


def begin() -> Callable[[], float]:
    """Start the clock, after the imports."""
    CLOCK_START[0] = time.perf_counter()
    return lambda: time.perf_counter() - CLOCK_START[0]


def child(name: str, file: Path, seconds: float, seed: int, flip: bool) -> None:
    """Fit a contender, and print its results as JSON."""
    import numpy as np

    with np.load(file) as npz:
        x, y, x_test, y_test = (npz[part] for part in ("x_train", "y_train", "x_test", "y_test"))
    predict, info = CONTENDERS[name](x, y, seconds, seed, flip)
    used = time.perf_counter() - CLOCK_START[0]
    accuracy = float((np.asarray(predict(x_test)).ravel() == y_test).mean())
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    info |= {
        "test_accuracy": round(accuracy, 5),
        "seconds": round(used, 2),
        "imports": round(CLOCK_START[0] - PROCESS_START, 2),
    }
    print(json.dumps(info | {"peak_bytes": memory}), flush=True)


# -- the benchmark


def fit(name: str, args: argparse.Namespace, file: Path, seed: int) -> dict[str, Any]:
    """Run a contender's process; what it prints, or its error."""
    python = sys.executable if name in ALONE else args.python
    given = ["--data", str(file), "--time-limit", str(args.time_limit), "--seed", str(seed)]
    given += ["--flip"] if args.flip else []
    threads = dict.fromkeys(("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), "1")
    quiet = {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    most: dict[str, Any] = {"env": os.environ | threads | quiet, "timeout": 4 * args.time_limit + 120}
    try:
        command = [str(python), __file__, "--child", name, *given]
        done = subprocess.run(command, capture_output=True, text=True, check=False, **most)
    except subprocess.TimeoutExpired:
        return {"error": f"no answer after {most['timeout']:g} s"}
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"status {done.returncode}"}
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result | {"beyond": round(max(0.0, result["seconds"] - args.time_limit), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--examples", type=int, default=6000)
    parser.add_argument("--time-limit", type=float, default=60.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--flip", action="store_true", help="mirrored images keep their label")
    parser.add_argument("--contenders", nargs="*", choices=[*CONTENDERS])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--smoke", action="store_true", help="a seed, 5 s each, nothing written")
    parser.set_defaults(rows=False, products=False)  # of `search_pays.py`
    args = parser.parse_args()
    if args.child:
        child(args.child, args.data, args.time_limit, args.seed, args.flip)
        return
    import numpy as np
    from machine import append
    from search_pays import part

    if args.smoke:
        args.time_limit, args.seeds = 5.0, 1
    names = args.contenders or (CONTENDERS if args.python else ALONE)
    fits: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as folder:
            x_train, x_test, y_train, y_test = part(args, seed)
            file = Path(folder) / "data.npz"
            labels = (np.asarray(y).astype(np.int64).ravel() for y in (y_train, y_test))
            np.savez(
                file, **dict(zip(("x_train", "x_test", "y_train", "y_test"), (x_train, x_test, *labels), strict=True))
            )
            for name in names:
                fits[name].append(fit(name, args, file, seed))
                print(seed, name, fits[name][-1], flush=True)
    results = {}
    for name, rows in fits.items():
        good = [row["test_accuracy"] for row in rows if "error" not in row]
        error = statistics.stdev(good) / len(good) ** 0.5 if len(good) > 1 else None
        results[name] = {
            "test_accuracy": statistics.mean(good) if good else None,
            "standard_error": error,
            "fits": rows,
        }
        print(f"{name:12s} {results[name]['test_accuracy']} +- {error}", flush=True)
    if args.smoke:
        return
    versions = {}
    if args.python:
        code = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
        versions = json.loads(subprocess.check_output([args.python, "-c", code, *PACKAGES]))
    data = "digits" if args.data is None else args.data.stem
    about = {
        "data": data, "examples": len(x_train), "time_limit": args.time_limit, "n": args.seeds, "flip": args.flip,
        "others": versions,
    }  # fmt: skip
    append(RESULTS, about | {"contenders": results})


if __name__ == "__main__":
    main()
