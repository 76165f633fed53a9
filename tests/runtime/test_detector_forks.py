"""A detector in forked processes, and pickled for others."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from small_bundle import content, learned_for, photo

from prompt_tune.errors import GraphError
from prompt_tune.runtime.detector import Detector
from prompt_tune.vocabulary.vocabulary import Vocabulary

FORK = """if True:
    import gc, os, signal, sys, threading
    import numpy as np
    from prompt_tune import Detector, Vocabulary
    from prompt_tune.errors import PromptTuneError

    def content(found):
        return [(one.boxes_xyxy.tobytes(), one.scores.tobytes(), one.class_names, one.vocabularies) for one in found]

    bundle, extra, threads = sys.argv[1], Vocabulary.load(sys.argv[2]), int(sys.argv[3])
    images = list(np.random.default_rng(0).integers(0, 255, (4, 96, 96, 3), np.uint8))
    detector = Detector(bundle, threads=threads)
    detector.load(extra, "before")
    expected = content(detector.detect(images, batch=2, learned_conf=0.05))
    loading, forked = threading.Event(), threading.Event()

    def hold() -> None:  # another thread is about to load a vocabulary while the process forks
        with detector._lock.get():
            loading.set()
            forked.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    loading.wait()
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)  # a child that hangs is killed
        assert content(detector.detect(images, batch=2, learned_conf=0.05)) == expected
        detector.unload("before")
        detector.load(extra, "after")
        assert set(detector.vocabularies) == {"original", "learned", "after"}
        del detector
        gc.collect()
        sys.exit(0)  # Python frees everything
    forked.set()
    holder.join()
    print(os.waitpid(pid, 0)[1], content(detector.detect(images, batch=2, learned_conf=0.05)) == expected)
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_forked_child_detects_the_same_and_ends(bundle: Path, tmp_path: Path, threads: int) -> None:
    learned_for(bundle, "lorry", n_prompts=2).save(tmp_path / "extra.vocab.safetensors")
    extra = str(tmp_path / "extra.vocab.safetensors")
    command = [sys.executable, "-c", FORK, str(bundle), extra, str(threads)]
    # with its telemetry on, ONNX Runtime hangs at the exit of every forked child, as soon as it is imported
    environment = os.environ | {"ORT_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("0 True\n", "")


def test_processes_that_multiprocessing_forks_detect_the_same(bundle: Path) -> None:
    code = """if True:
        import multiprocessing, sys
        import numpy as np
        from prompt_tune import Detector

        def scores(image: np.ndarray) -> bytes:
            return b"".join(found.scores.tobytes() for found in detector.detect([image, image], batch=2))

        images = list(np.random.default_rng(0).integers(0, 255, (4, 96, 96, 3), np.uint8))
        detector = Detector(sys.argv[1], threads=2)
        expected = [scores(image) for image in images]
        with multiprocessing.get_context("fork").Pool(2) as pool:
            print(len(set(expected)), pool.map_async(scores, images).get(timeout=60) == expected)
    """
    done = subprocess.run([sys.executable, "-c", code, bundle], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("4 True\n", "")


def test_forked_child_whose_graph_was_replaced_says_so(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    detector = Detector(tmp_path / "bundle", threads=1)
    model = onnx.load(bundle / "detector.onnx")
    metadata = json.loads(model.metadata_props[0].value)
    model.metadata_props[0].value = json.dumps(metadata | {"detector": "a" * 64})
    onnx.save(model, tmp_path / "bundle" / "detector.onnx")
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            detector.detect(photo(8, 8))
        except GraphError as error:
            os.write(writer, str(error).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reader, 1000).decode().endswith("was replaced by another graph. Start the process again.")


def test_pickled_detector_detects_the_same(bundle: Path, tmp_path: Path) -> None:
    detector = Detector(bundle, image_size=128, threads=1, learned=[learned_for(bundle, "lorry", n_prompts=2)])
    detector.load(learned_for(bundle, "own", guide_mode="own", thresholds=np.float32(0)), "own")
    detector.unload("learned")
    images = [photo(60, 150), photo(130, 70, seed=2)]
    code = """if True:
        import pickle, sys
        detector, images = pickle.load(sys.stdin.buffer)
        found = detector.detect(images, batch=2)
        sys.stdout.buffer.write(pickle.dumps((detector.image_size, detector.classes, found)))
    """
    data = pickle.dumps((detector, images))
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr.decode()
    size, classes, found = pickle.loads(done.stdout)
    assert (size, classes) == (128, detector.classes)
    assert list(map(content, found)) == list(map(content, detector.detect(images, batch=2)))


def test_pickled_detector_whose_bundle_was_replaced_is_refused(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    data = pickle.dumps(Detector(tmp_path / "bundle", use_bundled=False, threads=1))
    place = tmp_path / "bundle" / "original.vocab.safetensors"
    Vocabulary.load(place).remove(["thing 3"]).save(place)
    with pytest.raises(GraphError, match="was replaced by another bundle"):
        pickle.loads(data)
