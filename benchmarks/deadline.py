"""Whether `ImageClassifier.fit` keeps to its time limit and leaves a usable model, whatever goes wrong meanwhile.

    python benchmarks/deadline.py [--smoke]

Fits on synthetic images: 60 limits of 2 to 20 s and 4 of 60 to 120 s, drawn with seed 0. In turn there is no fault, one
step in twenty takes 0.1 to 0.3 s longer, memory runs out above 24 examples, an epoch takes longer than the limit, or
scoring takes a millisecond longer per example. For every fit: the seconds beyond the limit, the share of the limit that
was used, and whether `predict_proba` gives finite probabilities of the right shape. Writes results/deadline.json, with
the machine; --smoke: four short fits, nothing is written. Ends with status 1 when a model was not usable.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from machine import describe
from torch import nn

import morphnas
from morphnas.graph import module as graphs
from morphnas.run import work

RESULTS = Path(__file__).parent / "results" / "deadline.json"
FAULTS = ("nothing", "slow steps", "little memory", "long epoch", "slow scoring")
to_module = graphs.to_module


def slow_steps(module: nn.Module, _: tuple[torch.Tensor, ...]) -> None:
    chance, more = np.random.default_rng(time.perf_counter_ns()).random(2)
    if module.training and chance < 0.05:
        time.sleep(0.1 + 0.2 * more)


def little_memory(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    if module.training and len(inputs[0]) > 24:
        raise torch.OutOfMemoryError("injected: no room for so many examples")


def slow_scoring(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    if not module.training:
        time.sleep(0.001 * len(inputs[0]))


HOOKS: dict[str, Callable[..., None]] = {
    "slow steps": slow_steps, "little memory": little_memory, "slow scoring": slow_scoring,
}  # fmt: skip


def images(n: int, seed: int) -> tuple[Any, Any]:
    """Noise (n, 16, 16) uint8 with a bright bar at one of four places: the class."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, n)
    x = rng.integers(0, 160, (n, 16, 16), dtype=np.uint8)
    for place in range(4):
        x[y == place, :, 4 * place : 4 * place + 3] += 60
    return x, y


def run_fit(seed: int, limit: float, fault: str) -> dict[str, Any]:
    """Run a fit with an injected fault, and report how it ended."""

    def broken(*args: Any) -> nn.Module:
        module = to_module(*args)
        if fault in HOOKS:
            module.register_forward_pre_hook(HOOKS[fault])
        return module

    x, y = images(60_000 if fault == "long epoch" else 1200, seed)
    with (
        mock.patch.object(work, "to_module", broken),
        mock.patch.object(graphs, "to_module", broken),
        tempfile.TemporaryDirectory() as folder,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", UserWarning)  # the limit may be too short to score a network
        classifier = morphnas.ImageClassifier(Path(folder) / "run", random_state=seed, device="cpu")
        start = time.perf_counter()
        classifier.fit(x, y, time_limit=limit)
        seconds = time.perf_counter() - start
        probabilities = classifier.predict_proba(x[:100])
        trials = classifier.load_searcher().trials
    usable = probabilities.shape == (100, len(np.unique(y))) and bool(np.isfinite(probabilities).all())
    return {
        "limit": round(limit, 2),
        "fault": fault,
        "overrun_seconds": round(max(0.0, seconds - limit), 3),
        "share_used": round(seconds / limit, 3),
        "usable": usable,
        "networks": len(trials),
        "accuracy_on_seen": round(float((probabilities.argmax(1) == y[:100]).mean()), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()

    rng = np.random.default_rng(0)
    limits = [*rng.uniform(2, 20, 60), *rng.uniform(60, 120, 4)]
    faults = [FAULTS[i % len(FAULTS)] for i in range(len(limits))]
    if args.smoke:
        limits, faults = [2.0, 2.5, 3.0, 3.5], list(FAULTS[1:])
    fits = []
    for seed, (limit, fault) in enumerate(zip(limits, faults, strict=True)):
        fits.append(run_fit(seed, float(limit), fault))
        print(fits[-1], flush=True)
    overruns = [fit["overrun_seconds"] for fit in fits]
    allowed = [max(1.0, 0.005 * fit["limit"]) for fit in fits]
    result = describe() | {
        "n": len(fits),
        "overrun_seconds_p50": round(float(np.percentile(overruns, 50)), 3),
        "overrun_seconds_p99": round(float(np.percentile(overruns, 99)), 3),
        "overrun_seconds_max": max(overruns),
        "within_1_s_or_half_a_percent": sum(over <= most for over, most in zip(overruns, allowed, strict=True)),
        "share_used_p50": round(float(np.median([fit["share_used"] for fit in fits])), 3),
        "usable": sum(fit["usable"] for fit in fits),
        "fits": fits,
    }
    if not args.smoke:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print({name: value for name, value in result.items() if name not in ("fits", "machine", "versions")})
    sys.exit(0 if result["usable"] == len(fits) else 1)


if __name__ == "__main__":
    main()
