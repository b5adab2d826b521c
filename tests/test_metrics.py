"""Metrics against a computation of their own, on encoders made here."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model

from dreamvideo import bases, features
from dreamvideo.metrics.metric import Sample
from dreamvideo.metrics.similarity import ClipT, SubjectSimilarity, TemporalConsistency

SIDE = 16
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> tuple[features.Images, features.Texts, features.Images, Path]:
    """A random CLIP and a random DINOv2, written and read."""
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokenizer = bases.load("tiny").parts.tokenizer
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text, vision = {**small, **ids, "vocab_size": 514}, {**small, "image_size": SIDE, "patch_size": 8}
    folder = tmp_path_factory.mktemp("encoders")
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).save_pretrained(folder / "clip")
    tokenizer.save_pretrained(folder / "clip")
    config = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": SIDE, "patch_size": 8}
    Dinov2Model(Dinov2Config(**config)).save_pretrained(folder / "dino")
    says = {"size": {"shortest_edge": 20}, "crop_size": {"height": SIDE, "width": SIDE}}
    for name in ("clip", "dino"):
        about = {**says, "image_mean": MEAN, "image_std": STD}
        (folder / name / "preprocessor_config.json").write_text(json.dumps(about))
    return *features.clip(folder / "clip"), features.dino(folder / "dino"), folder


def noise(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 24, 40, 3), dtype=np.uint8)


def by_hand(frames: np.ndarray) -> torch.Tensor:
    """Prepared without the code under test: the shorter side to 20, the middle 16 x 16, normalised."""
    prepared = []
    for frame in frames:
        small = np.asarray(Image.fromarray(frame).resize((33, 20), Image.Resampling.BICUBIC))[2:18, 8:24] / 255
        prepared.append(((small - np.array(MEAN)) / np.array(STD)).transpose(2, 0, 1))
    return torch.tensor(np.stack(prepared), dtype=torch.float32)


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(one @ other / (one.norm() * other.norm()))


def test_against_a_computation_of_its_own(encoders) -> None:
    images, texts, looks, folder = encoders
    frames, references, prompt = noise(3, 0), noise(2, 1), "a robot in the snow"
    clip = CLIPModel.from_pretrained(folder / "clip").eval()
    dino = Dinov2Model.from_pretrained(folder / "dino").eval()
    with torch.no_grad():
        seen = clip.visual_projection(clip.vision_model(by_hand(frames)).pooler_output)
        ids = bases.load("tiny").parts.tokenizer([prompt], padding="max_length", return_tensors="pt").input_ids
        told = clip.text_projection(clip.text_model(ids).pooler_output)[0]
        ours, theirs = (dino(by_hand(pictures)).last_hidden_state[:, 0] for pictures in (frames, references))
    sample = Sample(frames=frames, prompt=prompt, references=references)
    clip_t = np.mean([cosine(vector, told) for vector in seen])
    dino_i = np.mean([cosine(one, other) for one in ours for other in theirs])
    steady = np.mean([cosine(seen[0], seen[1]), cosine(seen[1], seen[2])])
    assert ClipT(images, texts).measure(sample) == pytest.approx(clip_t, abs=1e-6)
    assert SubjectSimilarity("DINO-I", looks).measure(sample) == pytest.approx(dino_i, abs=1e-6)
    assert TemporalConsistency(images).measure(sample) == pytest.approx(steady, abs=1e-6)


def test_the_same_picture_scores_one(encoders) -> None:
    images, _, looks, _ = encoders
    picture = noise(1, 0)
    sample = Sample(frames=picture.repeat(4, axis=0), references=picture)
    assert TemporalConsistency(images).measure(sample) == pytest.approx(1, abs=1e-6)
    assert SubjectSimilarity("DINO-I", looks).measure(sample) == pytest.approx(1, abs=1e-6)


def test_what_does_not_apply_is_absent(encoders) -> None:
    images, texts, looks, _ = encoders
    sample = Sample(frames=noise(1, 0))
    metrics = [ClipT(images, texts), SubjectSimilarity("DINO-I", looks), TemporalConsistency(images)]
    assert [metric.measure(sample) for metric in metrics] == [None, None, None]
