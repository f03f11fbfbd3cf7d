"""The run's folder: an append-only history of trials on disk, and the read-only view of it.

    run.json                   what the run is: settings, seed, data, versions, machine, best trial
    starts/<key>.safetensors   weights that a first network was given to begin with, by the key of its graph
    trials/00007/proposal.json written when the trial is claimed; the folder's name is the id
    trials/00007/checkpoint.safetensors   while it is trained, to go on from
    trials/00007/weights.safetensors
    trials/00007/trial.json    written last: with it the trial is finished
    model/model.json           what predict needs, names the file of its weights; written after it

Every file is written under a temporary name, synced and renamed. Nothing that is read can execute code.
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
from morphnas.graph.graph import bounded
from morphnas.graph.morphs import UnknownMorph, stored_morph
from morphnas.run.files import RunError, inside, read_json, read_weights, write_json, write_tensors, writing
from morphnas.run.frames import CURVE, TRIAL, curve_rows, frame, trial_rows
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
    """The path that a user means: "~" is the home folder, where there is one. ValueError for what is no path."""
    if not isinstance(name, (str, os.PathLike)):
        raise ValueError(f"expected the path of a folder or file, not {name!r:.100}")
    if isinstance(name, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", name):
        raise ValueError(f"{name!r:.100} is an address, not the path of a folder or file on this machine")
    path = Path(os.path.expanduser(name))  # noqa: PTH111  # Path.expanduser fails where nobody is called so
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


def _ids(folders: Path) -> list[str]:
    """Names of the trials' folders, in order."""
    try:
        names = [entry.name for entry in folders.iterdir()] if folders.is_dir() else []
        return sorted((n for n in names if _ID.fullmatch(n) and n == f"{int(n):05d}"), key=int)
    except OSError as error:
        raise RunError(f"{folders} cannot be read: {error.strerror or error}") from error


def _read_trials(path: Path) -> Iterator[Trial]:
    """All trials that can be read, in order; a warning names what cannot."""
    graphs: dict[int, Graph] = {}
    elsewhere: dict[str, None] = {}
    folders = path / "trials"
    names = _ids(folders)
    for name in names:
        folder = folders / name
        if not (folder / "proposal.json").exists():
            continue  # claimed by a driver that died before it wrote anything
        try:
            data = read_json(inside(folder / "proposal.json", path))
            proposal = proposal_from_json(data)
            if proposal.parent is not None and proposal.parent >= int(name):
                raise ValueError(f"it starts from trial {proposal.parent}, which is no earlier one")
            done = (folder / "trial.json").exists()
            unknown = any(isinstance(morph, UnknownMorph) for morph in proposal.morphs)
            own = "graph" in data and (done or unknown)  # which stays, whatever happens to the start
            graph = Graph.from_json(data["graph"]) if own else bounded(grow_proposal(proposal, graphs))
            since, begun = data.get("since"), data.get("begun")
            trial = Trial(
                int(name),
                proposal,
                graph,
                since=since if isinstance(since, int) else 0,
                begun=begun if is_number(begun) else None,
            )
            if done:
                end = read_json(inside(folder / "trial.json", path))
                if end.get("format") != FORMAT:
                    raise ValueError(f"trial.json has format {end.get('format')!r}, this version reads {FORMAT}")
                outcome = Outcome.from_json(end.get("outcome", {}))
                kept = end.get("kept") is True and (folder / "weights.safetensors").is_file()
                trial = replace(trial, outcome=outcome, kept=kept)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            warnings.warn(f"trial {name} in {path} is left out: {error}", stacklevel=3)
            continue
        graphs[trial.id] = trial.graph
        elsewhere |= dict.fromkeys(m.tag for m in trial.proposal.morphs if isinstance(m, UnknownMorph))
        yield trial
    if elsewhere:
        kinds = ", ".join(elsewhere)
        warnings.warn(f"{path} has morphs of a kind that is not defined here: {kinds:.100}", stacklevel=3)


