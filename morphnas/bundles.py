"""Bundles: zip files that record a run for a problem report, without data, labels or weights."""

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
from morphnas.run.files import RunError, check_inside, explain_write_errors, parse_json, read_bytes, write_bytes
from morphnas.run.store import Run, RunLike, holds_run, load_run, run_of, user_path, versions
from morphnas.train.recipe import LOG_LOSS

MAX_FILE_BYTES, MAX_TOTAL_BYTES, ERROR_TEXT = 8 * 2**20, 64 * 2**20, 200_000
"""Limits of a bundle: bytes of a file and of all files, and characters of all errors in about.txt."""

_COMMENT = b"a bundle of morphnas"
_RUN_FILE = re.compile(r"\.?run\.json(\.\d+\.tmp)?|lock|holder|(model|starts|trials/\d+)/[^/]+")
_INCLUDED = re.compile(r"run\.json|model/model\.json|trials/\d+/(proposal|trial)\.json")

_PUBLIC: dict[str, Any] = {
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
"""Keys whose values are included, for files that may contain labels, column names or means of data."""


def bundle(run: RunLike, out: str | os.PathLike[str]) -> Path:
    """Write what happened in a run into a zip file, to attach to a problem report, and return its path.

    about.txt: versions, the machine, the number of networks by status, what could not be read, and the errors of
    networks that failed, diverged or ran out of memory. files.txt: names, sizes and times of the run's files. And its
    JSON files:

    * trials/*/proposal.json and trial.json, damaged ones too: networks, recipes, the searcher's notes, learning curves,
      errors with their tracebacks; not the names of functions used as metric or loss.
    * run.json: the estimator's arguments, except functions as metric or loss, the time limit, the seed, versions,
      device and plan; the data's shape, dtype, number of classes and a hash; the kinds of findings, not their texts.
    * model/model.json: the network, shapes, the number of labels.

    It does not contain data, weights, checkpoints, labels, column names, means and ranges of data, or the host's name.
    Home folders are replaced by "~", and the user's name in paths by "user". If run.json or model.json is damaged, so
    that labels cannot be recognised, all letters and digits outside its keys are replaced by "x" and "0". What is left
    out because of its size (8 MiB a file, 64 MiB together, failed networks included first) is named in about.txt.

    run: may be damaged or still being written, or an estimator whose fit has failed. out: a file that ends in .zip; an
    earlier bundle is replaced atomically. ValueError for another suffix; FileExistsError if there is another file;
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
    loaded, problems = _loaded(folder)
    listed = dict(_listed(folder))
    texts = dict(sorted(_texts(folder, filter(_INCLUDED.fullmatch, listed), loaded, problems)))
    listing = "\n".join(f"{name}: {about}" for name, about in listed.items())
    summary = {"about.txt": _about(loaded, problems), "files.txt": listing}
    summary = {name: text.encode("utf-8", "replace").decode() for name, text in summary.items()}
    anonymise = _Anonymiser()
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        file.comment = _COMMENT
        for name, text in (summary | texts).items():
            file.writestr(name, anonymise(text).encode("utf-8", "surrogateescape"))
    with explain_write_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(target, content.getvalue())
    return target


def machine() -> dict[str, Any]:
    """Versions, the operating system, the number of processors and the GPUs."""
    try:
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    except RuntimeError as error:  # of a GPU that has failed or is lost
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
    """The run's folder, even if the run cannot be loaded."""
    if isinstance(run, (str, os.PathLike)):
        return user_path(run)
    path = getattr(run, "path_", None)  # of an estimator, whose fit may have failed
    return Path(path) if isinstance(path, str) else run_of(run).path


def _loaded(folder: Path) -> tuple[Run, list[str]]:
    """What can be read of a run, and the problems with the rest."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            return load_run(folder), [str(warning.message) for warning in caught]
        except RunError as error:
            return Run(folder, {}, ()), [str(error)]


def _listed(folder: Path) -> Iterator[tuple[str, str]]:
    """Name, size and time of every file of a run; files that are deleted meanwhile are left out."""
    for here, folders, files in os.walk(folder):
        if Path(here) == folder:
            folders[:] = {"model", "starts", "trials"}.intersection(folders)
        folders.sort()
        for file in (Path(here, name) for name in sorted(files)):
            if _RUN_FILE.fullmatch(name := file.relative_to(folder).as_posix()):
                try:
                    about = file.lstat()
                except OSError:
                    continue
                yield name, f"{about.st_size:,} bytes, {_time(about.st_mtime)}"


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _importance(run: Run) -> Callable[[str], tuple[bool, bool, int]]:
    """A sort key for file names: the run, the model, networks that failed or cannot be read, then the latest."""
    healthy = {trial.id for trial in run.trials}.difference(trial.id for trial in facts.failures(run.trials))

    def key(name: str) -> tuple[bool, bool, int]:
        id = int(name.split("/")[1]) if name.startswith("trials/") else 0
        return name.startswith("trials/"), id in healthy, -id

    return key


# -- contents


def _texts(folder: Path, names: Iterable[str], run: Run, problems: list[str]) -> Iterator[tuple[str, str]]:
    """Names and texts of the files within the limits; those that are left out are added to `problems`."""
    room = MAX_TOTAL_BYTES
    for name in sorted(names, key=_importance(run)):
        try:
            data = read_bytes(check_inside(folder / name, folder), MAX_FILE_BYTES)
        except RunError as error:
            problems.append(str(error))
            continue
        if len(data) > room:
            problems.append(f"{name} is left out: there is no room for it")
            continue
        room -= len(data)
        yield name, _redacted(name, data, problems)


def _redacted(name: str, data: bytes, problems: list[str]) -> str:
    """A file's text without what may be private; if it is not valid JSON, that is added to `problems`."""
    text, allowed = data.decode("utf-8", "surrogateescape"), _PUBLIC.get(name)
    if allowed is None:
        return _SCORED_BY.sub(lambda match: match[0] if match[2] in _KNOWN else f'{match[1]}"left out"', text)
    try:
        if not isinstance(content := parse_json(data), dict):
            raise ValueError("it is not a JSON object")
        for part in (content.get("settings"), content.get("decides")):
            for key in ("metric", "loss"):
                if isinstance(part, dict) and part.get(key) not in (None, *get_scorer_names()):
                    part[key] = "left out"  # a user-defined function, whose description may name labels
        return json.dumps(_public(content, allowed), indent=1)
    except ValueError as error:
        problems.append(f"{name} is not JSON ({error}): its letters and digits are replaced by x and 0")
        return _MASKED.sub(lambda match: match[1] or ("0" if match[0].isdigit() else "x"), text)


_SCORED_BY = re.compile(r'("(?:measure|objective)"\s*:\s*)"((?:[^"\\]|\\.)*)"')
"""The metric or loss that a network was scored by, also in damaged files: a user-defined name may contain labels."""
_KNOWN = {*get_scorer_names(), LOG_LOSS, "accuracy", "R2"}
_MASKED = re.compile(r'("[a-z_]{1,40}"\s*:)|[^\W_]')


def _public(value: Any, allowed: Any) -> Any:
    """A JSON value in which all that is not allowed is replaced; allowed: see `_PUBLIC`."""
    if allowed is True or value is None:
        return value
    if isinstance(value, dict) and allowed:
        return {name: _public(inner, allowed.get(name)) for name, inner in value.items()}
    if isinstance(value, list) and allowed:
        return [_public(inner, allowed) for inner in value]
    return f"{len(value):,} left out" if isinstance(value, (list, dict)) else "left out"


class _Anonymiser:
    """Replaces home folders, of any user, and the user's name in paths."""

    def __init__(self) -> None:
        homes: set[str] = set()
        names: set[str] = set()
        with contextlib.suppress(RuntimeError):  # the user has no home folder
            homes = {str(path) for path in (Path.home(), Path.home().resolve()) if len(path.parts) > 1}
            names = {Path(path).name for path in homes}
        with contextlib.suppress(OSError, KeyError, ImportError):
            names.add(getpass.getuser())
        self._home = re.compile(rf"(?:{_PATH_START})(?:(?:{_either(homes)})(?!\.?[\w-])|{_ANY_HOME})")
        user = _either(names - {"root"})
        self._user = re.compile(rf"(?<=[/\\])(?:{user})(?!\w)|(?<=[._-])(?:{user})(?=[/\\])")

    def __call__(self, text: str) -> str:
        return self._user.sub("user", self._home.sub("~", text))


def _either(words: set[str]) -> str:
    """A pattern for any of these words, plain or escaped as in JSON; one that never matches if there are none."""
    spellings = words | {json.dumps(word)[1:-1] for word in words}
    return "|".join(re.escape(word) for word in sorted(spellings, key=len, reverse=True)) or r"\b\B"


_PATH_START = r"(?<![\w.~-])|(?<=\\[bfnrt])"
"""Where a path may start, also after an escaped line break in JSON."""
_ANY_HOME = r"""(?:/(?:home|Users)/|[A-Za-z]:(?:\\{1,4}|/)Users(?:\\{1,4}|/))(?:[^/\\\s"'<>:,;()]|\\u[0-9a-f]{4})+"""


def _about(run: Run, problems: list[str]) -> str:
    environment = machine() | {"run's folder": run.path, "bundled": _time(time.time())}
    lines = [*(f"{name}: {value}" for name, value in environment.items()), about_words(run.about)]
    lines += [f"networks: {len(run.trials):,} ({ends_words(run.trials) or 'none'})", ""]
    lines += ["problems with its files:", *(problems or ["none"]), ""]
    by_error: dict[tuple[str, str], list[str]] = {}
    for trial in facts.failures(run.trials):
        error = (trial.outcome and trial.outcome.error) or "no error was recorded"
        by_error.setdefault((status_words(trial), error), []).append(f"{trial.id} ({trial_words(trial):.100})")
    length = max(200, ERROR_TEXT // max(1, len(by_error)))
    lines.append("networks that failed:" if by_error else "no network has failed")
    for (status, error), networks in by_error.items():
        lines += [f"network {', '.join(networks):.2000}: {status}", "    " + error[-length:].replace("\n", "\n    ")]
    return "\n".join([*lines, ""])
