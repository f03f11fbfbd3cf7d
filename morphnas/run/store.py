"""The run folder: an append-only history of trials on disk, and a read-only view of it.

    run.json                   facts about the run: settings, seed, data, versions, machine, best trial
    starts/<key>.safetensors   weights that the user supplied for a starter, by the key of its graph
    trials/00007/proposal.json written when the trial is claimed; the folder's name is the id
    trials/00007/checkpoint.safetensors   present while the trial is open or cut short, to continue from
    trials/00007/weights.safetensors
    trials/00007/trial.json    written last: it commits the trial
    model/model.json           what predict needs, and the name of its weights file, which is written first
    lock, holder               the lock of the driver that may write, and a text that names its process

All but the last two are written under a temporary name, synced and renamed. Reading cannot execute code.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import operator
import os
import platform
import re
import shutil
import socket
import time
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self

from filelock import FileLock, Timeout

from morphnas.graph import Graph, Network, Weights
from morphnas.graph.graph import check_size
from morphnas.graph.morphs import UnknownMorph, stored_morph
from morphnas.run.files import (
    RunError,
    check_inside,
    explain_write_errors,
    read_json,
    read_weights,
    write_json,
    write_tensors,
)
from morphnas.run.frames import CURVE_COLUMNS, TRIAL_COLUMNS, curve_rows, frame, trial_rows
from morphnas.search.network_surrogate import winner
from morphnas.search.pareto import COSTS, check_cost, front
from morphnas.search.trial import Proposal, Trial, comparable, grow_proposal
from morphnas.train.recipe import Outcome, Recipe, is_number

FORMAT = 1
MAX_MORPHS = 1000
log = logging.getLogger("morphnas")

_ID = re.compile("[0-9]{5,18}")


# -- proposals as JSON


def proposal_to_json(proposal: Proposal) -> dict[str, Any]:
    start = proposal.start
    return {
        "format": FORMAT,
        "start": start.to_json() if isinstance(start, Graph) else start,
        "morphs": [morph.to_json() for morph in proposal.morphs],
        "recipe": proposal.recipe.to_json(),
        "why": dict(proposal.why),
    }


def proposal_from_json(data: Mapping[str, Any]) -> Proposal:
    if data.get("format") != FORMAT:
        raise ValueError(f"format {data.get('format')!r}, this version reads {FORMAT}")
    start, morphs, why = data.get("start"), data.get("morphs"), data.get("why")
    if not isinstance(start, int) or isinstance(start, bool):
        start = Graph.from_json(start)
    if not isinstance(morphs, list) or not isinstance(why, dict):
        raise ValueError("it holds no proposal")
    if len(morphs) > MAX_MORPHS:
        raise ValueError(f"it has {len(morphs):,} morphs, at most {MAX_MORPHS:,} are read")
    return Proposal(start, tuple(map(stored_morph, morphs)), Recipe.from_json(data.get("recipe", {})), why)


# -- the folder


def user_path(name: str | os.PathLike[str]) -> Path:
    """A user's argument as a path, with "~" expanded if possible. ValueError if it is not a path."""
    if not isinstance(name, (str, os.PathLike)):
        raise ValueError(f"expected the path of a folder or file, not {name!r:.100}")
    if isinstance(name, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", name):
        raise ValueError(f"{name!r:.100} is an address, not the path of a folder or file on this machine")
    path = Path(os.path.expanduser(name))  # noqa: PTH111  # Path.expanduser fails if there is no such user
    try:
        path.exists()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ValueError(f"the name of a folder or file is too long: {str(path)!r:.100} ...") from None
    return path


def holds_run(path: Path) -> bool:
    return (path / "run.json").is_file()


def _trial_folder(path: Path, id: int) -> Path:
    return path / "trials" / f"{id:05d}"


def _trial_names(trials: Path) -> list[str]:
    """Names of the trials' folders inside the folder `trials`, in order of their ids."""
    try:
        names = [entry.name for entry in trials.iterdir()] if trials.is_dir() else []
        return sorted((n for n in names if _ID.fullmatch(n) and n == f"{int(n):05d}"), key=int)
    except OSError as error:
        raise RunError(f"{trials} cannot be read: {error.strerror or error}") from error


def _read_trials(path: Path) -> Iterator[Trial]:
    """All trials that can be read, in order of their ids; a warning names each that cannot."""
    graphs: dict[int, Graph] = {}
    unknown_kinds: dict[str, None] = {}
    for name in _trial_names(path / "trials"):
        folder = path / "trials" / name
        if not (folder / "proposal.json").exists():
            continue  # the driver died between creating the folder and writing the proposal
        try:
            data = read_json(check_inside(folder / "proposal.json", path))
            proposal = proposal_from_json(data)
            if proposal.parent is not None and proposal.parent >= int(name):
                raise ValueError(f"it starts from trial {proposal.parent}, which is not an earlier trial")
            committed = (folder / "trial.json").exists()
            unknown = any(isinstance(morph, UnknownMorph) for morph in proposal.morphs)
            use_stored = "graph" in data and (committed or unknown)  # readable even if the parent is damaged
            graph = Graph.from_json(data["graph"]) if use_stored else check_size(grow_proposal(proposal, graphs))
            since, begun = data.get("since"), data.get("begun")
            trial = Trial(
                int(name),
                proposal,
                graph,
                driver_start=since if isinstance(since, int) else 0,
                started=begun if is_number(begun) else None,
            )
            if committed:
                end = read_json(check_inside(folder / "trial.json", path))
                if end.get("format") != FORMAT:
                    raise ValueError(f"trial.json has format {end.get('format')!r}, this version reads {FORMAT}")
                outcome = Outcome.from_json(end.get("outcome", {}))
                kept = end.get("kept") is True and (folder / "weights.safetensors").is_file()
                trial = replace(trial, outcome=outcome, kept=kept)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            warnings.warn(f"trial {name} in {path} is left out: {error}", stacklevel=3)
            continue
        graphs[trial.id] = trial.graph
        unknown_kinds |= dict.fromkeys(m.tag for m in trial.proposal.morphs if isinstance(m, UnknownMorph))
        yield trial
    if unknown_kinds:
        kinds = ", ".join(unknown_kinds)
        warnings.warn(f"{path} has morphs of a kind that is not defined here: {kinds:.100}", stacklevel=3)


class Store:
    """A run folder, locked by the one driver that may write to it. Use `create` or `resume`, and then `close`.

    about: the contents of run.json.
    """

    def __init__(self, path: Path, lock: FileLock, about: Mapping[str, Any]) -> None:
        self.path = path
        self.about: Mapping[str, Any] = about
        self._lock = lock
        self._trials: dict[int, Trial] = {}
        self._since: tuple[int, float] | None = None  # id and time of the first trial claimed by this driver
        self._writer = ThreadPoolExecutor(1, "morphnas-write")
        self._pending_write: tuple[int, Future[None]] | None = None  # of the trial with this id
        self._reopened: dict[int, Trial] = {}  # as they were before

    @classmethod
    def create(cls, path: Path, about: Mapping[str, Any], overwrite: bool = False) -> Self:
        """A new run in an empty or new folder; with `overwrite`, only the files of an earlier run are removed first.

        RunError if the folder holds a run (without `overwrite`) or other files, cannot be written to, or is locked.
        """
        try:
            cls.check(path, overwrite=overwrite)
        except RunError:
            if holds_run(path):
                _release(path, _acquire_lock(path))  # raises the clearer error if a process is writing to it
            raise
        store = cls(path, _acquire_lock(path), {"format": FORMAT, **about, "host": socket.gethostname()})
        try:
            with explain_write_errors(path):
                if holds_run(path):  # so that nothing resumes its remains if this is interrupted
                    write_json(path / "run.json", {"format": FORMAT})
                for name in ("trials", "model", "graphs", "starts"):
                    shutil.rmtree(path / name, ignore_errors=True)
                (path / "trials").mkdir()
            write_json(path / "run.json", store.about)
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def resume(cls, path: Path) -> Self:
        """The run in the folder, to be continued; RunError if there is none, or it cannot be read or written to."""
        try:
            about = load_about(path)
        except RunError as error:
            if not holds_run(path):
                raise
            hint = "without it the run cannot be resumed; its trials and its model still load"
            raise RunError(f"{error}: {hint}") from error
        store = cls(path, _acquire_lock(path), about)
        try:
            for folder in (path, path / "model", *(path / "trials").glob("*")):
                for temporary in folder.glob(".*.tmp"):  # left by a driver that died while writing
                    check_inside(temporary, path).unlink(missing_ok=True)
            for left in path.glob("morphnas-????????"):  # folders of `process_executor`, if workers were killed, too
                if left.is_dir() and not left.is_symlink() and {e.name for e in left.iterdir()} <= {"task.pt"}:
                    shutil.rmtree(left, ignore_errors=True)
            store._trials = {trial.id: trial for trial in _read_trials(path)}
        except BaseException:
            store.close()
            raise
        return store

    @staticmethod
    def check(path: Path, overwrite: bool = False, resume: bool = False) -> None:
        """RunError if no run can be created (or, with `resume`, continued) in this folder. Creates no files."""
        if path.is_symlink() and not path.exists():
            raise RunError(f"path {str(path)!r} is a link to something that does not exist")
        if path.exists() and not path.is_dir():
            raise RunError(f"path {str(path)!r} is a file, but a run needs a folder")
        if holds_run(path):
            if not (overwrite or resume):
                raise RunError(
                    f"{str(path)!r} holds a run already: resume=True continues it, overwrite=True replaces it, "
                    "or choose another path"
                )
        elif path.is_dir() and (other := sorted(entry.name for entry in path.iterdir() if not _is_leftover(entry))):
            raise RunError(f"{str(path)!r} holds other files ({', '.join(other[:3])}): choose an empty or new folder")
        parent = next(folder for folder in (path, *path.resolve().parents) if folder.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise RunError(f"{str(parent)!r} cannot be written to: choose another path for the run")

    def close(self) -> None:
        """Wait for pending writes and release the lock. An error of the last write is only logged here."""
        try:
            self._writer.shutdown()
        finally:
            if self._pending_write is None:
                _release(self.path, self._lock)
            else:  # not before the write has ended, even if waiting for it is interrupted
                self._pending_write[1].add_done_callback(lambda _: _release(self.path, self._lock))
        if self._pending_write is not None and (error := self._pending_write[1].exception()):
            log.error("%s", error)

    @property
    def trials(self) -> list[Trial]:
        """All trials in order of their ids, including running ones."""
        return list(self._trials.values())

    def trial(self, id: int) -> Trial:
        try:
            return self._trials[operator.index(id)]
        except (KeyError, TypeError):
            raise RunError(f"there is no trial {id!r:.100} in {self.path}, or it cannot be read") from None

    def claim(self, proposal: Proposal) -> Trial:
        """Give the proposal an id and write it to disk, once its parent has been written."""
        if proposal.parent is not None:
            self.wait_for_writes(proposal.parent)
        graph = grow_proposal(proposal, {trial.id: trial.graph for trial in self._trials.values()})
        id = max(self._trials, default=-1) + 1
        while (_trial_folder(self.path, id) / "proposal.json").exists():  # a trial that could not be read
            id += 1
        with explain_write_errors(self.path):
            check_inside(_trial_folder(self.path, id), self.path).mkdir(exist_ok=True)
        first, start_time = self._since = self._since or (id, time.monotonic())
        begun = round(time.monotonic() - start_time, 3)
        data = proposal_to_json(proposal) | {"since": first, "begun": begun}
        if proposal.morphs or proposal.parent is not None:  # readable even if the parent or a morph's class is missing
            data["graph"] = graph.to_json()
        write_json(_trial_folder(self.path, id) / "proposal.json", data)
        self._trials[id] = Trial(id, proposal, graph, driver_start=first, started=begun)
        return self._trials[id]

    def finish(self, id: int, outcome: Outcome, weights: Weights | None, in_background: bool = False) -> Trial:
        """Commit the result of a trial: the weights first, the outcome last.

        Of a reopened trial the earlier result is kept instead if this one has no weights or fewer epochs.

        in_background: write in a separate thread. Methods that need the files wait for it and raise its errors.
        """
        self.wait_for_writes()
        earlier = self._reopened.pop(id, None)
        if earlier is not None and earlier.outcome is not None:
            if weights is None or outcome.epochs < earlier.outcome.epochs:
                self._trials[id] = earlier
                return earlier
            if self.about.get("final") == id:  # its network has changed, so the model is out of date
                self.update_about(best=None, final=None, members=None)
        ended = replace(self._trials[id], outcome=outcome, kept=weights is not None)
        if in_background:
            self._pending_write = id, self._writer.submit(self._commit, ended, weights)
        else:
            self._commit(ended, weights)
        self._trials[id] = ended
        return ended

    def _commit(self, trial: Trial, weights: Weights | None) -> None:
        assert trial.outcome is not None
        folder = _trial_folder(self.path, trial.id)
        if weights is not None:
            write_tensors(folder / "weights.safetensors", weights)
        end = {
            "format": FORMAT,
            "kept": weights is not None,
            "key": trial.graph.key,
            "parameters": trial.graph.parameters,
            "flops": trial.graph.flops,
            "outcome": trial.outcome.to_json(),
        }
        write_json(folder / "trial.json", end)
        if not trial.cut_short:
            with contextlib.suppress(OSError):
                self.checkpoint(trial.id).unlink(missing_ok=True)

    def reopen(self, id: int) -> None:
        """Reopen a trial that was cut short, to continue it, from its checkpoint if there is one.

        Its result is only replaced when `finish` gets a network that was trained for at least as many epochs.
        """
        self._reopened[id] = self._trials[id]
        self._trials[id] = replace(self._trials[id], outcome=None, kept=False)

    def restore_reopened(self) -> None:
        """Restore the results of trials that were reopened and not finished since."""
        self._trials |= self._reopened
        self._reopened.clear()

    def wait_for_writes(self, id: int | None = None) -> None:
        """Wait for the pending write (only if it is of trial `id`); RunError, in all later calls too, if it failed."""
        if self._pending_write is not None:
            trial_id, future = self._pending_write
            if id in (None, trial_id) or future.done():
                future.result()

    def checkpoint(self, id: int) -> Path:
        """Path of a trial's checkpoint file."""
        return _trial_folder(self.path, id) / "checkpoint.safetensors"

    def drop_weights(self, id: int) -> None:
        """Delete a trial's weights, so that nothing can start from it any more."""
        self.wait_for_writes(id)
        with explain_write_errors(self.path):
            (_trial_folder(self.path, id) / "weights.safetensors").unlink(missing_ok=True)
        self.forget_weights(id)

    def forget_weights(self, id: int | None) -> None:
        """Mark a trial whose weights cannot be read as not kept, so that nothing starts from it; its files remain."""
        if id in self._trials:
            self._trials[id] = replace(self._trials[id], kept=False)

    def network(self, id: int) -> Network:
        self.wait_for_writes(id)
        return load_network(self.path, self.trial(id))

    def add_start_weights(self, network: Network) -> None:
        """Store weights that trials which start from the network's graph are to begin with."""
        file = self._start_file(network.graph)
        with explain_write_errors(self.path):
            check_inside(file.parent, self.path).mkdir(exist_ok=True)
        write_tensors(file, network.weights)

    def _start_file(self, graph: Graph) -> Path:
        return self.path / "starts" / f"{graph.key}.safetensors"

    def has_start_weights(self, start: Graph | int) -> bool:
        """Whether weights were stored by `add_start_weights` for this start."""
        return isinstance(start, Graph) and self._start_file(start).is_file()

    def start(self, start: Graph | int) -> Graph | Network:
        """What a proposal starts from, with its weights if there are any; RunError if they cannot be read."""
        if not isinstance(start, Graph):
            return self.network(start)
        file = check_inside(self._start_file(start), self.path)
        return Network(start, read_weights(file, start)) if self.has_start_weights(start) else start

    def update_about(self, **facts: Any) -> None:
        """Add facts to run.json, or replace them."""
        self.wait_for_writes()
        self.about = {**self.about, **facts}
        write_json(self.path / "run.json", self.about)

    def write_model(self, network: Network, about: Mapping[str, Any]) -> None:
        """Make a network the model that predicts: write its weights under a new name, then the file that names them.

        about: further entries of model.json.
        """
        folder = self.path / "model"
        with explain_write_errors(folder):
            check_inside(folder, self.path).mkdir(exist_ok=True)
        old = {entry.name for entry in folder.glob("*.safetensors")}
        name = next(name for i in range(len(old) + 1) if (name := f"weights-{i}.safetensors") not in old)
        write_tensors(folder / name, network.weights)
        model = {"format": FORMAT, "graph": network.graph.to_json(), "weights": name, **about}
        write_json(folder / "model.json", model)
        for stale in old:
            (folder / stale).unlink(missing_ok=True)


def _is_leftover(entry: Path) -> bool:
    """Whether a file may be left over from a run that was interrupted before run.json was written."""
    empty = entry.name == "trials" and entry.is_dir() and not any(entry.iterdir())
    return empty or entry.name in ("lock", "holder") or entry.name.startswith(".run.json.")


_HOLDER = re.compile(r"process (\d+) on (.+)")


def is_being_written(path: Path) -> bool:
    """Whether a process is writing to the run, according to the file `holder`; on another machine it may have ended."""
    try:
        holder = _HOLDER.fullmatch((path / "holder").read_text())
        if holder is not None and holder[2] == socket.gethostname() and os.name == "posix":
            os.kill(int(holder[1]), 0)  # only tests whether the process exists
    except PermissionError:
        return True
    except (OSError, UnicodeDecodeError, OverflowError):
        return False
    return holder is not None


def _release(path: Path, lock: FileLock) -> None:
    with contextlib.suppress(OSError):  # the folder may have been deleted
        (path / "holder").unlink()
    lock.release()


def _acquire_lock(path: Path) -> FileLock:
    """The run's lock, which the system releases if its holder dies; RunError, which names the holder, if taken."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path / "lock", timeout=0, thread_local=False)  # any thread may close the store
        lock.acquire()
        (path / "holder").write_text(f"process {os.getpid()} on {socket.gethostname()}")
    except Timeout:
        holder = "another process"
        with contextlib.suppress(OSError):
            holder = (path / "holder").read_text()
        raise RunError(f"{str(path)!r} is being written by {holder}: wait for it, or choose another path") from None
    except OSError as error:
        raise RunError(f"{str(path)!r} cannot be written to: {error.strerror or error}") from error
    return lock


def load_about(path: Path) -> dict[str, Any]:
    """The contents of run.json; RunError if the folder holds no run, or one in another format."""
    if not holds_run(path):
        raise RunError(f"{str(path)!r} holds no run: there is no run.json in it")
    about = read_json(check_inside(path / "run.json", path))
    if about.get("format") != FORMAT:
        raise RunError(f"{path / 'run.json'} has format {about.get('format')!r}, but this version reads {FORMAT}")
    return about


def load_network(path: Path, trial: Trial) -> Network:
    if not trial.kept:
        status = "still running" if trial.outcome is None else trial.outcome.status
        why = f"{status}, but they were not kept" if status == "finished" else status
        raise RunError(f"trial {trial.id} has no weights: {why}")
    file = check_inside(_trial_folder(path, trial.id) / "weights.safetensors", path)
    return Network(trial.graph, read_weights(file, trial.graph))


def data_id(fingerprint: object) -> str:
    """A string that identifies the training data and a validation set given by the user; "" if it is not known.

    fingerprint: the entry "data" of run.json.
    """
    if not isinstance(fingerprint, Mapping):
        return ""
    validation = fingerprint.get("validation")
    suffix = f", {validation.get('hash')}" if isinstance(validation, Mapping) else ""
    return str(fingerprint.get("hash", "")) + suffix


def load_model(path: Path) -> tuple[Network, dict[str, Any]]:
    """The network that predicts, and the contents of model.json; RunError if they cannot be read."""
    about = read_json(check_inside(path / "model" / "model.json", path))
    if about.get("format") != FORMAT:
        raise RunError(f"{path / 'model'} has format {about.get('format')!r}, this version reads {FORMAT}")
    name = about.get("weights")
    if not isinstance(name, str) or Path(name).name != name:
        raise RunError(f"{path / 'model' / 'model.json'} names {name!r} as its weights, which is not a file beside it")
    try:
        graph = Graph.from_json(about.get("graph"))
    except ValueError as error:
        raise RunError(f"{path / 'model' / 'model.json'} holds no network: {error}") from error
    return Network(graph, read_weights(check_inside(path / "model" / name, path), graph)), about


@dataclass(frozen=True, repr=False)
class Run:
    """A read-only view of a run folder at the time of `load_run`. about: the contents of run.json."""

    path: Path
    about: Mapping[str, Any]
    trials: tuple[Trial, ...]

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {len(self.trials)} trials)"

    @property
    def history(self) -> list[dict[str, Any]]:
        """One entry per trial with a score: model_id, loss (see `Outcome.loss`), metric_value, measure (the metric's
        name) and more."""
        return [
            {
                "model_id": t.id,
                "loss": t.outcome.loss,
                "metric_value": t.outcome.metric,
                "measure": t.outcome.measure,
                "interval": t.outcome.interval,
                "parent": t.parent,
                "morphs": [str(morph) for morph in t.proposal.morphs],
                "epochs": t.outcome.epochs,
                "seconds": t.outcome.seconds,
                "parameters": t.graph.parameters,
                "flops": t.graph.flops,
                "latency": t.outcome.latency,
                "status": t.outcome.status,
            }
            for t in self.trials
            if t.outcome is not None and t.outcome.score is not None
        ]

    @property
    def data(self) -> str:
        """Identifies the data of the search, see `data_id`."""
        return data_id(self.about.get("data"))

    def front(self, cost: str = "flops") -> list[Trial]:
        """The Pareto front: trials with a better score than all others of the same or lower cost, the cheapest first.

        Only trials whose scores are comparable with the search's. cost: "parameters", "flops", or "latency", as
        measured; ValueError for others.
        """
        return front(comparable(self.trials, self.data), COSTS[check_cost(cost)], lambda trial: trial.score)

    def trials_dataframe(self) -> Any:
        """A pandas.DataFrame with one row per trial, see `trial_rows`; ImportError without pandas."""
        return frame(trial_rows(self.trials), TRIAL_COLUMNS).astype({"parent": "Int64"})

    def curves(self) -> Any:
        """A pandas.DataFrame with one row per scored epoch of each trial, see `curve_rows`: trial, epoch, seconds,
        loss, score, metric; ImportError without pandas."""
        return frame(curve_rows(self.trials), CURVE_COLUMNS)

    @cached_property
    def _by_id(self) -> dict[int, Trial]:
        return {trial.id: trial for trial in self.trials}

    def trial(self, model_id: int) -> Trial:
        try:
            return self._by_id[operator.index(model_id)]
        except (KeyError, TypeError):
            message = f"there is no model {model_id!r:.100} in {self.path}; its ids are {sorted(self._by_id)}"
            raise RunError(message) from None

    def get_best_model_id(self) -> int:
        """Id of the search's winner, or of the best so far while it runs; RunError if no trial has a score yet."""
        if isinstance(best := self.about.get("best"), int):
            return best
        if (leader := winner([trial for trial in self.trials if not trial.final])) is None:
            raise RunError(f"{self.path} has no network with a score yet")
        return leader.id

    def get_metric_value_by_id(self, model_id: int) -> float | None:
        outcome = self.trial(model_id).outcome
        return None if outcome is None else outcome.metric

    def load_model_by_id(self, model_id: int) -> Network:
        return load_network(self.path, self.trial(model_id))

    def load_best_model(self) -> Network:
        return self.load_model_by_id(self.get_best_model_id())


class HasRun(Protocol):
    """A fitted estimator."""

    def load_searcher(self) -> Run: ...


RunLike = Run | HasRun | str | os.PathLike[str]
"""A run, a fitted estimator, or a run folder."""


def run_of(source: RunLike) -> Run:
    """The run of a run, estimator or folder; RunError if there is none, ValueError for any other argument."""
    if isinstance(source, Run):
        return source
    if isinstance(source, (str, os.PathLike)):
        return load_run(source)
    if not callable(getattr(source, "load_searcher", None)):
        hint = "; the folder of a fit without path is clf.path_" if source is None else ""
        raise ValueError(f"expected a Run, a fitted estimator or the folder of a run, not {source!r:.100}{hint}")
    return source.load_searcher()


def load_run(path: str | os.PathLike[str]) -> Run:
    """The run in the folder `path`, which may still be running; RunError if there is none.

    If run.json is damaged, a warning is issued and the trials are read without it.
    """
    folder = user_path(path)
    try:
        about = load_about(folder)
    except RunError as error:
        if not (folder / "trials").is_dir() or _other_version(folder):
            raise
        warnings.warn(f"{error}; the trials are read without it", stacklevel=2)
        about = {}
    return Run(folder, about, tuple(_read_trials(folder)))


def _other_version(path: Path) -> bool:
    """Whether run.json is readable and states a format, in which case it is not damaged."""
    try:
        return "format" in read_json(check_inside(path / "run.json", path))
    except RunError:
        return False


def versions() -> dict[str, str]:
    """Versions of Python, the platform and the libraries that results depend on."""
    import numpy
    import scipy
    import sklearn
    import torch

    libraries = {module.__name__: str(module.__version__) for module in (torch, numpy, scipy, sklearn)}
    return {"python": platform.python_version(), "platform": platform.platform()} | libraries
