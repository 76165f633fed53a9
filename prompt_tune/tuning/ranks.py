"""What the processes of one fit tell each other: who they are, how far they are, and how they ended.

They are called ranks, as torchrun calls them, and counted from 0. Rank 0 learns; the others help it to fill the cache.
What they exchange is a few words, so torch's key-value store carries it, in which torch's processes meet anyway. There
is no tensor to send, and so no need for gloo or NCCL: the same code serves CPUs and GPUs.
"""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Literal

from prompt_tune.errors import PromptTuneError, ProviderError, RunError
from prompt_tune.runtime.devices import gpu_index, several

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

BEAT = 0.5  # seconds between two signs of life of a rank
SILENT = 60.0  # seconds without one, after which a rank counts as lost
MEET = 300.0  # seconds in which all ranks must have come
CONTINUE = "What is cached is kept: continue with --resume."
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # variables that it sets
End = Literal["done", "failed", "stopped"]
Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None


class RankLostError(RunError):
    """Another rank failed or is gone, or this one was told to stop.

    Attributes:
        vanished: Whether the other rank went without a word.
    """

    def __init__(self, message: str, *, vanished: bool = False) -> None:
        super().__init__(message)
        self.vanished = vanished


@dataclass(frozen=True)
class Note:
    """What a rank says of itself.

    Attributes:
        host: The name of its machine.
        process: Its process id.
        group: Ranks of one group can see whether the process of another one is there; None: nobody can.
        beat: Counts up for as long as the rank lives.
        done: The images of its share that are cached.
        end: How it ended; None while it works. A rank that was killed has no end.
        why: The reason why it failed.
    """

    host: str
    process: int
    group: str | None
    beat: int = 0
    done: int = 0
    end: End | None = None
    why: str = ""


