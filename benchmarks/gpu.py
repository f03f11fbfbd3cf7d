"""Training on a GPU: speed, share of its peak arithmetic, memory, and behaviour when memory is scarce or shared.

    python benchmarks/gpu.py speed [--run FOLDER] [--seconds 3] [--widths 16 64] [--more 512] [--device cuda]
    python benchmarks/gpu.py memory --data cifar10.npz [--seconds 40] [--device cuda]
    python benchmarks/gpu.py shared [--seconds 60] [--processes 2] [--device cuda]

speed: networks are trained on 50,000 images of noise (3, 32, 32), each in several ways: "plain", a handwritten loop
around the same module, with the images on the device, bfloat16 and channels_last; our steps in float32; with
channels_last; in bfloat16; with CUDA graphs; with Muon instead of SGD; with torch.compile. Networks are the starters of
several widths and, with --run, the best one of a run on such images. --more: further batch sizes, with CUDA graphs.
--compiled: names of the networks that are compiled, which takes half a minute each. For each way: images per second,
the share of the peak FLOP/s, as measured for a product of two bfloat16 matrices of 8,192 rows, the peak memory, and the
estimate of `Graph.peak_bytes`; or the error, if it fails. A forward and backward pass counts as three times
`Graph.flops`.

memory: a fit in batches of 4,096 with a hundredth of the device's memory: the outcomes of its trials, and their
micro-batches.

shared: residual networks of width 128 are trained on noise by several processes for each of several ways at the same
time, until the time is over or the GPU fails: the number of steps of each process, and its error.

Appends to results/gpu.json; --smoke: a moment each on whatever device there is, nothing written.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import append, npz
from torch import Tensor, nn
from torch.nn import functional as F

import morphnas
from morphnas.graph import Graph, cnn, resnet, to_module
from morphnas.run.plan import default_recipe
from morphnas.run.store import load_run
from morphnas.train.augment import Draw
from morphnas.train.data import Examples, Task, batch_count
from morphnas.train.goal import Classification
from morphnas.train.recipe import DEFAULT_SHIFT, Augment, Recipe
from morphnas.train.step import EAGER_STEPS, Step

RESULTS = Path(__file__).parent / "results" / "gpu.json"
SHAPE, CLASSES = (3, 32, 32), 10
CHANGES = Augment(shift=DEFAULT_SHIFT, flip=True)
Loop = Callable[[], Tensor]
"""Makes a training step and returns its loss."""


def plain(module: nn.Module, task: Task, recipe: Recipe) -> Loop:
    """A handwritten loop that uses nothing of morphnas but the module."""
    generator, device, size = torch.Generator().manual_seed(0), task.device, recipe.batch_size
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True)
    images, labels = task.train.x, task.train.y

    def step() -> Tensor:
        index = torch.randint(0, len(labels), (size,), generator=generator).to(device)
        x = moved((images[index].float() - task.mean) / task.std)
        with torch.autocast(device.type, torch.bfloat16):
            logits = module(x.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), labels[index], label_smoothing=0.1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    def moved(x: Tensor) -> Tensor:
        """Shift the whole batch by up to a pixel, and mirror half of it, which is fast on a GPU."""
        padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
        down, right = torch.randint(0, 3, (2,), generator=generator).tolist()
        cut = padded[:, :, down : down + SHAPE[1], right : right + SHAPE[2]]
        mirror = torch.rand(len(x), 1, 1, 1, device=device) < 0.5
        return torch.where(mirror, cut.flip(-1), cut)

    return step


def ours(module: nn.Module, task: Task, recipe: Recipe) -> Loop:
    step = Step(module, task, recipe, mirrored=torch.arange(len(task.train)) % 2 == 0)
    generator = torch.Generator().manual_seed(0)

    def draws() -> Iterator[Draw]:
        while True:
            order = torch.randperm(len(task.train), generator=generator)
            epoch = Draw.of(order, SHAPE, recipe.augment, generator).to(task.device, task.train.x.device)
            yield from epoch.split(batch_count(len(order), recipe.batch_size))

    batches = draws()
    return lambda: step(next(batches), 0.2)


def channels_last(module: nn.Module) -> nn.Module:
    return module.to(memory_format=torch.channels_last)  # type: ignore[no-any-return, call-overload]


def ways(module: nn.Module, task: Task, recipe: Recipe) -> dict[str, Callable[[], Loop]]:
    """Functions that make the loop of each way for the module."""
    eager = replace(recipe, optimizer="sgd", precision="float32", cuda_graphs=False)
    half, recorded = replace(eager, precision="bfloat16"), replace(eager, precision="bfloat16", cuda_graphs=True)
    with_muon = [replace(each, optimizer="muon") for each in (half, recorded)]

    def compiled() -> nn.Module:
        return torch.compile(channels_last(module))  # type: ignore[return-value]

    return {
        "plain": lambda: plain(module, task, recipe),
        "float32": lambda: ours(module, task, eager),
        "channels_last": lambda: ours(channels_last(module), task, eager),
        "bfloat16": lambda: ours(channels_last(module), task, half),
        "CUDA graph": lambda: ours(channels_last(module), task, recorded),
        "Muon": lambda: ours(channels_last(module), task, with_muon[0]),
        "Muon, CUDA graph": lambda: ours(channels_last(module), task, with_muon[1]),
        "compiled": lambda: ours(compiled(), task, half),
        "compiled, CUDA graph": lambda: ours(compiled(), task, recorded),
    }


def timed(loop: Loop, seconds: float, size: int) -> dict[str, Any]:
    """Images per second after a warm-up, and seconds of the first step and of the slowest other one of the warm-up."""
    first_steps = []
    for _ in range(2 * EAGER_STEPS):
        start = time.perf_counter()
        loop().item()
        first_steps.append(time.perf_counter() - start)
    start, done, loss = time.perf_counter(), 0, torch.zeros(())
    while time.perf_counter() - start < seconds:
        for _ in range(10):
            loss = loop()
        done += 10
        loss.item()  # wait, so that the host is at most ten steps ahead
    took = time.perf_counter() - start
    return {
        "images_per_second": round(done * size / took),
        "first_step_seconds": round(first_steps[0], 3),
        "slowest_of_the_others": round(max(first_steps[1:]), 3),
    }


def peak(device: torch.device, rows: int) -> float:
    """FLOP/s of a matrix product in bfloat16."""
    a, b = (torch.randn(rows, rows, device=device, dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(10):
        start = time.perf_counter()
        for _ in range(5):
            product = a @ b
        product[0, 0].item()
        times.append((time.perf_counter() - start) / 5)
    return float(2 * rows**3 / statistics.median(times))


def speed(args: argparse.Namespace) -> dict[str, Any]:
    device, generator = args.device, torch.Generator().manual_seed(0)
    n = 2_000 if args.smoke else 50_000
    x = torch.randint(0, 256, (n, *SHAPE), dtype=torch.uint8, generator=generator)
    task = Task.of(Examples(x, torch.arange(n) % CLASSES), None, Classification(CLASSES)).to(device)
    recipe = replace(default_recipe(n, device, None, SHAPE), augment=CHANGES, whiten=False)
    widths = (4,) if args.smoke else args.widths
    networks: dict[str, Graph] = {}
    for width in widths:
        networks |= {f"{make.__name__}, width {width}": make(SHAPE, CLASSES, width=width) for make in (cnn, resnet)}
    if args.run:
        best = max((t for t in load_run(args.run).trials if t.score is not None), key=lambda t: t.score or 0.0)
        networks[f"best of {args.run.name}"] = best.graph
    peak_flops = peak(device, 256 if args.smoke else 8192)
    results: dict[str, Any] = {}
    for name, graph in networks.items():
        rows: dict[str, Any] = {}
        runs = [(way, way, recipe) for way in ways(to_module(graph).train(), task, recipe)]
        runs += [(f"{kind}, batches of {size}", kind, replace(recipe, batch_size=size))
                    for size in args.more for kind in ("CUDA graph", "Muon, CUDA graph")]  # fmt: skip
        for way, kind, how in runs:
            if kind.startswith("compiled") and (args.smoke or name not in args.compiled):
                continue
            module = to_module(graph).to(device).train()
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(device)
            held = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
            try:
                row = timed(ways(module, task, how)[kind](), args.seconds, how.batch_size)
            except Exception as error:  # recorded, so that the other ways still run
                rows[way] = {"error": f"{type(error).__name__}: {error}"[:300]}
                print(f"{name:24s} {way:22s} {rows[way]}", flush=True)
                continue
            row["share_of_peak"] = round(3 * graph.flops * row["images_per_second"] / peak_flops, 4)
            if device.type == "cuda":
                row["peak_bytes"] = torch.cuda.max_memory_allocated(device) - held
            rows[way] = row
            print(f"{name:24s} {way:22s} {row}", flush=True)
        results[name] = {"flops": graph.flops, "parameters": graph.parameters,
                       "estimated_bytes": graph.peak_bytes(recipe.batch_size), "ways": rows}  # fmt: skip
    return {"batch_size": recipe.batch_size, "optimizer": recipe.optimizer, "seconds": args.seconds,
            "bfloat16_flops_per_second": round(peak_flops), "networks": results}  # fmt: skip


def memory(args: argparse.Namespace) -> dict[str, Any]:
    share, size = 0.01, 64 if args.smoke else 4096
    if args.data is None:
        x, y = np.random.default_rng(0).integers(0, 256, (2000, 32, 32, 3), dtype=np.uint8), np.arange(2000) % 10
    else:
        with np.load(args.data, allow_pickle=False) as file:
            x, y = file["x_train"][:20_000], file["y_train"][:20_000]
    if args.device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(share, args.device.index or 0)
    with tempfile.TemporaryDirectory() as folder:
        classifier = morphnas.ImageClassifier(
            Path(folder) / "run", device=str(args.device), random_state=0,
            searcher_args={"trainer_args": {"batch_size": size}},
        )  # fmt: skip
        start = time.perf_counter()
        classifier.fit(x, y, time_limit=args.seconds)
        took = time.perf_counter() - start
        outcomes = [t.outcome for t in classifier.load_searcher().trials if t.outcome is not None]
    return {
        "examples": len(y), "batch_size": size, "share_of_memory": share, "seconds": args.seconds,
        "overrun_seconds": round(max(0.0, took - args.seconds), 2),
        "statuses": dict(Counter(outcome.status for outcome in outcomes)),
        "micro_batches": [outcome.micro_batch for outcome in outcomes],
        "peak_bytes": [outcome.peak_bytes for outcome in outcomes],
        "validation_accuracy": [outcome.metric for outcome in outcomes],
    }  # fmt: skip


SHARED = {
    f"{way}, batches of {size}": (way, size)
    for way, size in (("Muon, CUDA graph", 512), ("Muon, CUDA graph", 128), ("CUDA graph", 512), ("Muon", 512))
}
"""Ways to train in processes that share a GPU: one of `ways`, and the batch size."""


def shared(args: argparse.Namespace) -> dict[str, Any]:
    """Run processes of this script, each for one way, at the same time."""
    rows: dict[str, Any] = {name: [] for name in SHARED}
    processes: list[tuple[str, subprocess.Popen[bytes], Path]] = []
    with tempfile.TemporaryDirectory() as folder:

        def batch_count(log: Path) -> int:
            output = log.read_text(errors="replace")  # the last line may be incomplete
            return max(map(int, re.findall(r"^steps (\d+)\n", output, re.MULTILINE)), default=0)

        try:
            for i in range(args.processes):
                for name in SHARED:
                    log = Path(folder) / f"{name} {i}"
                    command = [sys.executable, __file__, "alone", "--way", name, "--device", str(args.device)]
                    with log.open("w") as out:
                        more = ["--smoke"] if args.smoke else []
                        processes.append((name, subprocess.Popen([*command, *more], stdout=out, stderr=out), log))
            until = time.perf_counter() + args.seconds
            while time.perf_counter() < until and any(process.poll() is None for _, process, _ in processes):
                time.sleep(0.2)
                if args.smoke and all(batch_count(log) for _, _, log in processes):
                    break
            ended = [process.poll() is not None for _, process, _ in processes]
        finally:
            for _, process, _ in processes:
                process.kill()
                process.wait()
        for (name, _, log), stopped in zip(processes, ended, strict=True):
            output = log.read_text(errors="replace").splitlines()
            error = next((line[:200] for line in reversed(output) if "Error:" in line), None) if stopped else None
            rows[name].append({"steps": batch_count(log), "stopped": stopped, "error": error})
            print(f"{name:36s} {rows[name][-1]}", flush=True)
    if args.smoke and not all(row["steps"] for several in rows.values() for row in several):
        raise SystemExit("some processes made no step")
    return {"seconds": args.seconds, "processes": len(processes), "ways": rows}


def alone(args: argparse.Namespace) -> None:
    """One of these processes: train until it is killed or its parent has ended."""
    kind, size = SHARED[args.way]
    parent = os.getppid()
    n, width = (2_000, 4) if args.smoke else (20_480, 128)
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (n, *SHAPE), dtype=torch.uint8, generator=generator)
    task = Task.of(Examples(x, torch.arange(n) % CLASSES), None, Classification(CLASSES)).to(args.device)
    recipe = replace(default_recipe(n, args.device, None, SHAPE), augment=CHANGES, batch_size=size)
    module = to_module(resnet(SHAPE, CLASSES, width=width)).to(args.device).train()
    loop = ways(module, task, recipe)[kind]()
    for step in count(1):
        loss = loop()
        if step % 10 == 0:
            loss.item()
            print("steps", step, flush=True)
            if os.getppid() != parent:
                return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "memory", "shared", "alone"])
    parser.add_argument("--processes", type=int, default=2, help="for each way in which they share the GPU")
    parser.add_argument("--way", choices=SHARED, help="of `alone`, which `shared` starts")
    parser.add_argument("--run", type=Path, help="the folder of a run on images (3, 32, 32)")
    parser.add_argument("--widths", nargs="*", type=int, default=[16, 64])
    parser.add_argument("--more", nargs="*", type=int, default=[], help="batch sizes beside that of a fit")
    parser.add_argument("--compiled", nargs="*", default=["cnn, width 64", "resnet, width 64"])
    parser.add_argument("--data", type=npz, help="an .npz with x_train and y_train")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    if args.device.type == "cuda" and not torch.cuda.is_available():
        if not args.smoke:
            parser.error("torch sees no GPU")
        args.device = torch.device("cpu")
    if args.what == "alone":
        alone(args)
        return
    if args.seconds is None:
        args.seconds = {"speed": (3.0, 0.05), "memory": (40.0, 3.0), "shared": (60.0, 120.0)}[args.what][args.smoke]
    result = {"speed": speed, "memory": memory, "shared": shared}[args.what](args)
    print(json.dumps({name: value for name, value in result.items() if name != "networks"}))
    if not args.smoke:
        append(args.results, {"what": args.what} | result)


if __name__ == "__main__":
    main()
