"""What happened in a run, as a zip file for a report of a problem: without data, labels or weights."""

from __future__ import annotations

import contextlib
import getpass
import io
import json
import os
import platform
import re
import time
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from sklearn.metrics import get_scorer_names

import morphnas
from morphnas.report import facts
from morphnas.report.page import about_words
from morphnas.report.words import ends_words, status_words, trial_words
from morphnas.run.files import RunError, inside, parse_json, read_bytes, write_bytes, writing
from morphnas.run.store import Run, RunLike, holds_run, load_run, run_of, user_path, versions
from morphnas.train.recipe import LOG_LOSS

LARGEST, ROOM, ERROR_TEXT = 8 * 2**20, 64 * 2**20, 200_000
"""Bytes of a file and of all files, and characters of all errors in about.txt, that a bundle holds at most."""

_COMMENT = b"a bundle of morphnas"
_OURS = re.compile(r"\.?run\.json(\.\d+\.tmp)?|lock|holder|(model|starts|trials/\d+)/[^/]+")
_TOLD = re.compile(r"run\.json|model/model\.json|trials/\d+/(proposal|trial)\.json")

_OPEN: dict[str, Any] = {
    "run.json": dict.fromkeys(
        ("format", "estimator", "settings", "decides", "time_limit", "seed", "data", "versions", "device", "plan",
         "expected", "best", "final", "members", "settled"),
        True,
    )
    | {"findings": {"found": {"kind": True, "warns": True}, "examples": True, "looked": True, "seconds": True}},
    "model/model.json": dict.fromkeys(
        ("format", "graph", "weights", "trial", "best", "mirrors", "temperature", "members"), True
    )
    | {"target": {"dtype": True, "tags": True}, "preprocessing": {"given": True, "shape": True, "resized": True}},
}  # fmt: skip
"""What is told of the files that may hold labels, names of columns or means of data; of all else, that it is there."""


def bundle(run: RunLike, out: str | os.PathLike[str]) -> Path:
    """Write what happened in a run into a zip file, to attach to a problem report, and return its path.

    about.txt: versions, the machine, how many networks ended how, what could not be read, and the errors of those that
    failed, diverged or ran out of memory. files.txt: names, sizes and times of the run's files. And its JSON files:

    * trials/*/proposal.json and trial.json, damaged ones too: networks, recipes, the searcher's notes, learning curves,
      errors with their tracebacks; not the names of functions that were the metric or loss.
    * run.json: the estimator's arguments, except functions as metric or loss, the limit, the seed, versions, device
      and plan; the data's shape, dtype, number of classes and a hash; which kinds of findings there were, not their
      texts.
    * model/model.json: the network, shapes, how many labels there are.

    It does not contain data, weights, checkpoints, labels, column names, means and ranges of data, or the host's name.
    Home folders are "~", and a folder named after the user is "user". If run.json or model.json is damaged, so that
    labels cannot be recognised, all letters and digits outside of its keys are "x" and "0". What is left out because
    of its size (8 MiB a file, 64 MiB together, failed networks first) is named in about.txt.

    run: may be damaged or still being written, or an estimator whose fit has failed. out: a file that ends in .zip; an
    earlier bundle is replaced, as a whole. ValueError for another suffix; FileExistsError if there is something else;
    RunError if there is no run, or the file cannot be written.
    """
    target = user_path(out)
    if target.suffix.lower() != ".zip":
        raise ValueError(f"the bundle's name must end in .zip, not {str(target)!r}")
    if target.exists() and not _is_bundle(target):
        raise FileExistsError(f"{target} exists already and is not a bundle: choose another file")
    folder = _folder(run)
    if not (holds_run(folder) or (folder / "trials").is_dir()):
        raise RunError(f"{str(folder)!r} holds no run: there is no run.json in it")
    found, wrong = _loaded(folder)
    listed = dict(_listed(folder))
    texts = dict(sorted(_texts(folder, filter(_TOLD.fullmatch, listed), found, wrong)))
    listing = "\n".join(f"{name}: {about}" for name, about in listed.items())
    own = {"about.txt": _about(found, wrong), "files.txt": listing}
    own = {name: text.encode("utf-8", "replace").decode() for name, text in own.items()}
    hide = _Hiding()
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        file.comment = _COMMENT
        for name, text in (own | texts).items():
            file.writestr(name, hide(text).encode("utf-8", "surrogateescape"))
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(target, content.getvalue())
    return target


