"""The region cache, filled by several processes: each takes every n-th image, into one folder.

Rank 0 then goes over all images as a single process does. It finds the files of the others, or makes what is missing,
so the result cannot depend on who made what. The others end when their share is cached.
"""

import logging
import multiprocessing
import os
import secrets
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import torch

from prompt_tune.config import FitConfig
from prompt_tune.errors import PromptTuneError, ProviderError, RunError
from prompt_tune.files import saving
from prompt_tune.models.world import torch_device
from prompt_tune.progress import Progress, silent
from prompt_tune.run import RunFolder
from prompt_tune.runtime.devices import check_visible, gpu_index
from prompt_tune.tuning.job import FitInputs, Job, prepare
from prompt_tune.tuning.job_cache import Caching
from prompt_tune.tuning.ranks import BEAT, RankLostError, Ranks
from prompt_tune.wording import counted

LAG = 10.0  # seconds until a file of another machine must be seen in a shared folder
END = 10.0  # seconds in which a helper must have ended
logger = logging.getLogger(__name__)


def lead(caching: Caching, job: Job, ranks: Ranks, progress: Progress, *, resumed: bool) -> None:
    """Rank 0: cache the own share while the others cache theirs, and wait for them.

    Args:
        caching: How images get into the cache.
        job: What is learned.
        ranks: All ranks.
        progress: Called with the images that all ranks have cached.
        resumed: Whether the run folder says which images are held out.

    Raises:
        RankLostError: Another rank failed or is gone.
        PromptTuneError: The cache cannot be written.
    """
    total = caching.n_images(job.dataset, job.replayed)
    mark = f".ranks-{secrets.token_hex(8)}"  # who sees it shares the folder

    def tell() -> None:
        progress("cache shared", ranks.done, total, f"{ranks.size} processes")

    with saving(caching.folder / mark, RunError, cure="Give another --cache.") as path:
        path.write_bytes(b"")
    try:
        ranks.begin({"mark": mark, "threads": torch.get_num_threads(), "resumed": resumed})
        for done in caching.share(job.dataset, job.replayed, ranks.rank, ranks.size):
            ranks.advance(done)
            tell()
        while not ranks.all_done():
            tell()
            time.sleep(BEAT / 5)
        tell()
    finally:
        (caching.folder / mark).unlink(missing_ok=True)


def help_out(
    inputs: FitInputs, out: str | Path, ranks: Ranks, *, config: FitConfig, strict: bool = False, device: str = "cpu"
) -> None:
    """The others: cache the own share when rank 0 says so, and print nothing. Rank 0 says what is wrong.

    Args:
        inputs: As rank 0 has them.
        out: The run folder; it must be that of rank 0 if the run is resumed.
        ranks: All ranks.
        config: As rank 0 has it.
        strict: Likewise.
        device: The device of this rank.

    Raises:
        RankLostError: Rank 0 was killed, so that nobody else can say so.
        SystemExit: Something else went wrong; rank 0 says what.
    """
    logging.getLogger("prompt_tune").setLevel(logging.ERROR)
    logging.getLogger("prompt_tune.tuning.caching").setLevel(logging.WARNING)  # names damaged files of the own share
    try:
        with ranks:
            begin = ranks.wait_for_begin()
            torch.set_num_threads(begin["threads"])  # other threads, other bits
            device = torch_device(device)
            if gpu_index(device) is not None:
                torch.cuda.set_device(device)  # else pinned memory would open the first GPU too
            run = RunFolder(Path(out))
            folder = inputs.cache_folder(run.folder)
            _require_shared(folder / begin["mark"], ranks)
            if begin["resumed"]:
                _require_shared(run.config, ranks)
            job = prepare(inputs, config, device, run.held_out() if begin["resumed"] else None, strict=strict)
            caching = Caching(job.world, job.original, folder, job.config, silent)
            for done in caching.share(job.dataset, job.replayed, ranks.rank, ranks.size):
                ranks.advance(done)
    except (PromptTuneError, KeyboardInterrupt) as error:
        if isinstance(error, RankLostError) and error.vanished and ranks.rank == 1:
            raise
        raise SystemExit(130 if isinstance(error, KeyboardInterrupt) else 1) from None