class Store:
    """The folder of a run, held by the one driver that may write to it. Use `create` or `resume`, and `close`."""

    def __init__(self, path: Path, lock: FileLock, about: Mapping[str, Any]) -> None:
        self.path = path
        self.about: Mapping[str, Any] = about
        self._lock = lock
        self._trials: dict[int, Trial] = {}
        self._since: tuple[int, float] | None = None  # the first trial that is taken up here, and when
        self._writer = ThreadPoolExecutor(1, "morphnas-write")
        self._writing: tuple[int, Future[None]] | None = None  # of which trial
        self._reopened: dict[int, Trial] = {}

    @classmethod
    def create(cls, path: Path, about: Mapping[str, Any], overwrite: bool = False) -> Self:
        """A new run in an empty or new folder; with `overwrite` an earlier run's files, and only those, are removed.

        RunError for a folder that holds a run (without `overwrite`), that holds other files, or cannot be written.
        """
        try:
            cls.check(path, overwrite=overwrite)
        except RunError:
            if holds_run(path):
                _let_go(path, _locked(path))  # raises, and names the process, where one is writing to it
            raise
        store = cls(path, _locked(path), {"format": FORMAT, **about, "host": socket.gethostname()})
        try:
            with writing(path):
                if holds_run(path):  # nobody is to go on with what is left of it, if this is interrupted
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
        """The run that the folder holds, to be carried on."""
        try:
            about = load_about(path)
        except RunError as error:
            if not holds_run(path):
                raise
            hint = "without it the run cannot be resumed; its trials and its model still load"
            raise RunError(f"{error}: {hint}") from error
        store = cls(path, _locked(path), about)
        try:
            for folder in (path, path / "model", *(path / "trials").glob("*")):
                for unfinished in folder.glob(".*.tmp"):  # of a driver that died while it wrote
                    inside(unfinished, path).unlink(missing_ok=True)
            for left in path.glob("morphnas-????????"):  # of its workers, where these were killed as well
                if left.is_dir() and not left.is_symlink() and {e.name for e in left.iterdir()} <= {"task.pt"}:
                    shutil.rmtree(left, ignore_errors=True)
            store._trials = {trial.id: trial for trial in _read_trials(path)}
        except BaseException:
            store.close()
            raise
        return store

    @staticmethod
    def check(path: Path, overwrite: bool = False, resume: bool = False) -> None:
        """RunError when a run cannot be begun (or, with `resume`, carried on) in this folder. Leaves nothing behind."""
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
        elif path.is_dir() and (other := sorted(entry.name for entry in path.iterdir() if not _of_no_run(entry))):
            raise RunError(f"{str(path)!r} holds other files ({', '.join(other[:3])}): choose an empty or new folder")
        parent = next(folder for folder in (path, *path.resolve().parents) if folder.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise RunError(f"{str(parent)!r} cannot be written to: choose another path for the run")

    def close(self) -> None:
        """Let the run go, when all is written. What could not be was told by what came before, and is logged here."""
        try:
            self._writer.shutdown()
        finally:
            if self._writing is None:
                _let_go(self.path, self._lock)
            else:  # not before, also where this is interrupted
                self._writing[1].add_done_callback(lambda _: _let_go(self.path, self._lock))
        if self._writing is not None and (error := self._writing[1].exception()):
            log.error("%s", error)

    @property
    def trials(self) -> list[Trial]:
        """All trials in the order of their ids, running ones included."""
        return list(self._trials.values())

    def trial(self, id: int) -> Trial:
        try:
            return self._trials[operator.index(id)]
        except (KeyError, TypeError):
            raise RunError(f"there is no trial {id!r:.100} in {self.path}, or it cannot be read") from None

    def claim(self, proposal: Proposal) -> Trial:
        """Give the proposal an id and write it down: after what it starts from."""
        if proposal.parent is not None:
            self.written(proposal.parent)
        graph = grow_proposal(proposal, {trial.id: trial.graph for trial in self._trials.values()})
        id = max(self._trials, default=-1) + 1
        while (_trial_folder(self.path, id) / "proposal.json").exists():  # of a trial that could not be read
            id += 1
        with writing(self.path):
            inside(_trial_folder(self.path, id), self.path).mkdir(exist_ok=True)
        first, then = self._since = self._since or (id, time.monotonic())
        begun = round(time.monotonic() - then, 3)
        data = proposal_to_json(proposal) | {"since": first, "begun": begun}
        if proposal.morphs or proposal.parent is not None:  # to be read whatever happens to the start, or the morphs
            data["graph"] = graph.to_json()
        write_json(_trial_folder(self.path, id) / "proposal.json", data)
        self._trials[id] = Trial(id, proposal, graph, since=first, begun=begun)
        return self._trials[id]

    def finish(self, id: int, outcome: Outcome, weights: Weights | None, behind: bool = False) -> Trial:
        """Commit what came of a trial: the weights first, the outcome last.

        behind: whether in a thread of its own, so that nobody waits for the disk. Whatever needs the files waits, and
        raises what went wrong with them.
        """
        self.written()
        before = self._reopened.pop(id, None)
        if before is not None and before.outcome is not None:
            if weights is None or outcome.epochs < before.outcome.epochs:
                self._trials[id] = before
                return before
            if self.about.get("final") == id:  # the model is of another network from now on
                self.note(best=None, final=None, members=None)
        ended = replace(self._trials[id], outcome=outcome, kept=weights is not None)
        if behind:
            self._writing = id, self._writer.submit(self._commit, ended, weights)
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
        """Have a trial that a stop has ended be gone on with, from its checkpoint if there is one.

        What it came to is only replaced when `finish` has a network that was trained for no less.
        """
        self._reopened[id] = self._trials[id]
        self._trials[id] = replace(self._trials[id], outcome=None, kept=False)

    def put_back(self) -> None:
        """Take those that were reopened, and not finished since, for what they were."""
        self._trials |= self._reopened
        self._reopened.clear()

    def written(self, id: int | None = None) -> None:
        """Wait for what is being written (of that trial); RunError where that could not be, and ever after."""
        if self._writing is not None:
            trial, writing = self._writing
            if id in (None, trial) or writing.done():
                writing.result()

    def checkpoint(self, id: int) -> Path:
        """Where a training that is interrupted leaves what it goes on from."""
        return _trial_folder(self.path, id) / "checkpoint.safetensors"

    def drop_weights(self, id: int) -> None:
        """Remove a trial's weights: nothing starts from it any more."""
        self.written(id)
        with writing(self.path):
            (_trial_folder(self.path, id) / "weights.safetensors").unlink(missing_ok=True)
        self.forget_weights(id)

    def forget_weights(self, id: int | None) -> None:
        """Start nothing from a trial any more whose weights cannot be read; its files stay as they are."""
        if id in self._trials:
            self._trials[id] = replace(self._trials[id], kept=False)

    def network(self, id: int) -> Network:
        self.written(id)
        return load_network(self.path, self.trial(id))

    def give(self, network: Network) -> None:
        """Let trials that start from the network's graph begin with its weights."""
        file = self._given(network.graph)
        with writing(self.path):
            inside(file.parent, self.path).mkdir(exist_ok=True)
        write_tensors(file, network.weights)

    def _given(self, graph: Graph) -> Path:
        return self.path / "starts" / f"{graph.key}.safetensors"

    def gives(self, start: Graph | int) -> bool:
        """Whether there are weights that were given for this start."""
        return isinstance(start, Graph) and self._given(start).is_file()

    def start(self, start: Graph | int) -> Graph | Network:
        """What a proposal starts from, with its weights where there are any; RunError where they cannot be read."""
        if not isinstance(start, Graph):
            return self.network(start)
        file = inside(self._given(start), self.path)
        return Network(start, read_weights(file, start)) if self.gives(start) else start

    def note(self, **facts: Any) -> None:
        """Add facts to run.json."""
        self.written()
        self.about = {**self.about, **facts}
        write_json(self.path / "run.json", self.about)

    def write_model(self, network: Network, about: Mapping[str, Any]) -> None:
        """Make a network the one that predicts: its weights under a new name, then the file that names them."""
        folder = self.path / "model"
        with writing(folder):
            inside(folder, self.path).mkdir(exist_ok=True)
        old = {entry.name for entry in folder.glob("*.safetensors")}
        name = next(name for i in range(len(old) + 1) if (name := f"weights-{i}.safetensors") not in old)
        write_tensors(folder / name, network.weights)
        model = {"format": FORMAT, "graph": network.graph.to_json(), "weights": name, **about}
        write_json(folder / "model.json", model)
        for stale in old:
            (folder / stale).unlink(missing_ok=True)


def _of_no_run(entry: Path) -> bool:
    """Whether a file may be left over from a run of which nothing was written."""
    empty = entry.name == "trials" and entry.is_dir() and not any(entry.iterdir())
    return empty or entry.name in ("lock", "holder") or entry.name.startswith(".run.json.")


_HOLDER = re.compile(r"process (\d+) on (.+)")


def being_written(path: Path) -> bool:
    """Whether a process writes to a run, by what it has left there: one on another machine may be gone since."""
    try:
        found = _HOLDER.fullmatch((path / "holder").read_text())
        if found is not None and found[2] == socket.gethostname() and os.name == "posix":
            os.kill(int(found[1]), 0)  # does nothing to it
    except PermissionError:
        return True
    except (OSError, UnicodeDecodeError, OverflowError):
        return False
    return found is not None


def _let_go(path: Path, lock: FileLock) -> None:
    with contextlib.suppress(OSError):  # the folder may be gone
        (path / "holder").unlink()
    lock.release()


def _locked(path: Path) -> FileLock:
    """The run's lock, which the system lets go of when its holder dies; RunError names the holder."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path / "lock", timeout=0, thread_local=False)  # whichever thread closes the store
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
    """What run.json says; RunError when the folder holds no run, or one of another version."""
    if not holds_run(path):
        raise RunError(f"{str(path)!r} holds no run: there is no run.json in it")
    about = read_json(inside(path / "run.json", path))
    if about.get("format") != FORMAT:
        raise RunError(f"{path / 'run.json'} has format {about.get('format')!r}, but this version reads {FORMAT}")
    return about


def load_network(path: Path, trial: Trial) -> Network:
    if not trial.kept:
        status = "still running" if trial.outcome is None else trial.outcome.status
        why = f"{status}, but they were not kept" if status == "finished" else status
        raise RunError(f"trial {trial.id} has no weights: {why}")
    file = inside(_trial_folder(path, trial.id) / "weights.safetensors", path)
    return Network(trial.graph, read_weights(file, trial.graph))


def data_name(fingerprint: object) -> str:
    """What tells a run's examples, and those held out, from others, by what run.json says of them; "" for nothing."""
    if not isinstance(fingerprint, Mapping):
        return ""
    own = fingerprint.get("validation")
    return str(fingerprint.get("hash", "")) + (f", {own.get('hash')}" if isinstance(own, Mapping) else "")


def load_model(path: Path) -> tuple[Network, dict[str, Any]]:
    """The network that predicts, and what was written down with it."""
    about = read_json(inside(path / "model" / "model.json", path))
    if about.get("format") != FORMAT:
        raise RunError(f"{path / 'model'} has format {about.get('format')!r}, this version reads {FORMAT}")
    name = about.get("weights")
    if not isinstance(name, str) or Path(name).name != name:
        raise RunError(f"{path / 'model' / 'model.json'} names {name!r} as its weights, which is no file beside it")
    try:
        graph = Graph.from_json(about.get("graph"))
    except ValueError as error:
        raise RunError(f"{path / 'model' / 'model.json'} holds no network: {error}") from error
    return Network(graph, read_weights(inside(path / "model" / name, path), graph)), about


@dataclass(frozen=True, repr=False)
class Run:
    """A read-only view of a run's folder; `load_run` reads it again."""

    path: Path
    about: Mapping[str, Any]
    trials: tuple[Trial, ...]

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {len(self.trials)} trials)"

    @property
    def history(self) -> list[dict[str, Any]]:
        """One entry per trial that has a score: model_id, loss (see `Outcome.loss`), metric_value, measure (what that
        is) and more."""
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
        """The name of the data that the search was on."""
        return data_name(self.about.get("data"))

    def front(self, cost: str = "flops") -> list[Trial]:
        """The Pareto front: the trials that no other beats at the same cost or less, the cheapest first.

        Only trials whose scores are comparable with the search's. cost: "parameters", "flops", or "latency", as
        measured; ValueError for others.
        """
        return front(comparable(self.trials, self.data), COSTS[check_cost(cost)], lambda trial: trial.score)

    def trials_dataframe(self) -> Any:
        """A pandas.DataFrame with a row for every trial, see `trial_rows`; ImportError without pandas."""
        return frame(trial_rows(self.trials), TRIAL).astype({"parent": "Int64"})

    def curves(self) -> Any:
        """A pandas.DataFrame with a row for every epoch of every trial: trial, epoch, seconds, loss, score, metric."""
        return frame(curve_rows(self.trials), CURVE)

    @cached_property
    def _by_id(self) -> dict[int, Trial]:
        return {trial.id: trial for trial in self.trials}

    def trial(self, model_id: int) -> Trial:
        try:
            return self._by_id[operator.index(model_id)]
        except (KeyError, TypeError):
            words = f"there is no model {model_id!r:.100} in {self.path}; its ids are {sorted(self._by_id)}"
            raise RunError(words) from None

    def get_best_model_id(self) -> int:
        """Id of the search's winner, of what there is while it goes on; RunError before there is one."""
        if isinstance(best := self.about.get("best"), int):
            return best
        if (ahead := winner([trial for trial in self.trials if not trial.final])) is None:
            raise RunError(f"{self.path} has no network with a score yet")
        return ahead.id

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
"""A run, the fitted estimator that it belongs to, or its folder."""


def run_of(what: RunLike) -> Run:
    """The run that is meant; RunError where there is none, ValueError for anything else."""
    if isinstance(what, Run):
        return what
    if isinstance(what, (str, os.PathLike)):
        return load_run(what)
    if not callable(getattr(what, "load_searcher", None)):
        hint = "; the folder of a fit without path is clf.path_" if what is None else ""
        raise ValueError(f"expected a Run, a fitted estimator or the folder of a run, not {what!r:.100}{hint}")
    return what.load_searcher()


def load_run(path: str | os.PathLike[str]) -> Run:
    """The run in a folder, also while it is being written; RunError if there is none.

    If run.json cannot be read, there is a warning: the trials are still available.
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
    """Whether run.json is whole, and of a version that says so."""
    try:
        return "format" in read_json(inside(path / "run.json", path))
    except RunError:
        return False


def versions() -> dict[str, str]:
    """What a run was made with."""
    import numpy
    import scipy
    import sklearn
    import torch

    found = {module.__name__: str(module.__version__) for module in (torch, numpy, scipy, sklearn)}
    return {"python": platform.python_version(), "platform": platform.platform()} | found
