"""A large picture with small objects: scenes of the sample set beside and below each other."""

import numpy as np
from bundles import SIZE

from prompt_tune.datasets.sample import original_scene

N = 3  # scenes beside each other, and below each other


def scenes() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """A picture of N x N scenes, its boxes (n, 4), and their original classes."""
    picture, boxes, names = np.zeros((N * SIZE, N * SIZE, 3), np.uint8), [], []
    for number in range(N * N):
        scene = original_scene(0, number)
        y, x = (SIZE * at for at in divmod(number, N))
        picture[y : y + SIZE, x : x + SIZE] = scene.image
        boxes.append(scene.boxes_xyxy + np.array([x, y, x, y], np.float32))
        names += [f"{look.layers[0].colour} {look.layers[0].shape}" for look in scene.looks]
    return picture, np.concatenate(boxes), names
