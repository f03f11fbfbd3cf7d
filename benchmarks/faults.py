"""Fault injection into fits and into the files of runs: what is lost.

    python benchmarks/faults.py [--smoke] [--only NAME ...]

Every row of the table `FAULTS` injects one kind of fault several times and counts the effects. Drivers are forked
processes that fit on 300 of scikit-learn's digits, with networks of two channels; a finished trial is acknowledged once
the driver has printed it, which is after it was committed. Lost are acknowledged trials whose files are not byte for
byte the same after the fault, or that differ after the run was resumed. A hang takes more than `PATIENCE` seconds
longer than it should; an execution is an audit event, while files are read, of code that is run, a process that is
started or a pickle that is loaded; a wrong error is not a ValueError, or does not name the file or the cause. Runs that
were killed and resumed are compared with an uninterrupted one, trial by trial.

Writes results/faults.json, with the machine; with --only, these rows of it; --smoke: few of each, nothing is written.
Exits with status 1 if anything was lost, hung or executed, or if an error was wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import math
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from machine import describe
from sklearn.datasets import load_digits

sys.path.insert(0, str(Path(__file__).parents[1]))

import morphnas
from morphnas.run import checkpoints, executors
from morphnas.run.store import Run, Store, load_run
from morphnas.run.work import work
from morphnas.search.trial import STOPPED
from morphnas.train.step import Step
from tests.fuzzing import mutate_file, read_with_all_readers

RESULTS = Path(__file__).parent / "results" / "faults.json"
PATIENCE = 60.0
"""Seconds beyond the expected time after which a driver, or reading a file, counts as hung."""
MEMORY = 2 * 2**30
"""Bytes that reading a damaged file may allocate in addition to what the process uses."""
CUTS = 100
"""Maximum number of offsets at which a file of each kind is truncated."""
ARGS: dict[str, Any] = {
    "default_model_width": 2,
    "default_model_len": 2,
    "trainer_args": {"epochs": 4, "precision": "float32", "augment": morphnas.Augment()},
}
Row = dict[str, Any]


def digits() -> tuple[Any, Any]:
    x, y = load_digits(return_X_y=True)
    return x[:300].reshape(-1, 8, 8).astype(np.uint8), y[:300]


def fit(path: Path, *, trials: int = 6, seconds: float = 3600.0, often: bool = True, **more: Any) -> None:
    """Run a fit, or resume the one in the folder. often: write a checkpoint after every epoch."""
    if often:
        checkpoints.MIN_INTERVAL, checkpoints.MAX_TIME_SHARE = 0.0, 1e9
    settings: Row = {
        "random_state": 0, "resume": "auto", "searcher_args": ARGS, "refit": False, "verbose": True,
        "limits": {"max_params": 20_000},  # an hour has room for networks that take minutes
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        morphnas.ImageClassifier(path, max_trials=trials, **(settings | more)).fit(*digits(), time_limit=seconds)


# -- drivers


def _drive(path: Path, log: Path, setup: Callable[[], None] | None, settings: Row) -> None:
    """The target of a driver process: its output and its final error go to the log file."""
    with log.open("a", buffering=1, encoding="utf-8") as file:
        sys.stderr = file
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if setup:
            setup()
        try:
            fit(path, **settings)
        except Exception as error:
            print(f"raised {type(error).__name__}: {error}", file=file)
            sys.exit(3)


def driver(path: Path, setup: Callable[[], None] | None = None, **settings: Any) -> BaseProcess:
    log = path.with_suffix(".said")
    process = multiprocessing.get_context("fork").Process(target=_drive, args=(path, log, setup, settings))
    process.start()
    return process


def acknowledged(path: Path) -> set[int]:
    """Ids of the trials that drivers have printed as finished."""
    log = path.with_suffix(".said")
    return set(map(int, re.findall(r"^trial (\d+):", log.read_text(), re.MULTILINE))) if log.exists() else set()


def ended(process: BaseProcess, seconds: float = 0.0) -> bool:
    """Whether the process ends in time; it is killed if not."""
    process.join(seconds + PATIENCE)
    if hung := process.is_alive():
        process.kill()
        process.join()
    return not hung


def table(run: Run) -> list[Any]:
    """What an interrupted and resumed run must share with an uninterrupted one: everything but durations."""
    rows = []
    for trial in run.trials:
        curve = tuple((e.loss, e.score, e.metric) for e in trial.outcome.curve) if trial.outcome else None
        outcome = trial.outcome and replace(trial.outcome, seconds=0, images_per_second=0, latency=None, curve=())
        rows.append(
            (trial.id, trial.graph.key, trial.proposal.start, trial.proposal.morphs, trial.kept, curve, outcome)
        )
    return rows


def trial_files(path: Path, id: int) -> dict[str, bytes]:
    """The committed files of a trial; one that ended before it had weights has no file of them."""
    folder = path / "trials" / f"{id:05d}"
    files = {name: (folder / name).read_bytes() for name in ("proposal.json", "trial.json")}
    kept = json.loads(files["trial.json"])["kept"]
    return files | ({"weights.safetensors": (folder / "weights.safetensors").read_bytes()} if kept else {})


def lost(path: Path, known: dict[int, dict[str, bytes]]) -> int:
    """Number of acknowledged trials that are unreadable or have changed; updates `known`, their files by id."""
    count, run = 0, load_run(path) if (path / "run.json").exists() else None
    for id in acknowledged(path):
        try:
            assert run is not None
            files = trial_files(path, id)
            if "weights.safetensors" in files:
                run.load_model_by_id(id)
            assert run.trial(id).outcome is not None
            before = known.get(id, files)
            count += before != files and not was_continued(before, files)
            known[id] = files
        except (AssertionError, OSError, ValueError):
            count += 1
    return count


def was_continued(before: dict[str, bytes], now: dict[str, bytes]) -> bool:
    """Whether a trial that was cut short by a stop has since been trained for at least as many epochs."""
    old, new = (json.loads(files["trial.json"])["outcome"] for files in (before, now))
    return bool(old.get("error") == STOPPED and new["epochs"] >= old["epochs"])


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        yield Path(name)


# -- the driver is killed, stopped, or not alone


def killed(smoke: bool) -> Row:
    """kill -9 at random moments: repeatedly in searches, which are completed afterwards, and once in fits with final
    training."""
    rng, row, trials = random.Random(0), Counter[str](), 16
    with folder() as base:
        fit(base / "warm", trials=2)
        start = time.monotonic()
        fit(base / "unbroken", trials=trials)
        whole, expected = time.monotonic() - start, table(load_run(base / "unbroken"))
        while row["injected"] < (3 if smoke else 40):
            path, known = base / f"run{row['runs']}", dict[int, dict[str, bytes]]()
            row["runs"] += 1
            for _ in range(10):
                process = driver(path, trials=trials)
                time.sleep(rng.uniform(0.02, 0.4 * whole))
                if not process.is_alive():
                    break
                process.kill()
                process.join()
                row["injected"] += 1
                row["lost"] += lost(path, known)
                row["with an open trial"] += any(trial.outcome is None for trial in _trials(path))
                row["with a checkpoint"] += any(path.glob("trials/*/checkpoint.safetensors"))
            row["hangs"] += not ended(driver(path, trials=trials), whole)
            row["lost"] += lost(path, known)
            row["acknowledged"] += len(known)
            row["unlike the unbroken run"] += table(load_run(path)) != expected
        for i in range(1 if smoke else 10):
            path, known = base / f"final{i}", dict[int, dict[str, bytes]]()
            process = driver(path, trials=2, seconds=20.0, refit=True)
            time.sleep(rng.uniform(0.5, 3.0))
            row["injected"] += process.is_alive()
            process.kill()
            process.join()
            row["lost"] += lost(path, known)
            row["in a final training"] += any(t.outcome is None and "final" in t.proposal.why for t in _trials(path))
            row["hangs"] += not ended(driver(path, trials=2, seconds=20.0, refit=True), 20.0)
            row["lost"] += lost(path, known)
            row["acknowledged"] += len(known)
            row["no model"] += not _predicts(path)
    return dict(row)


def _trials(path: Path) -> tuple[Any, ...]:
    return load_run(path).trials if (path / "run.json").exists() else ()


def _predicts(path: Path) -> bool:
    try:
        return len(morphnas.ImageClassifier.load(path).predict_proba(digits()[0][:5])) == 5
    except ValueError:
        return False


def signalled(number: signal.Signals, status: int, smoke: bool) -> Row:
    """One signal at a random moment after the first trial: there must be a model, and the run must be resumable."""
    rng, row, waits = random.Random(int(number)), Counter[str](), list[float]()
    with folder() as base:
        for i in range(2 if smoke else 15):
            path, known = base / f"run{i}", dict[int, dict[str, bytes]]()
            process = driver(path, trials=60, seconds=120.0, refit=i % 2 == 1)
            while process.is_alive() and not acknowledged(path):
                time.sleep(0.02)
            time.sleep(rng.uniform(0, 3))
            start = time.monotonic()
            os.kill(process.pid or 0, number)
            row["injected"] += 1
            row["hangs"] += not ended(process)
            waits.append(time.monotonic() - start)
            row["another exit status"] += process.exitcode != status
            row["no model"] += not _predicts(path)
            row["open trials"] += any(trial.outcome is None for trial in load_run(path).trials)
            row["lost"] += lost(path, known)
            more = len(load_run(path).trials) + 2
            row["hangs"] += not ended(driver(path, trials=more, refit=False))
            row["lost"] += lost(path, known)
            row["acknowledged"] += len(known)
    return dict(row) | {"seconds until it ended, at most": round(max(waits), 2)}


def two_drivers(smoke: bool) -> Row:
    """A second driver on the same folder raises an error that names the first; after that has died, one may resume."""
    row = Counter[str]()
    with folder() as base:
        for i in range(1 if smoke else 5):
            path, known = base / f"run{i}", dict[int, dict[str, bytes]]()
            first = driver(path, trials=60)
            while first.is_alive() and not acknowledged(path):
                time.sleep(0.02)
            second = driver(path, trials=60)
            row["hangs"] += not ended(second)
            log = path.with_suffix(".said").read_text()
            row["wrong errors"] += f"is being written by process {first.pid} on " not in log
            row["injected"] += 1
            first.kill()
            first.join()
            row["lost"] += lost(path, known)
            third = driver(path, trials=len(known) + 1)
            row["hangs"] += not ended(third)
            row["refused when the first was dead"] += third.exitcode != 0
            row["lost"] += lost(path, known)
            row["acknowledged"] += len(known)
    return dict(row)


# -- the disk


def disk_full(smoke: bool) -> Row:
    """No space left: on a file system of a few hundred kB if one can be mounted, else from the n-th write on."""
    row = Counter[str]()
    with folder() as base:
        for i in range(2 if smoke else 12):
            mount_point, known = base / f"disk{i}", dict[int, dict[str, bytes]]()
            mount_point.mkdir()
            size = f"{120 + 40 * i}k"
            mounted = _mounted(mount_point, size)
            path = mount_point / "run"
            try:
                setup = None if mounted else partial(_failing_write, 8 + 3 * i)
                process = driver(path, setup, trials=60, seconds=60.0)
                row["hangs"] += not ended(process, 60.0)
                log = path.with_suffix(".said").read_text() if path.with_suffix(".said").exists() else ""
                row["injected"] += 1
                row["on a real file system" if mounted else "by failing writes"] += 1
                row["wrong errors"] += process.exitcode != 3 or not re.search(
                    r"raised RunError: .*(cannot be written|left).*", log
                )
                row["lost"] += lost(path, known)
                row["acknowledged"] += len(known)
                if mounted:
                    subprocess.run(["mount", "-o", "remount,size=64m", str(mount_point)], check=True)
                before = len(known)
                row["hangs"] += not ended(driver(path, trials=before + 2))
                row["lost"] += lost(path, known)
                row["did not go on"] += len([t for t in _trials(path) if t.outcome]) != before + 2
            finally:
                if mounted:
                    subprocess.run(["umount", str(mount_point)], check=False)
    return dict(row)


def _mounted(where: Path, size: str) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(where)]
    with contextlib.suppress(OSError):
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    return False


def _failing_write(n: int) -> None:
    """From the n-th file on, `fsync` reports a full disk."""
    sync, count = os.fsync, iter(range(10**9))

    def fsync(fd: Any) -> None:
        if next(count) >= n:
            raise OSError(28, "No space left on device")
        sync(fd)

    os.fsync = fsync


def removed(smoke: bool) -> Row:
    """The run folder is moved away while a network is trained."""
    row = Counter[str]()
    with folder() as base:
        for i in range(1 if smoke else 6):
            path = base / f"run{i}"
            process = driver(path, trials=60, seconds=60.0)
            while process.is_alive() and not acknowledged(path):
                time.sleep(0.02)
            path.rename(base / f"moved{i}")
            row["hangs"] += not ended(process, 60.0)
            row["injected"] += 1
            row["wrong errors"] += f"raised RunError: {path}" not in path.with_suffix(".said").read_text()
            path.with_suffix(".said").rename(base / f"moved{i}.said")
            known: dict[int, dict[str, bytes]] = {}
            row["lost"] += lost(base / f"moved{i}", known)
            row["acknowledged"] += len(known)
    return dict(row)


# -- trainings


def trained_with(hook: Callable[[int], None], statuses: tuple[str, ...], smoke: bool) -> Row:
    """Training steps fail in every third network, which must be its outcome, and the search must continue."""
    row, step, job = Counter[str](), Step.__call__, work
    with folder() as base:
        for i in range(1 if smoke else 3):
            path, number = base / f"run{i}", iter(range(10**9))

            def working(*args: Any, number: Iterator[int] = number, **more: Any) -> Any:
                bad = next(number) % 3 == 1

                def stepped(self: Step, *args: Any) -> torch.Tensor:
                    if bad:
                        hook(0)
                    loss = step(self, *args)
                    return loss * math.nan if bad else loss

                with mock.patch.object(Step, "__call__", stepped):
                    return job(*args, **more)

            with mock.patch.object(executors, "work", working), contextlib.redirect_stderr(io.StringIO()):
                fit(path, trials=9, seconds=60.0, often=False)
            outcomes = [trial.outcome for trial in load_run(path).trials if trial.outcome]
            bad = [outcome for outcome in outcomes if outcome.status != "finished"]
            row["injected"] += len(bad)
            row["wrong errors"] += sum(o.status not in statuses or not o.error for o in bad) + (not bad)
            row["acknowledged"] += len(outcomes)
            row["lost"] += len(load_run(path).trials) - len(outcomes)
            row["no model"] += not _predicts(path)
    return dict(row)


def _out_of_memory(_: int) -> None:
    raise torch.OutOfMemoryError("injected: no room")


# -- workers


def _workers() -> list[int]:
    """Process ids of this process's workers."""
    output = subprocess.run(
        ["pgrep", "-P", str(os.getpid()), "-f", "morphnas.run.worker"], capture_output=True, text=True, check=False
    )
    return list(map(int, output.stdout.split()))


