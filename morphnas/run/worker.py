"""A worker process: reads jobs from its standard input, or None to stop the current one, and writes messages to a pipe.

It does not use its standard output, since whatever Python loads at its start may print there.

Its arguments are FOLDER DEVICE THREADS PIPE: FOLDER holds the task, PIPE is the pipe's file descriptor. The end of its
input means that the driver has ended: it removes the folder and exits.
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

from morphnas.run.transport import Message, Ready, read_task, run_serialised_job
from morphnas.train.deadline import Stop
from morphnas.train.trainer import load_optimizers


def main() -> None:
    folder, device = Path(sys.argv[1]), torch.device(sys.argv[2])
    threads, pipe = int(sys.argv[3]), int(sys.argv[4])
    jobs_pipe, message_pipe = os.fdopen(os.dup(0), "rb"), os.fdopen(pipe, "wb")
    os.set_inheritable(pipe, False)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    faulthandler.enable()
    jobs: SimpleQueue[tuple[bytes, Stop]] = SimpleQueue()
    threading.Thread(target=_receive, args=(jobs_pipe, jobs, folder), daemon=True).start()

    def send(message: Message) -> None:
        pickle.dump(message, message_pipe)
        message_pipe.flush()

    torch.set_num_threads(threads)
    task = read_task(folder / "task.pt", device)
    load_optimizers()
    send(Ready())
    while True:
        job, stop = jobs.get()
        send(run_serialised_job(job, task, None, send, stop))


def _receive(pipe: BinaryIO, jobs: SimpleQueue[tuple[bytes, Stop]], folder: Path) -> None:
    """Queue the jobs that arrive. Runs in a thread, so that this process ends with the driver even during a job."""
    stop = Stop()
    try:
        while True:
            if (job := pickle.load(pipe)) is None:  # noqa: S301  # from the driver
                stop.requested = True
            else:
                stop = Stop()
                jobs.put((job, stop))
    except (EOFError, OSError, pickle.UnpicklingError):
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)
