"""Fuzzing of a run's files: mutations of bytes, JSON and safetensors, and all functions that read them."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import morphnas
from morphnas.report.tables import trials_table
from morphnas.run.checkpoints import CheckpointWriter
from morphnas.run.plan import Plan
from morphnas.run.store import Store, load_run

ODD_VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 2, 255, 10**12, 10**30, -(10**30), 2**31, 2**63, 0.5, -0.0, 1e-300, 1e308, "", "x",
    "NaN", "../..", "/etc/passwd", "a" * 5000, "\0", "import os", "conv", "<U2147483647", "O", "i4,i4", [], {}, [[]],
    [None], [1] * 500, {"op": "input", "size": [10**9, 10**9]}, {"": ""}, [10**12] * 3,
]  # fmt: skip
"""Values that replace others in JSON."""


def flipped(data: bytes, rng: random.Random) -> bytes:
    """The data with a few bytes changed, removed, repeated, or the rest cut off."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at, more = rng.randrange(len(out) + 1), rng.choice((1, 1, 2, 8, 64))
        match rng.randrange(5):
            case 0 if at < len(out):
                out[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(out):
                out[at] = rng.choice(b'\x00\xff{}[]",:-0129eE.tfnN\\u')
            case 2:
                del out[at : at + more]
            case 3:
                out[at:at] = out[at : at + more] or bytes(rng.randrange(256) for _ in range(more))
            case _:
                del out[max(1, at) :]
    return bytes(out)


def _paths(data: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths (tuples of keys and indices) to all values nested in the data."""
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [prefix] * bool(prefix) + [path for key, value in inner for path in _paths(value, (*prefix, key))]


def _at(data: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        data = data[key]
    return data


def restructured(data: Any, rng: random.Random) -> Any:
    """The JSON value with a few nested values replaced, removed, repeated, added or deeply nested."""
    data = copy.deepcopy(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        if not (paths := _paths(data)):
            return data
        *parent, key = rng.choice(paths)
        holder = _at(data, tuple(parent))
        match rng.randrange(6):
            case 0:
                del holder[key]
            case 1:
                holder[key] = copy.deepcopy(_at(data, rng.choice(paths)))
            case 2:
                for _ in range(rng.choice((3, 70, 500))):
                    holder[key] = [holder[key]] if rng.random() < 0.5 else {"a": holder[key]}
            case 3 if isinstance(holder, list):
                holder.extend(copy.deepcopy(holder) * rng.choice((1, 5)))
            case 3:
                holder[str(rng.choice(ODD_VALUES))[:40]] = rng.choice(ODD_VALUES)
            case _:
                holder[key] = copy.deepcopy(rng.choice(ODD_VALUES))
    return data


def mutated(data: bytes, name: str, rng: random.Random) -> bytes:
    """The content of the file `name`, damaged: its bytes or, if JSON or safetensors, its structure."""
    if rng.random() < 0.35:
        return flipped(data, rng)
    if name.endswith(".json"):
        return json.dumps(restructured(json.loads(data), rng)).encode()
    if not name.endswith(".safetensors"):
        return flipped(data, rng)
    length = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    if rng.random() < 0.3 and "checkpoint" in header.get("__metadata__", {}):
        inner = restructured(json.loads(header["__metadata__"]["checkpoint"]), rng)
        header["__metadata__"]["checkpoint"] = json.dumps(inner)
    else:
        header = restructured(header, rng)
        specs = [entry for entry in header.values() if isinstance(entry, dict) and "dtype" in entry]
        if specs and rng.random() < 0.5:
            rng.choice(specs)["dtype"] = rng.choice(("F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "X", "C64"))
    text = json.dumps(header).encode()
    size = rng.choice((len(text), len(text), len(text), 0, 1, 2**63, 2**40, len(text) + 1, len(data)))
    return size.to_bytes(8, "little") + text + rest


def _plan(path: Path) -> None:
    Plan.of_run(load_run(path).about, morphnas.__version__)


def _networks(path: Path) -> None:
    run = load_run(path)
    for trial in run.trials:
        if trial.kept:
            run.load_model_by_id(trial.id)


def _tables(path: Path) -> None:
    run = load_run(path)
    trials_table(run.trials)
    _ = run.history
    run.get_best_model_id()


def _resumed(path: Path) -> None:
    Store.resume(path).close()


def _checkpoints(path: Path) -> None:
    for file in path.glob("trials/*/checkpoint.safetensors"):
        CheckpointWriter(file, {}).load()


READERS: dict[str, Callable[[Path], object]] = {
    "networks": _networks, "tables": _tables, "plan": _plan, "resume": _resumed, "checkpoints": _checkpoints,
    "model": morphnas.ImageClassifier.load,
}  # fmt: skip
"""All functions that read a run folder."""


def read(path: Path) -> dict[str, str]:
    """The result of every reader: "" if it reads the folder, else the message of its ValueError. Others propagate."""
    messages = {}
    for name, reader in READERS.items():
        try:
            reader(path)
            messages[name] = ""
        except ValueError as error:
            messages[name] = str(error) or "nothing"
    return messages
