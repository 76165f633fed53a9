"""A small, quick slice of each stress command in `stress/`, and the proof that each one finds what it looks for."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from places import TESTS
from stress import full_disk, fuzz_bundles, fuzz_data_sets, fuzz_images, fuzz_vocabularies, mutate, soak
from stress.cases import Check, FaultError, check_error, run_cases
from stress.commands_alone import Ended, one_line_error

from prompt_tune.errors import DataError


@pytest.mark.parametrize(
    ("check", "cases"),
    [(fuzz_vocabularies.check, 500), (fuzz_images.check, 300), (fuzz_data_sets.check, 150), (fuzz_bundles.check, 15)],
    ids=["vocabularies", "images", "data sets", "bundles"],
)
def test_damaged_files_are_refused_in_one_line_or_taken(check: Check, cases: int) -> None:
    result = run_cases(check, cases, seed=13)
    assert result.faults == []
    assert result.outcomes.total() == cases and len(result.outcomes) > 1


@pytest.mark.parametrize("command", ["kill", "full_disk"])
def test_commands_survive_kills_and_full_disks(command: str) -> None:
    """In a process of their own, since they fork: a fork of a process with threads may hang."""
    if command == "full_disk" and (reason := full_disk.why_not()):
        pytest.skip(reason)
    program = [sys.executable, str(TESTS / "stress" / f"{command}.py"), "--cases", "1", "--seed", "13"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(program, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("; 0 faults; ") == 4


def test_threads_that_load_and_unload_change_no_original_bit() -> None:
    result, memory, held = soak.soak(soak.BUNDLE, 2)
    assert result.faults == []
    assert result.outcomes["detections"] > soak.N_THREADS and result.outcomes["loads"] > 0
    assert len(memory) == len(held) == soak.SAMPLES and min(held) > 10
    assert sum(held) < sum(memory)


# The commands find what they look for


def _raises(error: Exception) -> Check:
    def check(rng: random.Random, folder: Path) -> str:
        raise error

    return check


def _dies(rng: random.Random, folder: Path) -> str:
    if rng.random() < 0.5:
        os.kill(os.getpid(), signal.SIGKILL)
    return "lives"


def _hangs(rng: random.Random, folder: Path) -> str:
    time.sleep(60)
    return "woke up"


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (_raises(FaultError("boxes outside the image")), "case 7: boxes outside the image"),
        (_raises(KeyError("x")), "case 7: KeyError at test_stress.py"),
        (_dies, "the process died, SIGKILL"),
        (_hangs, "case 7: longer than 0.5 s"),
    ],
)
def test_fault_is_found_and_the_other_cases_go_on(check: Check, text: str) -> None:
    cases = 2 if check is _hangs else 6
    result = run_cases(check, cases, first=7, patience=0.5)
    assert any(text in fault for fault in result.faults)
    assert len(result.faults) + result.outcomes.total() == cases


def test_same_case_is_the_same_in_any_part() -> None:
    before = json.dumps(mutate.HOSTILE)
    whole = [fuzz_vocabularies.damaged(random.Random(f"1-{number}")) for number in range(3000)]
    assert json.dumps(mutate.HOSTILE) == before
    assert [fuzz_vocabularies.damaged(random.Random(f"1-{number}")) for number in range(2900, 3000)] == whole[2900:]
    assert len(set(whole)) > 2000  # the others are simple, such as a tensor that is missing


@pytest.mark.parametrize("text", ["", "two\nlines", "two\u2028lines"])
def test_error_that_is_not_one_line_is_a_fault(text: str) -> None:
    check_error(DataError("one line"))
    error = DataError("")
    error.args = (text,)  # as no error of ours is made
    with pytest.raises(FaultError, match="not one line"):
        check_error(error)


@pytest.mark.parametrize(
    ("status", "out", "wrong"),
    [
        (1, "reading\nError: no room.\n", None),
        (1, "Traceback (most recent call last):\nOSError: no room", "a traceback"),
        (1, "", "no error in one line"),
        (-7, "", "status -7"),
        (0, "done", "status 0"),
    ],
)
def test_command_that_does_not_fail_in_one_line_is_found(status: int, out: str, wrong: str | None) -> None:
    found = one_line_error(Ended(status, out, 1.0))
    assert found is None if wrong is None else found is not None and wrong in found


@pytest.mark.parametrize(
    ("memory", "level"),
    [
        ([100.0] * 60, True),
        ([1000 - 900 * 0.8**i for i in range(60)], True),
        ([100.0 + 20 * (i % 30 == 29) for i in range(60)], True),  # a peak of a moment
        ([100.0 + i for i in range(60)], False),
        ([200.0 + 0.2 * i for i in range(60)], False),  # 12 MB in ten minutes
    ],
)
def test_memory_that_still_grows_is_told_from_memory_that_levels_off(memory: list[float], level: bool) -> None:
    assert soak.levels_off(memory) is level


def test_vocabulary_that_breaks_a_rule_is_found() -> None:
    from vocabularies import golden

    vocabulary = golden()
    fuzz_vocabularies.check_valid(vocabulary)
    object.__setattr__(vocabulary, "embeddings", vocabulary.embeddings * 2)
    with pytest.raises(FaultError, match="unit norm"):
        fuzz_vocabularies.check_valid(vocabulary)
