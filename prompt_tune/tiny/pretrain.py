"""The pretraining of `tiny`: text tower, detector, original vocabulary, and a measurement of the result.

The folder that it writes has the layout of `prompt_tune/tiny/weights`; `World.load` takes it like a checkpoint.
"""

import json
from pathlib import Path

import torch
import yaml

from prompt_tune.datasets.scenes import TRAINED
from prompt_tune.errors import RunError
from prompt_tune.files import replacing
from prompt_tune.models.text_tower import LOCAL_PREFIX, TextTower
from prompt_tune.models.world import World, torch_device
from prompt_tune.tiny.detector import YAML, train_detector
from prompt_tune.tiny.skill import measure_skill
from prompt_tune.tiny.text_tower import fit_tower, name_parts
from prompt_tune.vocabulary.vocabulary import Vocabulary, guide_digest

TOWER_STEPS = 1000  # updates of the text tower
DETECTOR_STEPS = 3000  # updates of the detector


def pretrain(
    out: Path,
    *,
    seed: int = 0,
    tower_steps: int = TOWER_STEPS,
    detector_steps: int = DETECTOR_STEPS,
    device: str = "cpu",
) -> dict[str, float]:
    """Train `tiny` from scratch, or resume an interrupted run.

    Args:
        out: The folder for tower/, detector.yaml, detector.safetensors, original.vocab.safetensors, skill.json, and the
            state to resume from.
        seed: The seed of everything that is random.
        tower_steps: Updates of the text tower.
        detector_steps: Updates of the detector.
        device: The torch device for the training of the detector.

    Returns:
        The results of `measure_skill`, which are also in skill.json.

    Raises:
        ModelError: The device cannot be used.
        RunError: The folder cannot be made.
    """
    from safetensors.torch import save_file

    device = torch_device(device)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"The folder {out} cannot be made: {error.strerror}. Give another --out.") from error
    if not (out / "tower" / "open_clip_config.json").is_file():
        fit_tower(out / "tower", seed=seed, steps=tower_steps)
    tower = TextTower.load(f"{LOCAL_PREFIX}{out / 'tower'}")
    names = [name for name, _ in name_parts()]
    model = train_detector(out, names, tower.embed(names), seed=seed, steps=detector_steps, device=device)

    original = [f"{colour} {shape}" for colour, shape in TRAINED]
    with replacing(out / "detector.safetensors") as path:
        state = model.state_dict()
        save_file({k: v.float().contiguous() if v.is_floating_point() else v for k, v in state.items()}, path)
    with replacing(out / "detector.yaml") as path:
        path.write_text(yaml.safe_dump(YAML, default_flow_style=None, sort_keys=False))
    world = World.load(out)
    embeddings = tower.embed_classes([(name,) for name in original])
    Vocabulary(
        names=tuple(original),
        embeddings=embeddings,
        kind="original",
        detector=world.digest,
        text_tower=tower.digest,
        guide=guide_digest(embeddings),
        provenance={"seed": seed, "detector_steps": detector_steps, "torch": torch.__version__.split("+")[0]},
    ).save(out / "original.vocab.safetensors")
    skill = measure_skill(world, tower, original)
    with replacing(out / "skill.json") as path:
        path.write_text(json.dumps(skill, indent=1, sort_keys=True) + "\n")
    return skill
