"""Fuzzing of run folders: mutations of bytes, JSON and safetensors, and all functions that read a run folder."""

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


def corrupt_bytes(data: bytes, rng: random.Random) -> bytes:
    """The data with a few bytes changed, removed or repeated, or truncated."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at, length = rng.randrange(len(out) + 1), rng.choice((1, 1, 2, 8, 64))
        match rng.randrange(5):
            case 0 if at < len(out):
                out[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(out):
                out[at] = rng.choice(b'\x00\xff{}[]",:-0129eE.tfnN\\u')
            case 2:
                del out[at : at + length]
            case 3:
                out[at:at] = out[at : at + length] or bytes(rng.randrange(256) for _ in range(length))
            case _:
                del out[max(1, at) :]
    return bytes(out)


def _paths(data: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths (tuples of keys and indices) to all values nested in the data."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [prefix] * bool(prefix) + [path for key, value in items for path in _paths(value, (*prefix, key))]


def _value_at(data: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        data = data[key]
    return data


def mutate_json(data: Any, rng: random.Random) -> Any:
    """The JSON value with a few nested values replaced, removed, repeated, added or deeply nested."""
    data = copy.deepcopy(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        if not (paths := _paths(data)):
            return data
        *parent, key = rng.choice(paths)
        container = _value_at(data, tuple(parent))
        match rng.randrange(6):
            case 0:
                del container[key]
            case 1:
                container[key] = copy.deepcopy(_value_at(data, rng.choice(paths)))
            case 2:
                for _ in range(rng.choice((3, 70, 500))):
                    container[key] = [container[key]] if rng.random() < 0.5 else {"a": container[key]}
            case 3 if isinstance(container, list):
                container.extend(copy.deepcopy(container) * rng.choice((1, 5)))
            case 3:
                container[str(rng.choice(ODD_VALUES))[:40]] = rng.choice(ODD_VALUES)
            case _:
                container[key] = copy.deepcopy(rng.choice(ODD_VALUES))
    return data


def mutate_file(data: bytes, name: str, rng: random.Random) -> bytes:
    """The content of the file `name`, with its bytes or, if JSON or safetensors, its structure damaged."""
    if rng.random() < 0.35:
        return corrupt_bytes(data, rng)
    if name.endswith(".json"):
        return json.dumps(mutate_json(json.loads(data), rng)).encode()
    if not name.endswith(".safetensors"):
        return corrupt_bytes(data, rng)
    length = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    if rng.random() < 0.3 and "checkpoint" in header.get("__metadata__", {}):
        inner = mutate_json(json.loads(header["__metadata__"]["checkpoint"]), rng)
        header["__metadata__"]["checkpoint"] = json.dumps(inner)
    else:
        header = mutate_json(header, rng)
        specs = [entry for entry in header.values() if isinstance(entry, dict) and "dtype" in entry]
        if specs and rng.random() < 0.5:
            rng.choice(specs)["dtype"] = rng.choice(("F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "X", "C64"))
    text = json.dumps(header).encode()
    size = rng.choice((len(text), len(text), len(text), 0, 1, 2**63, 2**40, len(text) + 1, len(data)))
    return size.to_bytes(8, "little") + text + rest


def _read_plan(path: Path) -> None:
    Plan.of_run(load_run(path).about, morphnas.__version__)


def _load_networks(path: Path) -> None:
    run = load_run(path)
    for trial in run.trials:
        if trial.kept:
            run.load_model_by_id(trial.id)


def _make_tables(path: Path) -> None:
    run = load_run(path)
    trials_table(run.trials)
    _ = run.history
    run.get_best_model_id()


def _resume(path: Path) -> None:
    Store.resume(path).close()


def _load_checkpoints(path: Path) -> None:
    for file in path.glob("trials/*/checkpoint.safetensors"):
        CheckpointWriter(file, {}).load()


READERS: dict[str, Callable[[Path], object]] = {
    "networks": _load_networks, "tables": _make_tables, "plan": _read_plan, "resume": _resume,
    "checkpoints": _load_checkpoints, "model": morphnas.ImageClassifier.load,
}  # fmt: skip
"""All functions that read a run folder."""


def read_with_all_readers(path: Path) -> dict[str, str]:
    """The result of every reader: "" if it reads the folder, else the message of its ValueError. Others propagate."""
    messages = {}
    for name, reader in READERS.items():
        try:
            reader(path)
            messages[name] = ""
        except ValueError as error:
            messages[name] = str(error) or "no message"
    return messages