class Ranks:
    """The ranks of a fit, as one of them sees the others. A context manager: the rank has ended when the block ends.

    Attributes:
        rank: The number of this one.
        size: The number of all.
    """

    def __init__(
        self,
        store: "Store",
        rank: int,
        size: int,
        *,
        group: str | None,
        polite: bool = False,
        is_there: Callable[[int], bool] | None = None,
        silent: float = SILENT,
    ) -> None:
        """Join the others.

        Args:
            store: Where all ranks write; a key-value store of torch.
            rank: The number of this rank.
            size: The number of ranks.
            group: See `Note`.
            polite: Whether SIGTERM is obeyed at the next `check`, with a word about the reason, and not at once.
            is_there: Whether the process of a rank is there, if this one has started them.
            silent: Seconds without a sign of life, after which a rank counts as lost.
        """
        self.rank, self.size = rank, size
        self._store, self._silent, self._polite, self._is_there = store, silent, polite, is_there
        self._own = Note(socket.gethostname(), os.getpid(), group)
        self._others: dict[int, tuple[Note | None, float]] = {}  # the last note of each, and when it was new
        self._trouble: RankLostError | None = None
        self._told_to_stop = False
        self._lock, self._closing = threading.Lock(), threading.Event()
        self._before: Handler = None
        self._thread = threading.Thread(target=self._watch, name="ranks", daemon=True)

    def __enter__(self) -> "Ranks":
        now = time.monotonic()
        watched = range(1, self.size) if self.rank == 0 else [0]
        self._others = dict.fromkeys(watched, (None, now))
        if self._polite and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._on_signal)
        self._tell()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end: End = "done"
        if error is not None:
            end = "stopped" if isinstance(error, RankLostError | KeyboardInterrupt) else "failed"
        why = str(error) if isinstance(error, PromptTuneError) or not error else f"{type(error).__name__}: {error}"
        self._closing.set()
        self._thread.join()
        with suppress(RuntimeError):  # the store may be gone, and with it whoever would read this
            self._tell(end=end, why=why if end == "failed" else "")
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    @property
    def done(self) -> int:
        """The images that all ranks have cached, as far as this one knows."""
        return self._own.done + sum(note.done for note, _ in self._others.values() if note is not None)

    def advance(self, done: int) -> None:
        """Say how many images of the own share are cached, and look after the others; see `check`."""
        with self._lock:
            self._own = replace(self._own, done=done)
        self.check()

    def begin(self, what: dict[str, Any]) -> None:
        """Rank 0: let the others begin, and tell them something, plain JSON."""
        self._store.set("begin", json.dumps(what))

    def wait_for_begin(self) -> dict[str, Any]:
        """The others: wait until rank 0 lets them begin; what it tells them.

        Raises:
            RankLostError: See `check`.
        """
        while not self._store.check(["begin"]):
            self.check()
            time.sleep(BEAT)
        return json.loads(self._store.get("begin"))

    def all_done(self) -> bool:
        """Rank 0: whether all others have done their share.

        Raises:
            RankLostError: See `check`.
        """
        self.check()
        return all(note is not None and note.end == "done" for note, _ in self._others.values())

    def check(self) -> None:
        """Look after the others; rank 0 looks after all, and all look after rank 0.

        Raises:
            RankLostError: One failed, was killed, or has given no sign of life for a while; or this one was told to
                stop.
        """
        if self._told_to_stop:
            self._look()
        if self._trouble:
            raise self._trouble
        if self._told_to_stop:
            raise RankLostError(f"Rank {self.rank} was told to stop (SIGTERM). {CONTINUE}")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._told_to_stop = True

    def _watch(self) -> None:
        """The thread: give signs of life, and note trouble."""
        while not self._closing.wait(BEAT):
            try:
                self._tell(beat=self._own.beat + 1)
                self._look()
            except RuntimeError:
                gone = f"The process in which the ranks meet is gone. {CONTINUE}"
                self._trouble = self._trouble or RankLostError(gone)
                return

    def _tell(self, **parts: Any) -> None:
        """Write the own note."""
        with self._lock:
            self._own = replace(self._own, **parts)
            self._store.set(f"rank/{self.rank}", json.dumps(asdict(self._own)))

    def _read(self, rank: int) -> Note | None:
        """The note of a rank; None if it has not come yet."""
        key = f"rank/{rank}"
        return Note(**json.loads(self._store.get(key))) if self._store.check([key]) else None

    def _look(self) -> None:
        """Read the notes of the others. A rank that was only told to stop is never the reason."""
        now = time.monotonic()
        failed, vanished, stopped = [], [], []
        for rank, (old, since) in self._others.items():
            note, gone = self._read(rank), False
            if (note is None or note.end is None) and self._is_gone(rank, note):
                note, gone = self._read(rank), True  # again: its last word may have come in between
            if note != old:
                since = now
            self._others[rank] = note, since
            if note is None:
                if gone:
                    vanished.append(f"Rank {rank} of {self.size} was killed or crashed before it began. {CONTINUE}")
                elif now - since > MEET:
                    vanished.append(f"Rank {rank} of {self.size} has not come in {MEET:.0f} s.")
                continue
            name = f"Rank {rank} of {self.size} (process {note.process} on {note.host})"
            if note.end == "failed":
                failed.append(f"{name}: {note.why}")
            elif note.end == "stopped":
                stopped.append(f"{name} was stopped. {CONTINUE}")
            elif note.end is None and gone:
                vanished.append(f"{name} is gone: it was killed or crashed. {CONTINUE}")
            elif note.end is None and now - since > self._silent:
                vanished.append(f"{name} has given no sign of life for {self._silent:.0f} s. {CONTINUE}")
        if self._trouble is None and (reasons := failed + vanished + stopped):
            self._trouble = RankLostError(reasons[0], vanished=not failed and bool(vanished))

    def _is_gone(self, rank: int, note: Note | None) -> bool:
        """Whether the process of a rank has ended, where that can be seen."""
        if self._is_there is not None:
            return not self._is_there(rank)
        if note is None or os.name != "posix" or note.group is None or note.group != self._own.group:
            return False
        try:
            os.kill(note.process, 0)  # sends nothing
        except ProcessLookupError:
            return True
        except OSError:
            pass
        return False


def of_torchrun() -> Ranks | None:
    """The ranks that torchrun has started, of which this process is one; None if it has not.

    Raises:
        RunError: The others cannot be met.
    """
    if any(name not in os.environ for name in TORCHRUN) or os.environ["WORLD_SIZE"] == "1":
        return None
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    try:
        store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=MEET)))
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise RunError(
            f"Rank {os.environ['RANK']} cannot meet the others at {os.environ['MASTER_ADDR']}, port "
            f"{os.environ['MASTER_PORT']}: {reason}. Start them all with torchrun."
        ) from error
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return Ranks(
        PrefixStore(f"prompt_tune/{attempt}", store), rank, size, group=os.environ.get("GROUP_RANK"), polite=True
    )


def device_of_rank(device: str | int) -> str:
    """The device of a rank that torchrun has started: of several GPUs its own.

    Args:
        device: What the user chose for all ranks.

    Raises:
        ProviderError: The choice names GPUs by number, though there are several ranks on this machine.
    """
    if device == "cuda":
        return f"cuda:{os.environ['LOCAL_RANK']}"
    if len(several(device)) > 1 or (gpu_index(device) is not None and os.environ.get("LOCAL_WORLD_SIZE") != "1"):
        raise ProviderError(
            f"Under torchrun, each rank takes the GPU of its own number. Received: `device='{device}'`. Give cuda or "
            "cpu."
        )
    return str(device)