def machine() -> dict[str, Any]:
    """Versions, and what there is to compute with."""
    try:
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    except RuntimeError as error:  # of one that has stopped, or is not there any more
        gpus = [f"unknown ({error})"]
    about = {"morphnas": morphnas.__version__, **versions(), "system": platform.platform()}
    return about | {"processors": os.cpu_count(), "gpus": gpus}


def _is_bundle(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as file:
            return file.comment == _COMMENT
    except (OSError, zipfile.BadZipFile):
        return False


# -- the run


def _folder(run: RunLike) -> Path:
    """The run's folder, also where it cannot be loaded."""
    if isinstance(run, (str, os.PathLike)):
        return user_path(run)
    path = getattr(run, "path_", None)  # of an estimator, whose fit may have failed
    return Path(path) if isinstance(path, str) else run_of(run).path


def _loaded(folder: Path) -> tuple[Run, list[str]]:
    """What can be read of a run, and what is wrong with the rest."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            return load_run(folder), [str(warning.message) for warning in caught]
        except RunError as error:
            return Run(folder, {}, ()), [str(error)]


def _listed(folder: Path) -> Iterator[tuple[str, str]]:
    """Name, size and time of every file that is a run's. What goes away meanwhile is left out."""
    for here, folders, files in os.walk(folder):
        if Path(here) == folder:
            folders[:] = {"model", "starts", "trials"}.intersection(folders)
        folders.sort()
        for file in (Path(here, name) for name in sorted(files)):
            if _OURS.fullmatch(name := file.relative_to(folder).as_posix()):
                try:
                    about = file.lstat()
                except OSError:
                    continue
                yield name, f"{about.st_size:,} bytes, {_time(about.st_mtime)}"


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _importance(run: Run) -> Callable[[str], tuple[bool, bool, int]]:
    """The key that sorts names of files: the run, the model, networks that failed or cannot be read, the latest."""
    well = {trial.id for trial in run.trials}.difference(trial.id for trial in facts.failures(run.trials))

    def key(name: str) -> tuple[bool, bool, int]:
        id = int(name.split("/")[1]) if name.startswith("trials/") else 0
        return name.startswith("trials/"), id in well, -id

    return key


# -- what is told


def _texts(folder: Path, names: Iterable[str], run: Run, wrong: list[str]) -> Iterator[tuple[str, str]]:
    """Names and texts of the files that there is room for; what is missing is added to what is wrong."""
    room = ROOM
    for name in sorted(names, key=_importance(run)):
        try:
            data = read_bytes(inside(folder / name, folder), LARGEST)
        except RunError as error:
            wrong.append(str(error))
            continue
        if len(data) > room:
            wrong.append(f"{name} is left out: there is no room for it")
            continue
        room -= len(data)
        yield name, _told(name, data, wrong)


def _told(name: str, data: bytes, wrong: list[str]) -> str:
    """A file's text, without what may be private; whether it is no JSON is added to what is wrong."""
    text, allowed = data.decode("utf-8", "surrogateescape"), _OPEN.get(name)
    if allowed is None:
        return _NAMED.sub(lambda found: found[0] if found[2] in _USUAL else f'{found[1]}"left out"', text)
    try:
        if not isinstance(found := parse_json(data), dict):
            raise ValueError("it is not a JSON object")
        for part in (found.get("settings"), found.get("decides")):
            for own in ("metric", "loss"):
                if isinstance(part, dict) and part.get(own) not in (None, *get_scorer_names()):
                    part[own] = "left out"  # of a function, in which labels may be named
        return json.dumps(_open(found, allowed), indent=1)
    except (ValueError, RecursionError) as error:
        wrong.append(f"{name} is not JSON ({error}): its letters and digits are x and 0")
        return _MASKED.sub(lambda found: found[1] or ("0" if found[0].isdigit() else "x"), text)


_NAMED = re.compile(r'("(?:measure|objective)"\s*:\s*)"((?:[^"\\]|\\.)*)"')
"""What a network was scored by, in a damaged file, too: in the name of a function of the user's labels may be named."""
_USUAL = {*get_scorer_names(), LOG_LOSS, "accuracy", "R2"}
_MASKED = re.compile(r'("[a-z_]{1,40}"\s*:)|[^\W_]')


def _open(value: Any, allowed: Any) -> Any:
    """A JSON value with all that is allowed."""
    if allowed is True or value is None:
        return value
    if isinstance(value, dict) and allowed:
        return {name: _open(inner, allowed.get(name)) for name, inner in value.items()}
    if isinstance(value, list) and allowed:
        return [_open(inner, allowed) for inner in value]
    return f"{len(value):,} left out" if isinstance(value, (list, dict)) else "left out"


class _Hiding:
    """Texts without the names of home folders and of the user, whoever made them."""

    def __init__(self) -> None:
        homes: set[str] = set()
        names: set[str] = set()
        with contextlib.suppress(RuntimeError):  # of a user who has none
            homes = {str(path) for path in (Path.home(), Path.home().resolve()) if len(path.parts) > 1}
            names = {Path(path).name for path in homes}
        with contextlib.suppress(OSError, KeyError, ImportError):
            names.add(getpass.getuser())
        self._home = re.compile(rf"(?:{_BEGINS})(?:(?:{_either(homes)})(?!\.?[\w-])|{_ANY_HOME})")
        user = _either(names - {"root"})
        self._user = re.compile(rf"(?<=[/\\])(?:{user})(?!\w)|(?<=[._-])(?:{user})(?=[/\\])")

    def __call__(self, text: str) -> str:
        return self._user.sub("user", self._home.sub("~", text))


def _either(words: set[str]) -> str:
    """A pattern for any of these words, as they are and as they stand in JSON; one for nothing where there are none."""
    every = words | {json.dumps(word)[1:-1] for word in words}
    return "|".join(re.escape(word) for word in sorted(every, key=len, reverse=True)) or r"\b\B"


_BEGINS = r"(?<![\w.~-])|(?<=\\[bfnrt])"
"""Where a path may begin, also behind the end of a line as it stands in JSON."""
_ANY_HOME = r"""(?:/(?:home|Users)/|[A-Za-z]:(?:\\{1,4}|/)Users(?:\\{1,4}|/))(?:[^/\\\s"'<>:,;()]|\\u[0-9a-f]{4})+"""


def _about(run: Run, wrong: list[str]) -> str:
    here = machine() | {"run's folder": run.path, "bundled": _time(time.time())}
    told = [*(f"{name}: {value}" for name, value in here.items()), about_words(run.about)]
    told += [f"networks: {len(run.trials):,} ({ends_words(run.trials) or 'none'})", ""]
    told += ["wrong with its files:", *(wrong or ["nothing"]), ""]
    same: dict[tuple[str, str], list[str]] = {}
    for trial in facts.failures(run.trials):
        error = (trial.outcome and trial.outcome.error) or "no error is told"
        same.setdefault((status_words(trial), error), []).append(f"{trial.id} ({trial_words(trial):.100})")
    most = max(200, ERROR_TEXT // max(1, len(same)))
    told.append("networks that failed:" if same else "no network has failed")
    for (status, error), networks in same.items():
        told += [f"network {', '.join(networks):.2000}: {status}", "    " + error[-most:].replace("\n", "\n    ")]
    return "\n".join([*told, ""])
