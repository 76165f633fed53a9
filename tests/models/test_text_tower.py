"""The frozen text tower: parity with open_clip, what it refuses, and names in hand-written sentences."""

import json
import logging
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from places import WEIGHTS
from safetensors.torch import load_file, save_file
from vocabularies import unit_rows

from prompt_tune.config import FitConfig
from prompt_tune.errors import ModelError, VocabularyError
from prompt_tune.models.context import PromptContext
from prompt_tune.models.text_tower import BATCH, TextTower, _quiet, template_embeddings
from prompt_tune.tuning.loss import teacher_distance
from prompt_tune.vocabulary.names import read_templates

CLASSES = [("lorry", "truck"), ("traffic light",), ("bus", "coach", "minibus")]
NAMES = ["dog", "traffic light", "a photo of a rather long-haired Dachshund, sitting", "Käfer", "3"]


@pytest.fixture(scope="module")
def spec(text_tower: Path) -> str:
    return f"local-dir:{text_tower}"


@pytest.fixture(scope="module")
def tower(spec: str) -> TextTower:
    return TextTower.load(spec)


def in_open_clip(spec: str, texts: list[str]) -> np.ndarray:
    """Embeddings by open_clip's own `encode_text`, padded to the whole window."""
    model = open_clip.create_model(spec).eval()
    with torch.no_grad():
        rows: np.ndarray = model.encode_text(open_clip.get_tokenizer(spec)(texts), normalize=True).numpy()
    return rows


def test_embed_cut_sequences_are_those_of_open_clip_with_77_tokens(tower: TextTower, spec: str) -> None:
    got = tower.embed(NAMES)
    assert got.shape == (5, 512) and got.dtype == np.float32
    np.testing.assert_allclose(got, in_open_clip(spec, NAMES), atol=1e-5)
    assert np.abs(got[0] - got[1]).max() > 0.01


def test_embed_of_tiny_is_that_of_open_clip() -> None:
    folder = WEIGHTS / "tower"
    np.testing.assert_allclose(
        TextTower.load("tiny").embed(NAMES), in_open_clip(f"local-dir:{folder}", NAMES), atol=1e-5
    )