def workers_with(number: signal.Signals, times: int, seconds: float, smoke: bool) -> Row:
    """Signal a busy worker at random moments, `times` times in each of several fits: one network must fail with an
    error, another worker must replace it, and the search must end in time."""
    rng, row = random.Random(int(number)), Counter[str]()
    fits = 1 if smoke else 3
    with folder() as base:
        for i in range(fits):
            path, done = base / f"run{i}", threading.Event()

            def shoot(path: Path = path, done: threading.Event = done) -> None:
                left = times
                while left and not done.is_set():
                    time.sleep(rng.uniform(0.5, 3.0))
                    busy = sum(trial.outcome is None for trial in _trials(path))
                    if busy and (alive := _workers()):
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(rng.choice(alive), number)
                            row["injected"] += 1
                            left -= 1

            shooter = threading.Thread(target=shoot)
            shooter.start()
            start = time.monotonic()
            with contextlib.redirect_stderr(io.StringIO()):
                fit(path, trials=10_000, seconds=seconds, often=False, executor="process", devices=2)
            row["hangs"] += time.monotonic() - start > seconds + 15.0
            done.set()
            shooter.join()
            trials = _trials(path)
            failed = [t.outcome for t in trials if t.outcome is not None and t.outcome.status == "failed"]
            row["failed networks"] += len(failed)
            row["wrong errors"] += sum("worker" not in (outcome.error or "") for outcome in failed)
            row["lost"] += sum(trial.outcome is None for trial in trials)
            row["acknowledged"] += len(trials)
            row["no model"] += not _predicts(path)
        row["left behind"] = len(_workers())
    return dict(row)


