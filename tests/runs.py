"""Run folders as `fit` leaves them, as far as an export reads them."""

import json
from pathlib import Path

from prompt_tune.run import CONFIG_FILE
from prompt_tune.vocabulary.format import LEARNED_FILE, ORIGINAL_FILE
from prompt_tune.vocabulary.vocabulary import Vocabulary


def write_run(folder: Path, model: str | Path, original: Vocabulary, learned: Vocabulary, *, image_size: int) -> Path:
    """Writes configuration and vocabularies; returns the folder."""
    original.save(folder / ORIGINAL_FILE)
    learned.save(folder / LEARNED_FILE)
    digests = {"detector": original.detector, "text_tower": original.text_tower, "guide": original.digest}
    config = {"model": str(model), "image_size": image_size, "digests": digests}
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    return folder
