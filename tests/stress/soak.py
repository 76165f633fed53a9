"""Eight threads detect, load and unload for minutes: original detections keep every bit, and memory levels off.

python tests/stress/soak.py --minutes 10
"""

import argparse
import ctypes
import random
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from places import TESTS
from stress.cases import Result, summary
from vocabularies import learned

from prompt_tune.errors import VocabularyError
from prompt_tune.runtime.detections import Detections
from prompt_tune.runtime.detector import Detector

BUNDLE = TESTS / "data" / "bundle"
N_THREADS = 8
SIZES = (1, 3, 20, 150)  # classes of vocabularies that come and go
SHAPES = ((40, 60), (96, 96), (200, 120), (64, 320))  # images, height and width
SAMPLES = 60  # measurements of memory
LEVEL = (
    0.01  # memory levels off if the median of its last third is higher by less than this share than of the one before
)


def soak(bundle: Path, seconds: float, *, seed: int = 0) -> tuple[Result, list[float], list[float]]:
    """Let the threads work on one detector.

    Returns:
        The outcomes, and the resident memory of the process in MB, `SAMPLES` times: as it was, and while all
        threads wait and the C library has given what is free back to the system. Only the second can show a leak: the
        first also has what eight calls work on, and the gaps that threads leave in the heaps of glibc.
    """
    result, lock, stop = Result(), threading.Lock(), threading.Event()
    slots = threading.Semaphore(N_THREADS)  # a thread has one while it does something
    going = threading.Event()  # unset while memory is measured
    going.set()
    rng = np.random.default_rng(seed)
    images = [rng.integers(0, 255, (*shape, 3), np.uint8) for shape in SHAPES]
    alone = Detector(bundle, threads=1)
    original = alone.vocabularies["original"]
    originals = list(original.names)
    made_for: dict[str, Any] = {
        "detector": original.detector,
        "text_tower": original.text_tower,
        "guide": original.digest,
    }
    wanted = [content(alone.detect(image, conf=0.01, show=originals)[0].of("original")) for image in images]
    detector = Detector(bundle, threads=1)
    vocabularies = [learned(*(f"n{n} {i}" for i in range(n)), seed=n, **made_for) for n in SIZES]

    def work(number: int) -> None:
        own = random.Random(f"{seed}-{number}")
        counts: dict[str, int] = {"detections": 0, "loads": 0, "refused": 0}
        while not stop.is_set():
            going.wait()
            with slots:
                if own.random() < 0.3:
                    name = f"v{own.randrange(6)}"
                    try:
                        detector.load(own.choice(vocabularies), name=name)
                        counts["loads"] += 1
                    except VocabularyError:  # its classes are loaded under another name
                        counts["refused"] += 1
                    if own.random() < 0.7:
                        try:
                            detector.unload(name)
                        except VocabularyError:  # another thread was faster
                            counts["refused"] += 1
                at = own.randrange(len(images))
                try:
                    (found,) = detector.detect(images[at], conf=0.01, show=originals if own.random() < 0.5 else None)
                    same = content(found.of("original")) == wanted[at]
                except Exception as error:
                    same = False
                    result.faults.append(f"thread {number}: {type(error).__name__}: {error!s:.200}")
                counts["detections"] += 1
                if not same:
                    with lock:
                        result.faults.append(f"thread {number}: original detections of image {at} changed")
        with lock:
            result.outcomes.update(counts)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(N_THREADS)]
    for thread in threads:
        thread.start()
    memory, held = [], []
    for _ in range(SAMPLES):
        time.sleep(seconds / SAMPLES)
        memory.append(resident_mb())
        going.clear()
        for _ in threads:
            slots.acquire()
        give_back()
        held.append(resident_mb())
        slots.release(N_THREADS)
        going.set()
    stop.set()
    for thread in threads:
        thread.join()
    return result, memory, held


def content(found: Detections) -> tuple[object, ...]:
    """Boxes, scores and classes, bit for bit."""
    return (found.boxes_xyxy.tobytes(), found.scores.tobytes(), found.class_names)


def resident_mb() -> float:
    """Resident memory of this process in MB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def give_back() -> None:
    """Let glibc give free memory back to the system; other C libraries do so by themselves."""
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def levels_off(memory: Sequence[float]) -> bool:
    """Whether the last third is as high as the one before, within `LEVEL`, by their medians: a peak is no growth."""
    third = len(memory) // 3
    return median(memory[2 * third :]) <= median(memory[third : 2 * third]) * (1 + LEVEL)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--minutes", type=float, default=10)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--bundle", type=Path, default=BUNDLE)
    given = options.parse_args(arguments)
    started = time.perf_counter()
    result, memory, held = soak(given.bundle, given.minutes * 60, seed=given.seed)
    for what, values in (("resident memory in MB", memory), ("without what was free", held)):
        shown = ", ".join(f"{values[i]:.0f}" for i in range(0, SAMPLES, SAMPLES // 10))
        print(f"{what}, ten times in {given.minutes:g} minutes: {shown}; at the end {values[-1]:.0f}")
    level = levels_off(held)
    print("It levels off." if level else "It still grows.")
    if not level:
        result.faults.append("memory grows")
    head = f"soak: {N_THREADS} threads, {given.minutes:g} minutes (seed {given.seed})"
    return summary(head, result, time.perf_counter() - started)


if __name__ == "__main__":
    sys.exit(main())
