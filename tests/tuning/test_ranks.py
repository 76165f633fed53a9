"""The ranks of a fit: how far they are, and what is said when one fails, is killed or falls silent."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import Store

from prompt_tune.errors import DataError, ProviderError, RunError
from prompt_tune.tuning import ranks as module
from prompt_tune.tuning.ranks import BEAT, Note, RankLostError, Ranks, device_of_rank, of_torchrun

ENDED = subprocess.Popen([sys.executable, "-c", ""])  # a process id that nobody has
PROGRAM = """
import os, signal, sys, time
from prompt_tune.tuning.ranks import RankLostError, of_torchrun
ranks = of_torchrun()
try:
    with ranks:
        if ranks.rank == 0:
            ranks.begin({"word": "go"})
        assert ranks.wait_for_begin() == {"word": "go"}
        ranks.advance(1)
        if ranks.rank == int(sys.argv[1]):
            while ranks.rank == 0 and ranks.done < ranks.size:  # until all have come
                time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGKILL)
        while True:
            ranks.check()
            time.sleep(0.1)
except RankLostError as error:
    if ranks.rank == 0 or error.vanished:
        print("SAID", ranks.rank, error, file=sys.stderr)
    sys.exit(1)
"""


def noted(store: Store, rank: int, **parts: object) -> None:
    """Write what a rank says of itself."""
    note = {"host": "there", "process": os.getpid(), "group": "here"} | parts
    store.set(f"rank/{rank}", json.dumps(asdict(Note(**note))))  # type: ignore[arg-type]


def trouble(ranks: Ranks, seconds: float = 10) -> str:
    """What `check` says within some time; "" if all goes well until then."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            ranks.check()
        except RankLostError as error:
            return str(error)
        time.sleep(0.05)
    return ""


def test_ranks_see_how_far_the_others_are_and_that_they_are_done() -> None:
    store = HashStore()
    first, second, third = (Ranks(store, rank, 3, group=None) for rank in range(3))
    with first:
        first.begin({"threads": 2})
        with second, third:
            assert second.wait_for_begin() == third.wait_for_begin() == {"threads": 2}
            first.advance(4)
            second.advance(3)
            third.advance(2)
            assert not first.all_done()
        deadline = time.monotonic() + 10
        while not first.all_done() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert first.all_done() and first.done == 9
    assert json.loads(store.get("rank/0"))["end"] == "done"


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({"end": "failed", "why": "The disk is full."}, r"Rank 1 of 3 \(process \d+ on there\): The disk is full\."),
        (
            {"process": ENDED.pid},
            r"Rank 1 of 3 \(process \d+ on there\) is gone: it was killed or crashed\. .*--resume\.",
        ),
        ({}, r"Rank 1 of 3 \(process \d+ on there\) has given no sign of life for 1 s\. .*--resume\."),
        ({"process": ENDED.pid, "group": "another machine"}, r"Rank 1 of 3 .* no sign of life for 1 s\. .*"),
        ({"process": ENDED.pid, "end": "done"}, None),
        ({"end": "stopped"}, r"Rank 1 of 3 .* was stopped\. .*"),
    ],
)
def test_rank_0_says_how_another_one_ended(parts: dict[str, object], text: str | None) -> None:
    ENDED.wait()
    store = HashStore()
    noted(store, 1, **parts)
    noted(store, 2, end="done")
    with Ranks(store, 0, 3, group="here", silent=1) as ranks:
        said = trouble(ranks, 10 if text else 4 * BEAT)
        assert re.fullmatch(text or "", said), said
        assert text or ranks.all_done()


def test_rank_that_was_told_to_stop_is_not_the_reason() -> None:
    store = HashStore()
    noted(store, 1, end="stopped")
    noted(store, 2, process=ENDED.pid)
    ENDED.wait()
    with Ranks(store, 0, 3, group="here") as ranks:
        assert trouble(ranks).startswith("Rank 2 of 3")


def test_rank_whose_process_never_came_is_named() -> None:
    with Ranks(HashStore(), 0, 2, group="here", is_there=lambda rank: rank != 1) as ranks:
        assert trouble(ranks).startswith("Rank 1 of 2 was killed or crashed before it began.")


@pytest.mark.parametrize(
    ("raises", "end", "why"),
    [
        (None, "done", ""),
        (DataError("`a.png` is damaged."), "failed", "`a.png` is damaged."),
        (ValueError("odd"), "failed", "ValueError: odd"),
        (KeyboardInterrupt(), "stopped", ""),
        (RankLostError("Rank 0 is gone."), "stopped", ""),
    ],
)
def test_rank_says_how_it_ends(raises: BaseException | None, end: str, why: str) -> None:
    store = HashStore()
    noted(store, 0)
    try:
        with Ranks(store, 1, 2, group="here"):
            if raises is not None:
                raise raises
    except BaseException as error:
        assert error is raises
    note = json.loads(store.get("rank/1"))
    assert (note["end"], note["why"]) == (end, why)


@pytest.mark.skipif(os.name != "posix", reason="torchrun ends processes by signals")
@pytest.mark.parametrize(("size", "killed", "says"), [(3, 2, 0), (2, 0, 1)])
def test_killed_rank_ends_the_job_of_torchrun_and_is_named_in_one_line(
    size: int, killed: int, says: int, tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
    done = subprocess.run(
        [*command, tmp_path / "program.py", str(killed)], capture_output=True, text=True, timeout=120, check=False
    )
    said = [line for line in done.stderr.splitlines() if line.startswith("SAID")]
    assert done.returncode == 1 and len(said) == 1, done.stderr
    assert re.match(rf"SAID {says} Rank {killed} of {size} \(process \d+ on .*\) is gone: it was killed", said[0]), said


def test_process_that_torchrun_did_not_start_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in module.TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    assert of_torchrun() is None
    environment = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "9"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert of_torchrun() is None


def test_ranks_that_cannot_meet_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    monkeypatch.setattr(module, "MEET", 1.0)
    with pytest.raises(RunError, match=r"^Rank 1 cannot meet the others at 127\.0\.0\.1, port 9: .* with torchrun\.$"):
        of_torchrun()


@pytest.mark.parametrize(
    ("device", "local_size", "wanted"),
    [
        ("cpu", "2", "cpu"),
        ("cuda", "2", "cuda:1"),
        ("cuda:3", "1", "cuda:3"),  # one rank on each machine
        ("3", "1", "3"),
        ("cuda:0", "2", None),
        ("0", "2", None),
        ("cuda:0,1", "1", None),
        ("cpu,cpu", "2", None),
    ],
)
def test_each_rank_takes_its_own_gpu(
    device: str, local_size: str, wanted: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local_size)
    if wanted is not None:
        assert device_of_rank(device) == wanted
        return
    with pytest.raises(ProviderError, match=rf"Received: `device='{device}'`\. Give cuda or cpu\."):
        device_of_rank(device)