@contextmanager
def helpers(
    devices: Sequence[str], inputs: FitInputs, out: Path, *, config: FitConfig, strict: bool
) -> Iterator[Ranks]:
    """Start a process for each further device, which helps to fill the cache. They have ended when the block ends.

    Args:
        devices: From `several`: that of this process, and at least one more.
        inputs: What is learned from.
        out: The run folder.
        config: The settings.
        strict: Whether anything of the data that is left out is an error.

    Yields:
        The ranks, of which this process is rank 0.
    """
    context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
    _say_if_crowded(devices)
    with tempfile.TemporaryDirectory(prefix="prompt-tune-") as folder:
        store = Path(folder) / "ranks"
        start = partial(_helper, store, len(devices), inputs, out.absolute(), config, strict)
        processes = [
            context.Process(target=start, args=(rank, device), daemon=True)
            for rank, device in enumerate(devices[1:], 1)
        ]
        try:
            with _ignored_by_children():
                for process in processes:
                    process.start()
            with _meet(store, 0, len(devices), lambda rank: processes[rank - 1].is_alive()) as ranks:
                yield ranks
            for process in processes:
                process.join(END)
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
                process.join()


@contextmanager
def _ignored_by_children() -> Iterator[None]:
    """Processes that start in the block ignore Ctrl-C: it goes to rank 0 too, which ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def check_all(devices: Sequence[str]) -> None:
    """Refuse GPUs that are not there, without opening them.

    Raises:
        ProviderError: There are fewer GPUs.
    """
    for name in devices:
        check_visible(name)
        index = gpu_index(name)
        if index is not None and index >= (found := torch.cuda.device_count()):
            seen = counted(found, "GPU") if found else "none"
            raise ProviderError(
                f"`device='{','.join(devices)}'` names GPU {index}, and torch sees {seen}. "
                "Name those that `nvidia-smi` lists, or give cpu."
            )


def _helper(
    store: Path,
    size: int,
    inputs: FitInputs,
    out: Path,
    config: FitConfig,
    strict: bool,
    rank: int,
    device: str,
) -> None:
    """A process that `helpers` starts."""
    with suppress(RankLostError):  # rank 0 is the user's own process: who ended it knows
        help_out(inputs, out, _meet(store, rank, size), config=config, strict=strict, device=device)


def _meet(store: Path, rank: int, size: int, is_there: Callable[[int], bool] | None = None) -> Ranks:
    """Ranks of one machine, which meet in a file."""
    from torch.distributed import FileStore  # type: ignore[attr-defined]

    return Ranks(FileStore(str(store), size), rank, size, group="here", is_there=is_there)


def _require_shared(file: Path, ranks: Ranks) -> None:
    """Refuse a folder that rank 0 does not share.

    Raises:
        RunError: A file of rank 0 is not seen in it.
    """
    deadline = time.monotonic() + LAG
    while not file.exists():
        ranks.check()
        if time.monotonic() > deadline:
            raise RunError(
                f"This rank does not see the folder `{file.parent}` of rank 0. All machines must share the run folder "
                "and the cache: give --out and --cache on a disk that all of them see."
            )
        time.sleep(BEAT)


def _say_if_crowded(devices: Sequence[str]) -> None:
    """Warn if processes on the CPU have more threads than there are cores."""
    threads, cores = torch.get_num_threads(), os.cpu_count() or 1
    if devices[0] == "cpu" and threads > 1 and threads * len(devices) > cores:
        logger.warning(
            "%d processes with %s each are more than %s, so they wait for each other. Set OMP_NUM_THREADS to %d; the "
            "number of threads is part of the result's bits.",
            len(devices),
            counted(threads, "thread"),
            counted(cores, "core"),
            max(1, cores // len(devices)),
        )
