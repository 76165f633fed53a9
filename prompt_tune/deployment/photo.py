"""The photo behind the Sample button of a bundle's page: one of the validation images that the run was chosen on."""

import logging
from pathlib import Path

from PIL import Image

from prompt_tune.datasets.reading import SplitName, read_split
from prompt_tune.errors import DataError, PromptTuneError
from prompt_tune.run import RunFolder
from prompt_tune.runtime.images import read_rgb, save_image

LONGEST_SIDE = 1280  # pixels
QUALITY = 85
TRIED = 20  # images that may be damaged before the search ends
logger = logging.getLogger(__name__)


def write_photo(run: Path, file: Path, *, trained_on_all: bool = False) -> bool:
    """Writes the validation image of a run with the most labelled objects, as a JPEG without EXIF.

    If the data set is not there any more, or cannot be read, a line says so and nothing is written.

    Args:
        run: A run folder of `fit`.
        file: The JPEG to write.
        trained_on_all: Whether the run held out no image, since there were few. Then it is a training image.

    Returns:
        Whether it is written.

    Raises:
        OSError: The file cannot be written.
    """
    try:
        image = _find(run, "train" if trained_on_all else "val")
    except PromptTuneError as error:
        logger.info("No photo for the page's Sample button: %s", error)
        return False
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    save_image(file, image, quality=QUALITY)
    return True


def _find(run: Path, name: SplitName) -> Image.Image:
    """The image, upright.

    Raises:
        PromptTuneError: There is none.
    """
    folder = RunFolder(run)
    config = folder.read_config()
    if not isinstance(config.get("data"), str):
        raise DataError(f"`{folder.config}` names no data set.")
    seed = config.get("settings", {}).get("seed", 0)
    if type(seed) is not int:
        raise DataError(f"`{folder.config}` is damaged: `seed` is {seed!r:.50}.")
    few = name == "train"
    _, split = read_split(config["data"], name, seed=seed, recorded=folder.held_out(), trained_on_all=few)
    ranked = sorted(split.samples, key=lambda sample: -int((~sample.labels.ignore).sum()))
    for sample in ranked[:TRIED]:
        try:
            image = Image.fromarray(read_rgb(sample.path))
        except DataError:
            continue
        logger.info("The page's Sample button shows %s.", sample.path)
        return image
    raise DataError(f"no `{name}` image of `{config['data']}` can be read.")