# -- files


EVENTS = ("exec", "os.", "subprocess.", "pickle.", "marshal.", "socket.", "ctypes.", "shutil.rmtree", "urllib.")
HARMLESS = (
    "os.listdir",
    "os.scandir",
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.truncate",
    "os.chmod",
    "os.utime",
    "socket.gethostname",
)
_heard: list[str] = []
_listening = False


def _listen(event: str, _: Any) -> None:
    if _listening and event.startswith(EVENTS) and not event.startswith(HARMLESS):
        _heard.append(event)


def a_run(path: Path) -> None:
    """Create a run that was killed, with a file of every kind, including checkpoints."""
    with contextlib.redirect_stderr(io.StringIO()):
        fit(path, trials=3, refit=True, seconds=4.0)
        finish = Store.finish

        def end(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        Store.finish = end  # type: ignore[method-assign,assignment]
        try:
            with contextlib.suppress(KeyboardInterrupt):
                fit(path, trials=4)
        finally:
            Store.finish = finish  # type: ignore[method-assign]


def names(path: Path) -> dict[str, list[str]]:
    """The files of a run, by file name."""
    kinds: dict[str, list[str]] = {}
    for file in sorted(path.rglob("*")):
        if file.is_file():
            kinds.setdefault(file.name, []).append(str(file.relative_to(path)))
    return kinds


class Late(BaseException):
    """Reading takes too long."""


def reading(path: Path, name: str, row: Counter[str], expected: Run) -> None:
    """Read a damaged folder in every way, and count the effects in `row`."""
    global _listening  # noqa: PLW0603  # an audit hook stays for ever

    def late(*_: object) -> None:
        raise Late

    row["injected"] += 1
    signal.signal(signal.SIGALRM, late)
    signal.alarm(int(PATIENCE))
    start, _listening = time.process_time(), True
    try:
        messages = read_with_all_readers(path)
        _listening = False
        refused = [words for words in messages.values() if words]
        row["refused" if refused else "read"] += 1
        row["errors without a cause"] += sum(len(words) < 20 for words in refused)
        own = int(name.split("/")[1]) if name.startswith("trials/") else None
        trials = {trial.id: trial for trial in load_run(path).trials} if name != "run.json" else {}
        row["lost"] += sum(trials.get(t.id) != t for t in expected.trials if trials and t.outcome and t.id != own)
    except Late:
        row["hangs"] += 1
    except MemoryError:
        row["huge allocations"] += 1
    except BaseException as error:
        row["wrong errors"] += 1
        print(f"{name}: {type(error).__name__}: {error}"[:300], flush=True)
    finally:
        _listening = False
        signal.alarm(0)
    row["slowest, in ms"] = max(row["slowest, in ms"], round(1000 * (time.process_time() - start)))


def damaged(damage: Callable[[Path, Path, Counter[str], Run], None]) -> Row:
    """Apply `damage` to a copy of a run, and read it within the memory limit."""
    row = Counter[str]()
    with folder() as base, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        a_run(base / "run")
        shutil.copytree(base / "run", base / "copy")
        logging.getLogger("morphnas").setLevel(logging.CRITICAL)
        read_with_all_readers(base / "run")
        size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, before[1]))
        _heard.clear()
        try:
            damage(base / "run", base / "copy", row, load_run(base / "run"))
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)
            logging.getLogger("morphnas").setLevel(logging.NOTSET)
        row["executions"] += len(_heard)
        if _heard:
            print(Counter(_heard), flush=True)
    return dict(row)


