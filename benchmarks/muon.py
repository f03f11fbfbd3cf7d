"""Duration of the orthogonalisation in Muon in float32 and in bfloat16, by the size of the matrix.

    OMP_NUM_THREADS=1 python benchmarks/muon.py

Times `morphnas.train.muon.orthogonal` of filters as matrices, both precisions in turns, the fastest of several runs, on
--device. Appends to results/muon.json the microseconds, with the machine; `BFLOAT16_MIN_SIZE` in `morphnas.train.muon`
is based on them.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from unittest.mock import patch

import torch
from machine import append

from morphnas.train import muon

RESULTS = Path(__file__).parent / "results" / "muon.json"
SHAPES = [(8, 72), (16, 144), (32, 288), (64, 576), (96, 864), (128, 1152), (256, 2304)]


def microseconds(matrix: torch.Tensor, halved: bool, repeats: int) -> float:
    start = time.perf_counter()
    with torch.autocast(matrix.device.type, torch.bfloat16, enabled=halved):
        for _ in range(repeats):
            result = muon.orthogonal(matrix)
    result.sum().item()  # waits for the device
    return (time.perf_counter() - start) / repeats * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--smoke", action="store_true", help="two small matrices, nothing written")
    args = parser.parse_args()
    rows = []
    for shape in SHAPES[:2] if args.smoke else SHAPES:
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(args.device)
        times: dict[bool, list[float]] = {False: [], True: []}
        with patch.object(muon, "BFLOAT16_MIN_SIZE", 0):
            for _ in range(2 if args.smoke else 12):
                for halved, values in times.items():
                    values.append(microseconds(matrix, halved, 20))
        float32, bfloat16 = (round(min(times[halved][1:]), 1) for halved in (False, True))
        rows.append({"shape": list(shape), "float32": float32, "bfloat16": bfloat16})
        print(rows[-1], flush=True)
    if not args.smoke:
        append(args.results, {"device": str(args.device), "microseconds": rows})


if __name__ == "__main__":
    main()
