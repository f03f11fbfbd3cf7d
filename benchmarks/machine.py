"""Shared by the benchmarks: checking data files, describing the machine, and appending results to a file."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch


def npz(text: str) -> Path:
    """The argparse type of --data: the path of an .npz with training and test data; else an error with the cause."""
    try:
        with np.load(text, allow_pickle=False) as file:
            missing = [name for name in ("x_train", "y_train", "x_test", "y_test") if name not in file.files]
    except OSError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    except (ValueError, EOFError, TypeError):  # NumPy's message is about other kinds of files
        raise argparse.ArgumentTypeError(f"{text} is no .npz") from None
    if missing:
        raise argparse.ArgumentTypeError(f"{text} has no {', '.join(missing)}")
    return Path(text)


def describe() -> dict[str, object]:
    """Machine, threads and versions, as JSON values."""
    return {
        "machine": {
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "system": platform.platform(terse=True),
            "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "torch_threads": torch.get_num_threads(),
            "load_average": [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        },
        "versions": {
            "python": sys.version.split()[0],
            **{name: version(name) for name in ("torch", "numpy", "scipy", "scikit-learn")},
        },
    }


def append(path: Path, result: dict[str, Any]) -> None:
    """Append a result, with a description of the machine, to the list in a JSON file."""
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    path.write_text(json.dumps([*earlier, describe() | result], indent=1) + "\n", encoding="utf-8")


def mean_accuracy(values: Sequence[float]) -> dict[str, Any]:
    """The mean and its standard error (None for a single value), as JSON values."""
    error = round(statistics.stdev(values) / len(values) ** 0.5, 5) if len(values) > 1 else None
    return {"accuracy": round(statistics.mean(values), 5), "standard_error": error}


def gain(before: Sequence[float], after: Sequence[float]) -> dict[str, Any]:
    """The mean of paired differences and its standard error (None for a single pair), as JSON values."""
    gains = [b - a for a, b in zip(before, after, strict=True)]
    error = round(statistics.stdev(gains) / len(gains) ** 0.5, 5) if len(gains) > 1 else None
    return {"n": len(gains), "gain": round(statistics.mean(gains), 5), "standard_error": error}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
