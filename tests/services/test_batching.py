"""Waiting requests share batches of fixed sizes, and get the rows of `Detector.detect` at that size, bit for bit."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import TESTS
from small_bundle import content, photo

from prompt_tune.errors import PromptTuneError, VocabularyError
from prompt_tune.runtime.detections import Detections
from prompt_tune.runtime.detector import Detector
from prompt_tune.runtime.images import Letterboxed
from prompt_tune.runtime.slices import Slices, detect_sliced
from prompt_tune.services.batching import Answer, Batcher, Pass, Terms, Windows

BUNDLE = TESTS / "data" / "bundle"
PHOTOS = [photo(50 + 10 * number, 90, seed=number) for number in range(7)]


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector(BUNDLE, threads=1)


class Held(Detector):
    """A detector whose next passes wait until they are let go."""

    def __init__(self, bundle: Path) -> None:
        super().__init__(bundle, threads=1)
        self.gate = threading.Event()

    def detect(self, *arguments: object, **options: object) -> list[Detections]:
        assert self.gate.wait(20)
        return super().detect(*arguments, **options)  # type: ignore[arg-type]


def test_terms_are_checked_and_rounded(detector: Detector) -> None:
    terms = Terms.of(detector, vocabularies=["learned", "original", "learned"], iou=0.3, conf=0.1)
    assert terms == Terms(("original", "learned"), float(np.float32(0.3)), float(np.float32(0.1)))
    assert Terms.of(detector) == Terms(None, None, None)
    assert Terms.of(detector, vocabularies=[]).vocabularies == ()
    with pytest.raises(VocabularyError, match=r"No vocabulary `night` is loaded. Loaded: original, learned"):
        Terms.of(detector, vocabularies=["night"])
    assert Terms.of(detector, overlap="score").overlap == "score"
    with pytest.raises(PromptTuneError, match="`overlap` must be one of keep, learned, score"):
        Terms.of(detector, overlap="all")
    for value in (-0.1, 1.1, float("nan")):
        with pytest.raises(PromptTuneError, match="`conf` must be from 0 to 1"):
            Terms.of(detector, conf=value)


@pytest.mark.parametrize("sizes", [(), (0,), (4, -1)])
def test_sizes_are_from_one_on(detector: Detector, sizes: tuple[int, ...]) -> None:
    async def make() -> None:
        with pytest.raises(PromptTuneError, match="must be at least 1"):
            Batcher(detector, sizes=sizes)

    asyncio.run(make())


@pytest.mark.parametrize("sizes", [(1, 2, 4), (4,), (3,)])
def test_rows_are_those_of_detect_at_the_size_that_the_answer_names(detector: Detector, sizes: tuple[int, ...]) -> None:
    passes: list[Pass] = []

    async def ask() -> list[tuple[int, Terms, tuple[object, ...]]]:
        batcher = Batcher(detector, sizes=sizes, seen=passes.append)
        await batcher.start()
        all_terms = [Terms(), Terms(conf=0.125), Terms(iou=0.25), Terms(("learned",)), Terms(())]
        asked = [(number, terms) for terms in all_terms for number in range(len(PHOTOS))]
        images = [detector.letterboxed(one) for one in PHOTOS]
        answers = await asyncio.gather(*(batcher.detect(images[number], terms) for number, terms in asked))
        await batcher.close()
        assert batcher.waiting == 0
        for (number, terms), given in zip(asked, answers, strict=True):
            show = None if terms.vocabularies is None else [f"{label}:*" for label in terms.vocabularies]
            (alone,) = detector.detect(PHOTOS[number], conf=terms.conf, iou=terms.iou, show=show, batch=given.batch)
            assert content(given.found) == content(alone)
            assert terms.vocabularies is None or set(given.found.vocabularies) <= set(terms.vocabularies)
        return [(number, terms, content(given.found)) for (number, terms), given in zip(asked, answers, strict=True)]

    asked = asyncio.run(ask())
    assert len(asked) == 35 and len({found for _, _, found in asked}) > 20
    assert {done.size for done in passes} <= set(sizes)
    assert sum(done.images for done in passes) == 35
    assert max(done.images for done in passes) == max(sizes)  # requests that waited went together
    assert all(done.took > 0 and len(done.waited) == done.images for done in passes)


def test_only_equal_terms_share_a_batch_and_the_oldest_goes_first() -> None:
    detector = Held(BUNDLE)
    passes: list[Pass] = []

    async def ask() -> list[int]:
        batcher = Batcher(detector, sizes=(1, 2, 4), passes=1, seen=passes.append)
        detector.gate.set()
        await batcher.start()
        detector.gate.clear()
        image = detector.letterboxed(PHOTOS[0])
        order: list[int] = []

        async def one(number: int, terms: Terms) -> None:
            await batcher.detect(image, terms)
            order.append(number)

        tasks = [asyncio.create_task(one(0, Terms()))]
        await asyncio.sleep(0.05)  # in the graph
        tasks += [asyncio.create_task(one(number, Terms(conf=0.5 * (number % 2)))) for number in range(1, 8)]
        await asyncio.sleep(0.05)
        assert batcher.waiting == 7
        detector.gate.set()
        await asyncio.gather(*tasks)
        await batcher.close()
        return order

    assert asyncio.run(ask()) == [0, 1, 3, 5, 7, 2, 4, 6]
    assert [(done.size, done.images) for done in passes] == [(1, 1), (4, 4), (2, 2), (1, 1)]


def windows_of(detector: Detector, image: np.ndarray, slices: Slices) -> Windows:
    """An image in slices, as the server makes it ready."""
    places = slices.windows((image.shape[1], image.shape[0]))
    return Windows(places, [detector.letterboxed(image[y:bottom, x:right]) for x, y, right, bottom in places])


@pytest.mark.parametrize(("sizes", "used"), [((1, 2, 4, 8), 4), ((3,), 3), ((16,), 16)])
def test_image_in_slices_has_the_rows_of_detect_sliced(detector: Detector, sizes: tuple[int, ...], used: int) -> None:
    slices, passes = Slices(48, 0.3), list[Pass]()
    terms = [Terms(conf=0.1), Terms(("learned",), conf=0.1), Terms(iou=0.25, overlap="score", conf=0.1)]

    async def ask() -> list[Answer]:
        batcher = Batcher(detector, sizes=sizes, passes=1, seen=passes.append)
        await batcher.start()
        plain = detector.letterboxed(PHOTOS[0])
        cut = windows_of(detector, PHOTOS[0], slices)
        both = await asyncio.gather(
            *(batcher.detect(image, one) for one in terms for image in (cut, plain)), batcher.detect(cut, terms[0])
        )
        await batcher.close()
        return list(both)

    *answers, again = asyncio.run(ask())
    n_windows = slices.count((90, 50)) + 1
    assert n_windows == 7
    for one, cut, plain in zip(terms, answers[::2], answers[1::2], strict=True):
        show = None if one.vocabularies is None else [f"{label}:*" for label in one.vocabularies]
        options: dict[str, Any] = {"conf": one.conf, "iou": one.iou, "overlap": one.overlap, "show": show}
        wanted = detect_sliced(detector, PHOTOS[0], slices, batch=used, **options)
        assert cut.batch == used and content(cut.found) == content(wanted) and len(wanted)
        hidden = [None if found.hidden is None else found.hidden.tolist() for found in (cut.found, wanted)]
        assert hidden[0] == hidden[1] and (hidden[0] is None) == (one.overlap == "keep")
        (whole,) = detector.detect(PHOTOS[0], batch=plain.batch, **options)
        assert content(plain.found) == content(whole) != content(wanted)
    assert content(again.found) == content(answers[0].found)
    assert [done.images for done in passes] == [1] * 7
    assert sorted(done.batches for done in passes) == sorted([1] * 3 + [-(-n_windows // used)] * 4)


def test_cancelled_request_leaves_the_queue_and_closing_answers_the_rest() -> None:
    detector = Held(BUNDLE)
    passes: list[Pass] = []

    async def ask() -> None:
        batcher = Batcher(detector, sizes=(1,), passes=1, seen=passes.append)
        detector.gate.set()
        await batcher.start()
        detector.gate.clear()
        image = detector.letterboxed(PHOTOS[0])
        tasks = [asyncio.create_task(batcher.detect(image, Terms())) for _ in range(4)]
        await asyncio.sleep(0.05)
        tasks[1].cancel()
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0.05)
        with pytest.raises(PromptTuneError, match="The server stops"):
            await batcher.detect(image, Terms())
        detector.gate.set()
        await closing
        assert [task.cancelled() for task in tasks] == [False, True, False, False]
        answers = await asyncio.gather(tasks[0], *tasks[2:])
        assert all(len(given.found) for given in answers)

    asyncio.run(ask())
    assert len(passes) == 3


def test_failure_belongs_to_its_batch_alone(detector: Detector) -> None:
    async def ask() -> None:
        batcher = Batcher(detector, sizes=(1,))
        await batcher.start()
        image = detector.letterboxed(PHOTOS[0])
        wrong = Letterboxed(image.pixels[:1], image.placed)
        with pytest.raises(PromptTuneError, match="ONNX Runtime failed"):
            await batcher.detect(wrong, Terms())
        gone = Terms(("learned-9",))  # unloaded between the check and the pass
        with pytest.raises(VocabularyError, match="`learned-9` was unloaded in the meantime"):
            await batcher.detect(image, gone)
        assert len((await batcher.detect(image, Terms())).found)
        await batcher.close()

    asyncio.run(ask())
