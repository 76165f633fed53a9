"""The engine of one machine: one worker in this process, or several in processes of their own."""

import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import cast

from prompt_tune.services.labelling import Done, Job, Part, Worker, begin


def run_local(job: Job, parts: Iterable[Part], workers: int) -> Iterator[Done]:
    """Label parts.

    A worker that dies is replaced, and its part is done again. Workers end when this process does, however it ends.

    Args:
        job: What to label with. Several workers share the cores if its `threads` is 0.
        parts: Taken one by one, when a worker is free.
        workers: Number of workers. With more than one, a script needs `if __name__ == "__main__":`.

    Yields:
        What each part was, in the order in which they are finished.

    Raises:
        PromptTuneError: A worker failed, or one part ended several workers.
    """
    if workers == 1:
        yield from map(Worker(job).label, parts)
        return
    job = replace(job, threads=job.threads or max(1, (os.cpu_count() or 1) // workers))
    waiting = iter(parts)
    idle, busy = [_Process(job) for _ in range(workers)], dict[Connection, tuple[_Process, Part]]()
    try:
        while True:
            while idle and (part := next(waiting, None)):
                begin(job, part)
                _give(idle.pop(), part, busy)
            if not busy:
                return
            for connection in cast(list[Connection], wait(list(busy))):
                process, part = busy.pop(connection)
                try:
                    answer = connection.recv()
                except (EOFError, OSError):
                    process.end()
                    begin(job, part)
                    _give(_Process(job), part, busy)
                    continue
                idle.append(process)
                if isinstance(answer, Exception):
                    raise answer
                yield answer
    finally:
        for process in (*idle, *(process for process, _ in busy.values())):
            process.end()


class _Process:
    """A worker in a process of its own, and the line to it."""

    def __init__(self, job: Job) -> None:
        context = multiprocessing.get_context("spawn")  # ONNX Runtime's threads do not survive a fork
        self.connection, other = context.Pipe()
        self._process = context.Process(target=_work, args=(other, job), daemon=True)
        self._process.start()
        other.close()  # so that the line breaks when the process dies

    def end(self) -> None:
        """End the process at once: files that are not finished have no name yet."""
        self.connection.close()
        self._process.kill()
        self._process.join()


def _give(process: _Process, part: Part, busy: dict[Connection, tuple[_Process, Part]]) -> None:
    with suppress(OSError):  # it died: the line says so when it is asked
        process.connection.send(part)
    busy[process.connection] = process, part


def _work(connection: Connection, job: Job) -> None:
    """What the process of a worker runs, until the line breaks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends the others
    try:
        worker = Worker(job)
        while True:
            part = connection.recv()
            try:
                answer: Done | Exception = worker.label(part)
            except Exception as error:  # the first process raises it
                answer = error
            connection.send(answer)
    except (EOFError, OSError):
        pass
