"""The engine of a cluster: Ray Data, with one detector in each actor of a pool."""

import logging
import os
import pickle
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from prompt_tune.errors import PromptTuneError
from prompt_tune.privacy import quiet_imports
from prompt_tune.services.labelling import Done, Job, Part, Worker, begin
from prompt_tune.version import install

SECONDS = 5.0  # in which a cluster must answer


def run_ray(job: Job, parts: Iterable[Part], workers: int | None, address: str) -> Iterator[Done]:
    """Label parts on a Ray cluster. Every node needs prompt-tune, and the same paths for bundle, images and results.

    A worker that dies is replaced, and its part is done again, as Ray does. Ray's usage statistics are off in what is
    started here; a cluster that runs already has its own setting.

    Args:
        job: What to label with. If its `threads` is 0, a worker has one.
        parts: All are listed before the first is done.
        workers: Number of workers; None for as many as the cluster has GPUs, or threads for on the CPU.
        address: "auto" for the cluster that this machine belongs to, "local" for one that is started on this machine
            and ends with the job, or HOST:PORT. A Ray that runs in this process is used as it is.

    Yields:
        What each part was.

    Raises:
        PromptTuneError: Ray is not installed, no cluster answers, a worker failed, or one part ended several workers.
    """
    job = replace(job, threads=job.threads or 1)
    with _connected(address) as ray:
        data, errors = ray.data, ray.exceptions
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        on_gpu = str(job.device) != "cpu"
        if workers is None:
            kind, each = ("GPU", 1) if on_gpu else ("CPU", job.threads)
            workers = max(1, int(ray.cluster_resources().get(kind, 0)) // each)
        items = [{"part": pickle.dumps(part)} for part in parts]
        if not items:
            return
        done = data.from_items(items, override_num_blocks=len(items)).map_batches(
            _Actor,
            fn_constructor_args=(pickle.dumps(job),),
            batch_size=1,
            compute=data.ActorPoolStrategy(size=min(workers, len(items))),
            num_cpus=job.threads,
            num_gpus=1 if on_gpu else 0,
        )
        try:
            for row in done.iter_rows():
                if row["error"]:
                    raise PromptTuneError(row["error"])
                yield pickle.loads(row["done"])
        except errors.RayError as error:
            reason = str(error).strip().split("\n")[-1]
            raise PromptTuneError(
                f"Ray ended the job ({reason:.300}). Run the command again: what is written stays."
            ) from error


class _Actor:
    """A worker as Ray Data calls it. Errors of ours are answers, since Ray would wrap them."""

    def __init__(self, job: bytes) -> None:
        self._job: Job = pickle.loads(job)
        self._worker = Worker(self._job)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        done, error = b"", ""
        try:
            part: Part = pickle.loads(batch["part"][0])
            begin(self._job, part)
            done = pickle.dumps(self._worker.label(part))
        except PromptTuneError as reason:
            error = str(reason)
        return {"done": [done], "error": [error]}


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Ray, connected to a cluster; afterwards, it is as it was."""
    with quiet_imports():
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it warns of what Ray Data itself does
        try:
            import ray
            import ray.data
            import ray.exceptions
        except ModuleNotFoundError as error:
            raise PromptTuneError(f"Ray is not installed, and --engine ray needs it: {install('ray')}") from error
        was_there = ray.is_initialized()
        if not was_there:
            logging.getLogger("ray").setLevel(logging.ERROR)
            _check_answers(address)
            options = {"include_dashboard": False} if address == "local" else {}
            try:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
            except (ConnectionError, ValueError, RuntimeError) as error:
                reason = str(error).strip().split("\n")[0]
                raise PromptTuneError(_silent(address, reason)) from error
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    try:
        yield ray
    finally:
        if not was_there:
            ray.shutdown()


def _check_answers(address: str) -> None:
    """Refuse a HOST:PORT at which nothing answers: Ray would try for two minutes."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=SECONDS).close()
    except (OSError, OverflowError) as error:
        raise PromptTuneError(_silent(address, str(error))) from error


def _silent(address: str, reason: str) -> str:
    return (
        f"No Ray cluster answers at `{address}` ({reason:.200}). Start one with: ray start --head; or give --address "
        "local."
    )
