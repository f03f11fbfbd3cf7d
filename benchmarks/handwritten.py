"""A handwritten baseline network, trained for a given time without a search.

Four 3x3 convolutions with batch norm and relu, pooled twice, and a dense layer; Nesterov SGD with a one-cycle learning
rate that ends with the time, label smoothing, weight decay, random shifts, and horizontal flips if those keep the
label. The width is the largest that allows about 20 epochs. It uses nothing of morphnas. Nothing is held out: all
images are trained on, and the last weights are used.

    python benchmarks/handwritten.py --data mnist.npz --seconds 100
"""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

import numpy as np
import torch
from machine import npz
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

EPOCHS = 20
WIDTHS = (64, 48, 32, 24, 16, 12, 8)


def network(channels: int, classes: int, width: int, size: int) -> nn.Sequential:
    """(n, channels, size, size) -> (n, classes)."""

    def block(c_in: int, c_out: int) -> list[nn.Module]:
        return [nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]

    left = size // 4
    layers = [
        *block(channels, width), *block(width, width), nn.MaxPool2d(2),
        *block(width, 2 * width), *block(2 * width, 2 * width), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(2 * width * left * left, classes),
    ]  # fmt: skip
    return nn.Sequential(*layers)


def moved(x: Tensor, reach: int, flip: bool, generator: torch.Generator) -> Tensor:
    """A batch of normalised images, each shifted by up to `reach` pixels, and mirrored or not."""
    n, _, height, width = x.shape
    padded = F.pad(x, (reach, reach, reach, reach), mode="replicate")
    down, right = (torch.randint(0, 2 * reach + 1, (n, 1), generator=generator) for _ in range(2))
    rows, columns = torch.arange(height) + down, torch.arange(width) + right  # (n, size)
    if flip:
        mirror = torch.rand(n, 1, generator=generator) < 0.5
        columns = torch.where(mirror, columns.flip(1), columns)
    index = torch.arange(n)
    return padded[index[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def fit(
    x: NDArray[np.uint8], y: NDArray[Any], seconds: float, flip: bool, seed: int, amounts: bool = False
) -> tuple[nn.Module, Tensor, Tensor]:
    """Train for `seconds` from now. x: (n, h, w) or (n, h, w, c). Returns the network, and mean and std of the pixels.

    y: (n,) labels, or multi-label (n, k) of 0 and 1, trained with the binary cross-entropy. amounts: y (n,) is a
    standardised regression target; then AdamW minimises the squared error.
    """
    start = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    tags = np.ndim(y) == 2
    images = channels_first(x)
    labels = torch.from_numpy(np.asarray(y).astype(np.float32 if amounts or tags else np.int64))
    sample = images[:5000].float()
    mean, std = sample.mean((0, 2, 3), keepdim=True), sample.std((0, 2, 3), keepdim=True)
    n, channels, size, _ = images.shape
    classes, batch = 1 if amounts else labels.shape[1] if tags else int(labels.max()) + 1, 64 if n < 20_000 else 128
    reach = max(1, round(0.08 * size))

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, index: Tensor) -> None:
        inputs = moved((images[index].float() - mean) / std, reach, flip, generator)
        logits = model(inputs.contiguous(memory_format=torch.channels_last))
        if amounts:
            loss = F.mse_loss(logits[:, 0], labels[index])
        elif tags:
            loss = F.binary_cross_entropy_with_logits(logits, 0.9 * labels[index] + 0.05)
        else:
            loss = F.cross_entropy(logits, labels.ravel()[index], label_smoothing=0.1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def made(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = network(channels, classes, width, size).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        decay = [p for p in model.parameters() if p.ndim > 1]
        plain = [p for p in model.parameters() if p.ndim == 1]
        groups = [{"params": decay, "weight_decay": 5e-4}, {"params": plain, "weight_decay": 0.0}]
        if amounts:
            return model, torch.optim.AdamW(groups, lr=0.001)
        return model, torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)

    for width in WIDTHS:  # the largest that leaves time for the epochs
        model, optimizer = made(width)
        step(model, optimizer, torch.arange(min(batch, n)))
        step_start = time.perf_counter()
        for _ in range(3):
            step(model, optimizer, torch.arange(min(batch, n)))
        step_seconds = (time.perf_counter() - step_start) / 3
        if step_seconds * math.ceil(n / batch) * EPOCHS <= seconds - (time.perf_counter() - start):
            break
    model, optimizer = made(width)
    first, done = time.perf_counter(), 0
    peak = (0.003 if amounts else 0.2) * math.sqrt(batch / 64)
    while True:
        for index in torch.randperm(n, generator=generator).split(batch):
            progress = (time.perf_counter() - first) / (seconds - 1.1 * step_seconds - (first - start))
            if progress >= 1:
                print(f"by hand: width {width}, {done * batch / n:.1f} epochs")
                return model, mean, std
            for group in optimizer.param_groups:
                group["lr"] = peak * (progress / 0.2 if progress < 0.2 else (1 - progress) / 0.8)
            step(model, optimizer, index)
            done += 1


def channels_first(x: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x[..., None] if x.ndim == 3 else x, -1, 1)))


@torch.no_grad()
def accuracy(model: nn.Module, mean: Tensor, std: Tensor, x: NDArray[np.uint8], y: NDArray[np.integer]) -> float:
    model.eval()
    parts = [model((part.float() - mean) / std).argmax(1) for part in channels_first(x).split(1000)]
    return float((torch.cat(parts).numpy() == np.asarray(y).ravel()).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=npz, required=True, help="an .npz with x_train, y_train, x_test, y_test")
    parser.add_argument("--seconds", type=float, default=100)
    parser.add_argument("--flip", action="store_true", help="mirrored images keep their label")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with np.load(args.data, allow_pickle=False) as file:
        x_train, y_train, x_test, y_test = (file[name] for name in ("x_train", "y_train", "x_test", "y_test"))
    start = time.perf_counter()
    trained = fit(x_train, y_train, args.seconds, args.flip, args.seed)
    took = time.perf_counter() - start
    print(f"{took:.1f} s, test accuracy {accuracy(*trained, x_test, y_test):.4%}")


if __name__ == "__main__":
    main()
