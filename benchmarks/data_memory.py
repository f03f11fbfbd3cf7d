"""Examples in a mapped file compared with examples in memory: memory of the process, and training speed.

    python benchmarks/data_memory.py [--repeats 10] [--smoke]

130,000 random images (32, 32, 3), read from a memory map, as bytes (400 MB) and as floats (1.6 GB), are prepared and
trained on (`cnn` of width 8, batches of 128). Writes results/data_memory.json, medians with least and most:

* peak memory in MB (RssAnon, beyond that after a small problem of the same kind) while a process prepared the data and
  trained for 4 seconds, and seconds to prepare; a new process each time, three in memory and three in a file;
* the ratio of images per second, file to memory and memory to itself, of trainings for 2 seconds in turns, with the
  file's pages in memory;
* the rate at which batches are gathered from the uint8 file, in thousands of images per second, in random order and
  sorted, with the file's pages in memory (warm) and just after all of them have been paged out (cold).

Linux only.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe

from morphnas.estimators.data_memory import DataMemory
from morphnas.estimators.inputs import Problem
from morphnas.graph import cnn, to_module
from morphnas.train.data import Task
from morphnas.train.deadline import Deadline
from morphnas.train.recipe import Recipe
from morphnas.train.trainer import load_optimizers, train

RESULTS = Path(__file__).parent / "results" / "data_memory.json"
BATCH = 128
PAGEOUT = 21  # Linux' MADV_PAGEOUT
ROOMS = {"memory": DataMemory(2**60), "file": DataMemory(1)}


def allocated() -> int:
    """Bytes that this process has allocated and page_in; pages of files do not count."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.partition("RssAnon:")[2].split()[0])


class Peak:
    """The maximum of `allocated` since the last reset."""

    def __init__(self) -> None:
        self.bytes = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.bytes = max(self.bytes, allocated())
            time.sleep(0.005)


def prepared(path: Path, room: DataMemory, n: int | None = None) -> Task:
    x = np.lib.format.open_memmap(path, mode="r")[:n]
    return Problem.infer(x, np.arange(len(x)) % 10, None, None, 0, torch.device("cpu"), None, room).task


def speed(task: Task, seconds: float) -> float:
    """Images per second of a training of this duration, without scoring."""
    module, recipe = to_module(cnn((3, 32, 32), 10, width=8)), Recipe(epochs=1000, batch_size=BATCH)
    return train(module, task, recipe, Deadline.after(seconds), torch.Generator().manual_seed(0)).images_per_second


def measure_process(path: Path, room: DataMemory, seconds: float) -> dict[str, float]:
    """Peak memory of preparing the images of a file and training on them, and seconds to prepare."""
    load_optimizers()
    peak = Peak()
    speed(prepared(path, room, 2000), seconds)
    before, start = allocated(), time.perf_counter()
    peak.bytes = 0
    task = prepared(path, room)
    preparing = time.perf_counter() - start
    speed(task, seconds)
    return {"MB": (peak.bytes - before) / 1e6, "seconds_to_prepare": preparing}


def compared(path: Path, seconds: float, repeats: int) -> dict[str, dict[str, float]]:
    """Ratios of images per second, of trainings in turns."""
    memory, file = (prepared(path, room) for room in ROOMS.values())
    page_in(file.train.x)
    seen = [[speed(task, seconds) for task in (memory, file, memory)] for _ in range(repeats + 1)][1:]
    return {
        "file / memory": spread([b / a for a, b, _ in seen]),
        "memory / memory": spread([c / a for a, _, c in seen]),
    }


def page_out(x: torch.Tensor) -> bool:
    """Page out the tensor's file; whether the system did so."""
    os.sync()
    return not ctypes.CDLL(None).madvise(ctypes.c_void_p(x.data_ptr()), ctypes.c_size_t(x.nbytes), PAGEOUT)


def page_in(x: torch.Tensor) -> None:
    """Bring all pages of the tensor's file into memory."""
    for part in x.split(10_000):
        part.max()


def gathered(x: torch.Tensor, cold: bool, in_order: bool, batches: int, seed: int) -> float:
    """Gather batches; thousands of images per second."""
    if cold:
        page_out(x)
    else:
        page_in(x)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).split(BATCH)[:batches]
    start = time.perf_counter()
    for index in order:
        x[index.sort().values if in_order else index]
    return sum(map(len, order)) / (time.perf_counter() - start) / 1000


def spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 2), "least": round(min(values), 2), "most": round(max(values), 2),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--smoke", action="store_true", help="few images, one repeat, nothing written")
    parser.add_argument("--one", nargs=3, metavar=("FILE", "ROOM", "SECONDS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure_process(Path(args.one[0]), ROOMS[args.one[1]], float(args.one[2]))))
        return
    n, repeats, processes, seconds = (3000, 1, 1, 0.5) if args.smoke else (130_000, args.repeats, 3, 2.0)
    summary: dict[str, Any] = {"n": repeats, "processes": processes, "images": n}
    with tempfile.TemporaryDirectory() as folder:
        for kind in (np.uint8, np.float32):
            path, random = Path(folder) / f"{kind.__name__}.npy", np.random.default_rng(0)
            x = np.lib.format.open_memmap(path, "w+", kind, (n, 32, 32, 3))
            for start in range(0, n, 10_000):
                part = x[start : start + 10_000]
                part[:] = random.integers(0, 256, part.shape)
            x.flush()
            seen: dict[str, list[dict[str, float]]] = {place: [] for place in ROOMS}
            for _ in range(processes):
                for place, results in seen.items():
                    command = [sys.executable, __file__, "--one", str(path), place, str(2 * seconds)]
                    results.append(json.loads(subprocess.check_output(command, text=True)))
            summary[kind.__name__] = {"data_MB": round(x.nbytes / 1e6)} | {
                place: {name: spread([result[name] for result in results]) for name in results[0]}
                for place, results in seen.items()
            }
            summary[kind.__name__]["ratio_of_images_per_second"] = compared(path, seconds, repeats)
            path.unlink()
        images = DataMemory(1, Path(folder)).empty((n, 3, 32, 32), torch.uint8)
        for pixels in images.split(10_000):
            pixels.random_(0, 256)
        batches = min(n // BATCH, 100)
        summary["thousand_images_per_second_gathered"] = {
            f"{'cold' if cold else 'warm'}, {'sorted' if in_order else 'as drawn'}": spread(
                [gathered(images, cold, in_order, batches, seed) for seed in range(repeats)]
            )
            for cold in ((True, False) if page_out(images) else (False,))
            for in_order in (False, True)
        }
    print(json.dumps(summary, indent=1))
    if not args.smoke:
        RESULTS.write_text(json.dumps(describe() | summary, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