@pytest.mark.parametrize("count", [0, 1, BATCH, 2 * BATCH + 3])
def test_embed_any_number_of_texts_gives_unit_rows_in_order(tower: TextTower, count: int) -> None:
    texts = [f"{NAMES[i % 5]} {i}" for i in range(count)]
    got = tower.embed(texts)
    assert got.shape == (count, 512)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)
    for i in (0, count // 2, count - 1)[: 3 * bool(count)]:
        np.testing.assert_allclose(got[i], tower.embed([texts[i]])[0], atol=1e-6)


def test_embed_classes_repeats_the_prompts_of_shorter_classes(tower: TextTower) -> None:
    got = tower.embed_classes([("lorry", "truck", "HGV"), ("car",), ("cab", "taxi")])
    rows = {text: tower.embed([text])[0] for text in ("lorry", "truck", "HGV", "car", "cab", "taxi")}
    wanted = [["lorry", "truck", "HGV"], ["car"] * 3, ["cab", "taxi", "cab"]]
    np.testing.assert_allclose(got, [[rows[text] for text in texts] for texts in wanted], atol=1e-6)


def test_embed_classes_repeated_name_is_refused(tower: TextTower) -> None:
    with pytest.raises(VocabularyError, match="classes 0 and 1 are both 'car'"):
        tower.embed_classes([("car",), ("car", "auto")])


def test_tokenize_name_as_long_as_the_window_is_embedded(tower: TextTower, spec: str) -> None:
    text = " ".join(["dog"] * 75)
    np.testing.assert_allclose(tower.embed([text]), in_open_clip(spec, [text]), atol=1e-5)


def test_tokenize_longer_name_is_refused(tower: TextTower) -> None:
    text = " ".join(["dog"] * 76)
    with pytest.raises(VocabularyError) as refusal:
        tower.embed(["cat", text])
    assert str(refusal.value) == (
        f"Class name '{text}' has 76 tokens; the window of 77 leaves room for 75. Shorten the name."
    )


@pytest.mark.parametrize("text", ["", "  ", "\n"])
def test_tokenize_empty_name_is_refused(tower: TextTower, text: str) -> None:
    with pytest.raises(VocabularyError, match="has no token"):
        tower.embed([text])


def test_tower_is_frozen_and_gradients_reach_the_vectors_alone(tower: TextTower) -> None:
    vectors = tower.token_vectors([1, 2, 3]).clone().requires_grad_()
    tower.encode(vectors[None], torch.tensor([2])).sum().backward()
    assert vectors.grad is not None and bool((vectors.grad.abs().sum(1) > 0).all())
    assert not any(p.requires_grad or p.grad is not None for p in tower.parameters().values())
    assert not any(module.training for module in tower.transformer.modules())


def test_encode_does_not_read_behind_the_end_token(tower: TextTower) -> None:
    vectors = tower.token_vectors([5, 6, 7, 8])[None]
    changed = vectors.clone()
    changed[0, 3] = 9.0
    end = torch.tensor([2])
    assert torch.equal(tower.encode(vectors, end), tower.encode(changed, end))


def test_digest_is_that_of_the_parameters(tower: TextTower, spec: str, text_tower: Path, tmp_path: Path) -> None:
    shutil.copytree(text_tower, tmp_path / "copy")
    assert TextTower.load(f"local-dir:{tmp_path / 'copy'}").digest == tower.digest
    weights = load_file(tmp_path / "copy" / "open_clip_model.safetensors")
    weights["ln_final.weight"][0] += 1e-3
    save_file(weights, tmp_path / "copy" / "open_clip_model.safetensors")
    assert TextTower.load(f"local-dir:{tmp_path / 'copy'}").digest != tower.digest
    assert len(tower.digest) == 64


def test_load_leaves_the_root_logger_and_warnings_alone(spec: str) -> None:
    before = list(logging.getLogger().handlers), list(warnings.filters)
    TextTower.load(spec)
    assert (list(logging.getLogger().handlers), list(warnings.filters)) == before


def test_load_of_a_tag_for_another_activation_is_an_error() -> None:
    with pytest.raises(UserWarning, match="QuickGELU"), _quiet():
        warnings.warn("QuickGELU mismatch between final model config and pretrained tag", UserWarning, stacklevel=1)


def write_tower(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """A random tower whose configuration was changed."""
    config: dict[str, Any] = {
        "embed_dim": 512,
        "vision_cfg": {"image_size": 32, "patch_size": 32, "width": 64, "layers": 1},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
    }
    change(config)
    custom = {key: value for key, value in config.items() if key != "custom_text"}
    model = (open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP)(**custom)
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "256-d": (lambda config: config.update(embed_dim=256), "makes 256-d embeddings; YOLO-World takes 512"),
    "pools the last": (lambda config: config["text_cfg"].update(pool_type="last"), "does not read its embedding"),
    "sees ahead": (
        lambda config: config.update(custom_text=True) or config["text_cfg"].update(no_causal_mask=True),
        "is not causal",
    ),
    "class token": (
        lambda config: config.update(custom_text=True) or config["text_cfg"].update(embed_cls=True),
        "does not read its embedding",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_load_tower_of_another_kind_is_refused(case: str, tmp_path: Path) -> None:
    change, reason = REFUSED[case]
    write_tower(tmp_path / "tower", change)
    with pytest.raises(ModelError, match=reason) as refusal:
        TextTower.load(f"local-dir:{tmp_path / 'tower'}")
    assert len(str(refusal.value).splitlines()) == 1


def test_load_custom_text_tower_is_embedded_as_in_open_clip(tmp_path: Path) -> None:
    write_tower(tmp_path / "tower", lambda config: config.update(custom_text=True))
    spec = f"local-dir:{tmp_path / 'tower'}"
    np.testing.assert_allclose(TextTower.load(spec).embed(NAMES), in_open_clip(spec, NAMES), atol=1e-5)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "open_clip_config.json").unlink(), "has no open_clip_config.json"),
        (lambda folder: (folder / "open_clip_model.safetensors").unlink(), "has no open_clip_model.safetensors"),
        (lambda folder: (folder / "open_clip_config.json").write_text("{}"), "missing 'model_cfg'"),
        (lambda folder: (folder / "open_clip_config.json").write_text("no"), "cannot be loaded"),
        (lambda folder: (folder / "open_clip_model.safetensors").write_bytes(b"\0" * 99), "cannot be loaded"),
        (lambda folder: save_file({}, folder / "open_clip_model.safetensors"), "cannot be loaded"),
    ],
)
def test_load_damaged_folder_is_refused(
    damage: Callable[[Path], object], reason: str, text_tower: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "tower"
    shutil.copytree(text_tower, folder)
    damage(folder)
    with pytest.raises(ModelError, match=reason) as refusal:
        TextTower.load(f"local-dir:{folder}")
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("", "has no tag"),
        ("ViT-B-32", "the rule is 'tiny', 'local-dir:FOLDER' or open_clip's NAME:TAG"),
        ("local-dir:/no/such/folder", "has no open_clip_config.json"),
    ],
)
def test_load_unknown_spec_is_refused(spec: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        TextTower.load(spec)


def test_load_without_network_says_so_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="not on this machine, and there is no network"):
        TextTower.load("ViT-B-32-quickgelu:openai")
    from huggingface_hub import constants

    assert not constants.HF_HUB_OFFLINE


