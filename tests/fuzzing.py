"""Damage to files: mutated bytes, JSON and safetensors, and what must come of reading them."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import morphnas
from morphnas.report.tables import trials_table
from morphnas.run.checkpoints import Keeper
from morphnas.run.plan import Plan
from morphnas.run.store import Store, load_run

ODD: list[Any] = [
    None, True, False, -1, 0, 1, 2, 255, 10**12, 10**30, -(10**30), 2**31, 2**63, 0.5, -0.0, 1e-300, 1e308, "", "x",
    "NaN", "../..", "/etc/passwd", "a" * 5000, "\0", "import os", "conv", "<U2147483647", "O", "i4,i4", [], {}, [[]],
    [None], [1] * 500, {"op": "input", "size": [10**9, 10**9]}, {"": ""}, [10**12] * 3,
]  # fmt: skip
"""Values to find in place of others."""


def flipped(data: bytes, rng: random.Random) -> bytes:
    """Bytes with a few of them changed, cut out, repeated or cut off."""
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


def _places(data: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to all values inside."""
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [way] * bool(way) + [place for key, value in inner for place in _places(value, (*way, key))]


def _at(data: Any, way: tuple[Any, ...]) -> Any:
    for key in way:
        data = data[key]
    return data


def restructured(data: Any, rng: random.Random) -> Any:
    """JSON values of which a few are others, are missing, come twice, or are nested deeply."""
    data = copy.deepcopy(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        if not (places := _places(data)):
            return data
        *where, key = rng.choice(places)
        holder = _at(data, tuple(where))
        match rng.randrange(6):
            case 0:
                del holder[key]
            case 1:
                holder[key] = copy.deepcopy(_at(data, rng.choice(places)))
            case 2:
                for _ in range(rng.choice((3, 70, 500))):
                    holder[key] = [holder[key]] if rng.random() < 0.5 else {"a": holder[key]}
            case 3 if isinstance(holder, list):
                holder.extend(copy.deepcopy(holder) * rng.choice((1, 5)))
            case 3:
                holder[str(rng.choice(ODD))[:40]] = rng.choice(ODD)
            case _:
                holder[key] = copy.deepcopy(rng.choice(ODD))
    return data


def mutated(data: bytes, name: str, rng: random.Random) -> bytes:
    """A file's content, damaged: by its bytes, or by what it says."""
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
        some = [entry for entry in header.values() if isinstance(entry, dict) and "dtype" in entry]
        if some and rng.random() < 0.5:
            rng.choice(some)["dtype"] = rng.choice(("F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "X", "C64"))
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
        Keeper(file, {}).load()


READERS: dict[str, Callable[[Path], object]] = {
    "networks": _networks, "tables": _tables, "plan": _plan, "resume": _resumed, "checkpoints": _checkpoints,
    "model": morphnas.ImageClassifier.load,
}  # fmt: skip
"""All that reads a run's folder."""


def read(path: Path) -> dict[str, str]:
    """What every reader says to a folder: "" where it reads it, else the error; only a ValueError may be one."""
    said = {}
    for name, reader in READERS.items():
        try:
            reader(path)
            said[name] = ""
        except ValueError as error:
            said[name] = str(error) or "nothing"
    return said