def truncated(smoke: bool) -> Row:
    """Files of every kind, truncated at many offsets."""

    def damage(run: Path, copy: Path, row: Counter[str], expected: Run) -> None:
        for files in names(run).values():
            name = files[0]
            data = (run / name).read_bytes()
            for at in sorted(set(np.linspace(0, len(data), 8 if smoke else CUTS, endpoint=False).astype(int).tolist())):
                (copy / name).write_bytes(data[:at])
                reading(copy, name, row, expected)
            (copy / name).write_bytes(data)
            row["kinds of files"] += 1

    return damaged(damage)


def fuzzed(suffix: str, smoke: bool) -> Row:
    """Files with mutated bytes, structures, values or headers."""

    def damage(run: Path, copy: Path, row: Counter[str], expected: Run) -> None:
        rng = random.Random(suffix)
        kinds = [files for kind, files in names(run).items() if kind.endswith(suffix)]
        for _ in range(60 if smoke else 6000):
            name = rng.choice(rng.choice(kinds))
            data = (run / name).read_bytes()
            try:
                (copy / name).write_bytes(mutate_file(data, name, rng))
            except RecursionError:  # nothing that JSON can hold
                continue
            reading(copy, name, row, expected)
            (copy / name).write_bytes(data)

    return damaged(damage)


