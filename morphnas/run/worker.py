"""A worker's process: jobs come by its standard input, with None to stop the last, and answers go by a pipe of their
own, since whatever Python loads as it starts may print.

Its arguments are FOLDER DEVICE THREADS ANSWERS: FOLDER holds the task, ANSWERS is the number of the pipe's file
descriptor. When its input ends, whoever started it is gone: it takes the folder away and ends.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import shutil
import sys
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import BinaryIO

import torch

from morphnas.run.transport import Answer, Ready, done, read_task
from morphnas.train.deadline import Stop
from morphnas.train.trainer import warm_up


def main() -> None:
    folder, device = Path(sys.argv[1]), torch.device(sys.argv[2])
    threads, pipe = int(sys.argv[3]), int(sys.argv[4])
    jobs, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(pipe, "wb")
    os.set_inheritable(pipe, False)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    faulthandler.enable()
    parcels: SimpleQueue[tuple[bytes, Stop]] = SimpleQueue()
    threading.Thread(target=_receive, args=(jobs, parcels, folder), daemon=True).start()

    def answer(said: Answer) -> None:
        pickle.dump(said, answers)
        answers.flush()

    torch.set_num_threads(threads)
    task = read_task(folder / "task.pt", device)
    warm_up()
    answer(Ready())
    while True:
        parcel, stop = parcels.get()
        answer(done(parcel, task, None, answer, stop))


def _receive(jobs: BinaryIO, parcels: SimpleQueue[tuple[bytes, Stop]], folder: Path) -> None:
    """In a thread, so that the end of the driver is the end of this process in the midst of a job, too."""
    stop = Stop()
    try:
        while True:
            if (parcel := pickle.load(jobs)) is None:  # noqa: S301  # of the driver
                stop.asked = True
            else:
                stop = Stop()
                parcels.put((parcel, stop))
    except (EOFError, OSError, pickle.UnpicklingError):
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)