def test_template_that_is_the_bare_name_gives_the_plain_embeddings(tower: TextTower) -> None:
    np.testing.assert_allclose(template_embeddings(tower, CLASSES, ["{}"]), tower.embed_classes(CLASSES), atol=1e-6)


def test_templates_are_averaged_over_unit_rows_and_normalised(tower: TextTower) -> None:
    got = template_embeddings(tower, CLASSES, ["a {}.", "photo of {} and {}"])
    rows = tower.embed(["a traffic light.", "photo of traffic light and traffic light"])
    wanted = rows.mean(0) / np.linalg.norm(rows.mean(0))
    assert got.shape == (3, 3, 512) and got.dtype == np.float32
    np.testing.assert_allclose(got[1], np.tile(wanted, (3, 1)), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(got, axis=2), 1, atol=1e-6)
    np.testing.assert_array_equal(got[0, 2], got[0, 0])  # fewer names repeat, in order


def test_templates_of_the_package_are_the_default(tower: TextTower) -> None:
    got = template_embeddings(tower, CLASSES[:1])
    np.testing.assert_array_equal(got, template_embeddings(tower, CLASSES[:1], read_templates()))
    assert len(read_templates()) > 1 and not np.allclose(got, tower.embed_classes(CLASSES[:1]), atol=1e-3)


def test_teacher_has_a_row_for_every_learned_prompt(tower: TextTower) -> None:
    context = PromptContext(tower, CLASSES, n_ctx=2, prompts_per_class=2)
    teacher = template_embeddings(tower, context.texts)
    assert teacher.shape == context.embeddings().shape == (3, 6, 512)
    np.testing.assert_array_equal(teacher[0, 0], teacher[0, 2])  # lorry, truck, lorry, truck
    assert not np.allclose(teacher[0, 0], teacher[0, 1], atol=1e-3)


def test_name_that_overruns_the_window_in_a_sentence_is_refused(tower: TextTower) -> None:
    with pytest.raises(VocabularyError, match="window"):
        template_embeddings(tower, [(" ".join(["word"] * 74),)], ["a photo of a {} there."])


def test_teacher_distance_is_the_squared_distance_of_unit_rows() -> None:
    rows = torch.from_numpy(unit_rows(3, 2))
    assert float(teacher_distance(rows, rows)) == 0
    assert float(teacher_distance(rows, -rows)) == pytest.approx(4, rel=1e-5)
    other = torch.from_numpy(unit_rows(3, 2, seed=1))
    cosine = (rows * other).sum(-1).mean()
    assert float(teacher_distance(rows, other)) == pytest.approx(2 - 2 * float(cosine), rel=1e-4)


def test_teacher_distance_alone_pulls_a_context_to_the_teacher(tower: TextTower) -> None:
    context = PromptContext(tower, CLASSES[:2], n_ctx=2)
    teacher = torch.from_numpy(template_embeddings(tower, context.texts))
    optimizer = torch.optim.AdamW([context.ctx], lr=FitConfig.learning_rate, weight_decay=0.0)
    distances = []
    for _ in range(30):
        distance = teacher_distance(context(), teacher)
        optimizer.zero_grad()
        distance.backward()
        optimizer.step()
        distances.append(distance.item())
    assert distances[-1] < 0.5 * distances[0]


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("text_cfg", "hf_tokenizer_name", "somebody/tokenizer"),
        ("text_cfg", "hf_model_name", "somebody/model"),
        ("vision_cfg", "timm_model_pretrained", True),
    ],
)
def test_local_tower_that_names_something_to_download_is_refused(
    text_tower: Path, tmp_path: Path, part: str, key: str, value: object
) -> None:
    folder = tmp_path / "tower"
    shutil.copytree(text_tower, folder)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"].setdefault(part, {})[key] = value
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=rf"would be downloaded in part: open_clip_config\.json has `{key}`"):
        TextTower.load(f"local-dir:{folder}")
    config["model_cfg"][part][key] = "" if isinstance(value, str) else False  # says the same as no key
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    TextTower.load(f"local-dir:{folder}")