FAULTS: dict[str, Callable[[bool], Row]] = {
    "the driver is killed (kill -9)": killed,
    "Ctrl-C": lambda smoke: signalled(signal.SIGINT, 0, smoke),
    "SIGTERM": lambda smoke: signalled(signal.SIGTERM, 143, smoke),
    "two drivers on one folder": two_drivers,
    "the disk is full": disk_full,
    "the folder is moved away": removed,
    "out of memory in a child": lambda smoke: trained_with(_out_of_memory, ("oom",), smoke),
    "the loss is no number": lambda smoke: trained_with(lambda _: None, ("diverged",), smoke),
    "a worker is killed (kill -9)": lambda smoke: workers_with(
        signal.SIGKILL, 2 if smoke else 12, 40 if smoke else 90, smoke
    ),
    "a worker hangs (SIGSTOP)": lambda smoke: workers_with(signal.SIGSTOP, 1, 25, smoke),
    "files cut off": truncated,
    "JSON fuzzed": lambda smoke: fuzzed(".json", smoke),
    "safetensors fuzzed": lambda smoke: fuzzed(".safetensors", smoke),
}
"""Faults by name: functions of --smoke that return a row of counts."""
BAD = (
    "lost", "hangs", "executions", "huge allocations", "wrong errors", "errors without a cause", "no model",
    "unlike the unbroken run", "another exit status", "open trials", "did not go on", "refused when the first was dead",
    "left behind",
)  # fmt: skip
"""Counts that must be 0."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--only", nargs="*", choices=FAULTS, default=list(FAULTS))
    args = parser.parse_args()
    sys.addaudithook(_listen)
    torch.set_num_threads(1)

    rows: dict[str, Row] = {}
    for name in args.only:
        start = time.monotonic()
        rows[name] = dict.fromkeys(("injected", "lost", "hangs", "executions", "wrong errors"), 0) | FAULTS[name](
            args.smoke
        )
        rows[name]["seconds"] = round(time.monotonic() - start, 1)
        print(name, rows[name], flush=True)
    if not args.smoke and args.only != list(FAULTS) and RESULTS.exists():
        rows = json.loads(RESULTS.read_text(encoding="utf-8"))["faults"] | rows
    total = {bad: sum(row.get(bad, 0) for row in rows.values()) for bad in ("injected", *BAD)}
    result = describe() | {"total": total, "faults": rows, "limits": {"seconds": PATIENCE, "bytes": MEMORY}}
    if not args.smoke:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(total)
    sys.exit(1 if any(total[bad] for bad in BAD) else 0)


if __name__ == "__main__":
    main()
