"""Metrics against a computation of their own, on encoders and weights made here."""

import json
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from alexnet import alexnet
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from dreamvideo import bases, features, media, metrics, scoring
from dreamvideo.bundled import EXAMPLES
from dreamvideo.errors import BadFile, BadInput, MissingWeights
from dreamvideo.features import Images, Preprocessing
from dreamvideo.metrics import dynamic
from dreamvideo.metrics.clip import ClipI, ClipT, TemporalConsistency
from dreamvideo.metrics.dino import DinoI, Leak
from dreamvideo.metrics.dynamic import DynamicDegree, MotionDegree
from dreamvideo.metrics.lpips import Lpips, LpipsConsistency, LpipsDiversity
from dreamvideo.metrics.metric import Metric, Motion, Sample, measured
from dreamvideo.metrics.motion import MotionFidelity

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
    named = {"size": {"shortest_edge": 20}, "crop_size": {"height": SIDE, "width": SIDE}}
    for name, says in (("clip", {"size": 20, "crop_size": SIDE}), ("dino", named)):  # as OpenAI writes it, and as newer
        about = {**says, "image_mean": MEAN, "image_std": STD}
        (folder / name / "preprocessor_config.json").write_text(json.dumps(about))
    return *features.clip(folder / "clip"), features.dino(folder / "dino"), folder


def noise(count: int, seed: int, *, height: int = 24, width: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def texture(side: int, seed: int = 0) -> np.ndarray:
    """(side, side, 3), smooth enough to follow."""
    rough = torch.rand(1, 3, side // 6, side // 6, generator=torch.Generator().manual_seed(seed))
    return (F.interpolate(rough, (side, side), mode="bicubic").clamp(0, 1) * 255)[0].permute(1, 2, 0).byte().numpy()


def sliding(x: int, y: int, *, count: int = 4, side: int = 40) -> np.ndarray:
    """A texture that goes x pixels to the right and y pixels down from frame to frame."""
    whole, margin = texture(side + 2 * 36), 36
    starts = [(margin - y * number, margin - x * number) for number in range(count)]
    return np.stack([whole[top : top + side, left : left + side] for top, left in starts])


def by_hand(pictures: np.ndarray) -> Tensor:
    """24 x 40, prepared without the code under test: the shorter side to 20, the middle 16 x 16, normalised."""
    prepared = []
    for picture in pictures:
        small = np.asarray(Image.fromarray(picture).resize((33, 20), Image.Resampling.BICUBIC))[2:18, 8:24] / 255
        prepared.append(((small - np.array(MEAN)) / np.array(STD)).transpose(2, 0, 1))
    return torch.tensor(np.stack(prepared), dtype=torch.float32)


def cosine(one: Tensor, other: Tensor) -> float:
    return float(one @ other / (one.norm() * other.norm()))


def value(metric: Metric, sample: Sample) -> float:
    found = metric.measure(sample)
    assert found is not None
    return found


# -- by CLIP and DINO -------------------------------------------------------------------------------------------------


def test_against_a_computation_of_its_own(encoders) -> None:
    images, texts, looks, folder = encoders
    frames, references, prompt = noise(3, 0), noise(2, 1), "a robot in the snow"
    clip = CLIPModel.from_pretrained(folder / "clip").eval()
    dino = Dinov2Model.from_pretrained(folder / "dino").eval()
    with torch.no_grad():
        seen, shown = (
            clip.visual_projection(clip.vision_model(by_hand(pictures)).pooler_output)
            for pictures in (frames, references)
        )
        ids = bases.load("tiny").parts.tokenizer([prompt], padding="max_length", return_tensors="pt").input_ids
        told = clip.text_projection(clip.text_model(ids).pooler_output)[0]
        ours, theirs = (dino(by_hand(pictures)).last_hidden_state[:, 0] for pictures in (frames, references))
    sample = Sample(frames=frames, prompt=prompt, references=list(references), motions=[Motion(frames=references)])
    like = [cosine(one, other) for one in ours for other in theirs]
    expected = {
        ClipT(images, texts): np.mean([cosine(vector, told) for vector in seen]),
        ClipI(images): np.mean([cosine(one, other) for one in seen for other in shown]),
        TemporalConsistency(images): np.mean([cosine(seen[0], seen[1]), cosine(seen[1], seen[2])]),
        DinoI(looks): np.mean(like),
        Leak(looks): max(like),
    }
    for metric, number in expected.items():
        assert value(metric, sample) == pytest.approx(number, abs=1e-6), metric.name


def test_on_random_features() -> None:
    """The same sums over vectors that are drawn: grey i is shown as vector i."""
    vectors = torch.randn(40, 7, generator=torch.Generator().manual_seed(0))
    unit = vectors.double() / vectors.double().norm(dim=1, keepdim=True)
    plain = Preprocessing(8, 8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    images = Images("drawn", plain, lambda pixels: vectors[(pixels[:, 0, 0, 0] * 255).round().long()])
    greys = np.broadcast_to(np.arange(40, dtype=np.uint8)[:, None, None, None], (40, 8, 8, 3))
    sample = Sample(frames=greys[:35].copy(), references=list(greys[35:]), motions=[Motion(frames=greys[36:])])
    assert value(ClipI(images), sample) == pytest.approx(float((unit[:35] @ unit[35:].T).mean()), abs=1e-6)
    assert value(DinoI(images), sample) == value(ClipI(images), sample)
    assert value(Leak(images), sample) == pytest.approx(float((unit[:35] @ unit[36:].T).max()), abs=1e-6)
    steps = [float(unit[number] @ unit[number + 1]) for number in range(34)]
    assert value(TemporalConsistency(images), sample) == pytest.approx(np.mean(steps), abs=1e-6)


def test_the_same_picture_scores_one(encoders) -> None:
    images, _, looks, _ = encoders
    picture = noise(1, 0)
    clips = [Motion(frames=noise(2, 1)), Motion(frames=picture)]
    sample = Sample(frames=picture.repeat(4, axis=0), references=list(picture), motions=clips)
    for metric in (TemporalConsistency(images), ClipI(images), DinoI(looks), Leak(looks)):
        assert value(metric, sample) == pytest.approx(1, abs=1e-6), metric.name


def test_pictures_of_any_sizes_are_references(encoders) -> None:
    images = encoders[0]
    pictures = [noise(1, 0)[0], noise(1, 1, height=50, width=30)[0]]
    alone = [value(ClipI(images), Sample(frames=noise(2, 2), references=[picture])) for picture in pictures]
    both = value(ClipI(images), Sample(frames=noise(2, 2), references=pictures))
    assert both == pytest.approx(np.mean(alone), abs=1e-6)


@pytest.mark.parametrize("height, width, resized, left, top", [(30, 53, (35, 20), 10, 2), (50, 31, (20, 32), 2, 8)])
def test_pictures_are_cut_as_torchvision_cuts_them(
    height: int, width: int, resized: tuple[int, int], left: int, top: int
) -> None:
    """The longer side rounded down (35.3, 32.3), the middle to the nearest even pixel (9.5 is 10)."""
    picture = noise(1, 0, height=height, width=width)
    small = np.asarray(Image.fromarray(picture[0]).resize(resized, Image.Resampling.BICUBIC))
    expected = small[top : top + SIDE, left : left + SIDE].transpose(2, 0, 1) / 255
    found = Preprocessing(20, SIDE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))(picture)[0]
    assert np.allclose(found, expected, atol=1e-6)


def test_dino_sees_what_its_makers_cut(tmp_path: Path) -> None:
    """The hub's file for DINO names one size and no crop; the original resizes to 256 and cuts out 224."""
    torch.manual_seed(0)
    config = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = ViTModel(ViTConfig(**config, patch_size=56), add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path)
    says = {"size": 224, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(says))
    picture = noise(1, 0, height=256, width=300)
    middle = torch.from_numpy(picture[:, 16:240, 38:262]).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = model((middle - mean) / std).last_hidden_state[:, 0]
    encoder = features.dino(tmp_path)
    assert torch.allclose(encoder(picture), F.normalize(expected, dim=-1), atol=1e-6)
    assert encoder.protocol["preprocessing"]["resize"] == 256


def test_an_encoder_of_another_kind_is_refused(encoders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = encoders[3]
    for load, wrong, kind in ((features.clip, "dino", BadInput), (features.dino, "clip", BadInput)):
        with pytest.raises(kind, match=wrong):
            load(folder / wrong)
    with pytest.raises(MissingWeights, match="nowhere at all"):
        features.clip("nowhere at all")


# -- LPIPS ------------------------------------------------------------------------------------------------------------


def distance(folder: Path, one: np.ndarray, other: np.ndarray) -> float:
    """LPIPS of two pictures, without the code under test, in double precision."""
    trunk = alexnet()
    weights = torch.load(folder / "alexnet-owt-7be5be79.pth", weights_only=True)
    trunk.load_state_dict({name.removeprefix("features."): tensor for name, tensor in weights.items()})
    mix, trunk = torch.load(folder / "alex.pth", weights_only=True), trunk.double()
    x = torch.tensor(np.stack([one, other])).permute(0, 3, 1, 2).double() / 127.5 - 1
    mean, std = (torch.tensor(v).view(1, 3, 1, 1).double() for v in ((-0.03, -0.088, -0.188), (0.458, 0.448, 0.45)))
    x, total, number = (x - mean) / std, 0.0, 0
    for layer in trunk:
        x = layer(x)
        if isinstance(layer, nn.ReLU):
            unit = x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)
            weighted = (unit[0] - unit[1]).square() * mix[f"lin{number}.model.1.weight"][0]
            total, number = total + float(weighted.sum(dim=0).mean()), number + 1
    return total


@torch.no_grad()
def test_lpips_against_a_computation_of_its_own(lpips: Path) -> None:
    video, sibling = noise(3, 0, height=40, width=48), noise(3, 1, height=40, width=48)
    sample = Sample(frames=video, siblings=[sibling, video])
    loaded = Lpips.load(lpips)
    steps = [distance(lpips, *video[:2]), distance(lpips, *video[1:])]
    assert value(LpipsConsistency(loaded), sample) == pytest.approx(np.mean(steps), abs=1e-6)
    apart = np.mean([distance(lpips, one, other) for one, other in zip(video, sibling, strict=True)])
    assert value(LpipsDiversity(loaded), sample) == pytest.approx(apart / 2, abs=1e-6)  # the other is the same video
    assert value(LpipsConsistency(loaded), Sample(frames=video[:1].repeat(3, axis=0))) == 0


def test_lpips_needs_both_files_whole(lpips: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingWeights, match=r"alexnet-owt.*download\.pytorch\.org"):
        Lpips.load(tmp_path)
    (tmp_path / "alexnet-owt-7be5be79.pth").write_bytes((lpips / "alexnet-owt-7be5be79.pth").read_bytes())
    (tmp_path / "alex.pth").write_bytes(b"no weights")
    with pytest.raises(BadFile, match=r"alex\.pth"):
        Lpips.load(tmp_path)
    torch.save({"lin0.model.1.weight": torch.ones(1, 64, 1, 1)}, tmp_path / "alex.pth")
    with pytest.raises(BadFile, match=r"lin1\.model"):
        Lpips.load(tmp_path)


# -- movement ---------------------------------------------------------------------------------------------------------


def told(lengths: list[float], *, share: float = 0.05):
    """A flow that is as long as told, pair by pair, on a share of the pixels, and nothing elsewhere."""
    left = iter(lengths)

    def flow(first: Tensor, second: Tensor) -> Tensor:
        found = torch.zeros(1, 2, *first.shape[-2:])
        rows = round(share * first.shape[-2])
        found[:, 0, :rows], found[:, 1, :rows] = 0.6 * (length := next(left)), 0.8 * length
        return found

    return flow


@pytest.mark.parametrize(
    "lengths, share, moves",
    [
        ([3.1] * 4 + [0.0] * 11, 0.05, 1.0),  # four pairs in 16 frames are enough
        ([3.1] * 3 + [2.9] * 12, 0.05, 0.0),
        ([2.9] * 15, 1.0, 0.0),  # 6 pixels at 256 are 3 at 128
        ([4.0] * 15, 0.025, 0.0),  # half of the largest twentieth stands still
        ([7.0] * 15, 0.025, 1.0),
    ],
)
def test_dynamic_degree_is_vbenchs_rule(lengths: list[float], share: float, moves: float) -> None:
    sample = Sample(frames=np.zeros((16, 160, 128, 3), np.uint8), fps=8)
    assert DynamicDegree(told(lengths, share=share)).measure(sample) == moves


def test_dynamic_degree_looks_at_eight_frames_a_second() -> None:
    pairs = []
    metric = DynamicDegree(lambda first, second: pairs.append((first, second)) or torch.zeros_like(first[:, :2]))
    frames = np.arange(33, dtype=np.uint8)[:, None, None, None] * np.ones((33, 128, 128, 3), np.uint8)
    for fps, count in ((8, 32), (30, 8), (None, 32)):
        pairs.clear()
        metric.measure(Sample(frames=frames, fps=fps))
        assert len(pairs) == count
        assert float(pairs[-1][1].max()) == pytest.approx(32 / 255)


def test_without_raft_the_rule_is_the_same_under_another_name() -> None:
    moving, still = Sample(frames=sliding(4, 2)), Sample(frames=sliding(0, 0))
    assert (MotionDegree().measure(moving), MotionDegree().measure(still)) == (1.0, 0.0)
    assert MotionDegree.name != DynamicDegree.name


def test_raft_without_torchvision_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models.optical_flow", None)
    with pytest.raises(BadInput, match=r"pip install 'dreamvideo\[raft\]'"):
        dynamic.raft("raft.pth")


def test_raft_is_given_what_vbench_gives_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sides padded to a multiple of 8 by their edges, colours in [-1, 1], 20 iterations, the last flow."""

    class Raft(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(1))

        def forward(self, first: Tensor, second: Tensor, *, num_flow_updates: int) -> list[Tensor]:
            return [self.scale * number * (second - first)[:, :2] for number in range(1, num_flow_updates + 1)]

    module = types.ModuleType("torchvision.models.optical_flow")
    module.raft_large = Raft
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", types.ModuleType("torchvision.models"))
    monkeypatch.setitem(sys.modules, "torchvision.models.optical_flow", module)
    torch.save({"scale": torch.full((1,), 0.5)}, tmp_path / "raft.pth")
    first, second = torch.zeros(1, 3, 13, 18), torch.rand(1, 3, 13, 18, generator=torch.Generator().manual_seed(0))
    found = dynamic.raft(tmp_path / "raft.pth")(first, second)
    assert found.shape == (1, 2, 16, 24)
    assert torch.allclose(found[..., 1:14, 3:21], 0.5 * 20 * 2 * second[:, :2], atol=1e-5)
    assert torch.equal(found[..., 0, :], found[..., 1, :])
    torch.save({"other": torch.zeros(1)}, tmp_path / "raft.pth")
    with pytest.raises(BadFile, match="raft_large"):
        dynamic.raft(tmp_path / "raft.pth")


# -- motion -----------------------------------------------------------------------------------------------------------


def test_motion_fidelity_of_known_motions() -> None:
    right = Motion(frames=sliding(4, 0))
    scores = {
        (x, y): value(MotionFidelity(), Sample(frames=sliding(x, y), motions=[right]))
        for x, y in ((4, 0), (-4, 0), (3, 3), (0, 0))
    }
    assert scores[4, 0] == pytest.approx(1, abs=1e-5)
    assert scores[-4, 0] < -0.95
    assert scores[3, 3] == pytest.approx(0.5**0.5, abs=0.05)
    assert scores[0, 0] == 0
    several = [right, Motion(frames=sliding(-4, 0)), Motion(frames=sliding(0, 0))]
    mean = (scores[4, 0] + scores[-4, 0]) / 2  # of two: the clip in which nothing moves does not count
    assert value(MotionFidelity(), Sample(frames=sliding(4, 0), motions=several)) == pytest.approx(mean, abs=1e-4)


def test_motion_fidelity_compares_paths_as_shares_of_the_frame() -> None:
    """Half the size, half the way: the same motion, with more frames than the video has."""
    large = sliding(4, 2, count=5, side=80)
    small = np.stack([np.array(Image.fromarray(frame).resize((40, 40), Image.Resampling.BOX)) for frame in large])
    assert value(MotionFidelity(), Sample(frames=small[:4], motions=[Motion(frames=large)])) > 0.95


def test_an_example_is_tracked_as_it_truly_moves() -> None:
    clip = EXAMPLES / "motions" / "pacing" / "1.mp4"
    frames, fps = scoring.read_video(clip)
    (motion,) = scoring.read_motions(clip, fps=fps)
    assert motion.paths is not None
    assert motion.paths.shape[1:] == (len(frames), 2)
    (other,) = scoring.read_motions(EXAMPLES / "motions" / "diving" / "0.mp4", fps=fps)
    assert value(MotionFidelity(), Sample(frames=frames, motions=[motion])) > 0.8
    assert value(MotionFidelity(), Sample(frames=frames, motions=[other])) < 0.5


def test_true_paths_are_where_the_thing_is() -> None:
    """The middle of the points is the truth's centre, and pixels change there."""
    (motion,) = scoring.read_motions(EXAMPLES / "motions" / "rolling" / "0.mp4", fps=None)
    truth = json.loads((EXAMPLES / "truth.json").read_text(encoding="utf-8"))["motions/rolling/0.mp4"]
    assert np.allclose(motion.paths.mean(axis=0), truth["centre"], atol=1e-5)
    spread = np.linalg.norm(motion.paths - motion.paths.mean(axis=0), axis=-1).max(axis=0)
    assert np.allclose(spread, 0.35 * 2**0.5 * np.array(truth["scale"]), atol=1e-5)


def test_reference_clips_are_read_at_the_rate_of_the_video(tmp_path: Path) -> None:
    media.write_video(tmp_path / "fast.mp4", sliding(1, 0, count=9), fps=24)
    (motion,) = scoring.read_motions(tmp_path / "fast.mp4", fps=8)
    whole, fps = scoring.read_video(tmp_path / "fast.mp4")
    assert (fps, motion.paths) == (24, None)
    assert np.array_equal(motion.frames, whole[::3])


# -- all together -----------------------------------------------------------------------------------------------------


def everything(encoders, lpips: Path) -> list[Metric]:
    folder = encoders[3]
    chosen = metrics.for_base(None, clip=folder / "clip", dino=folder / "dino", lpips=lpips)
    return [*chosen, DynamicDegree(told([0.0] * 9))]


def test_what_does_not_apply_is_absent(encoders, lpips: Path) -> None:
    chosen = everything(encoders, lpips)
    assert len({metric.name for metric in chosen}) == 10
    one = Sample(frames=noise(1, 0))
    assert [metric.measure(one) for metric in chosen] == [None] * 10
    assert measured(chosen, one) == []
    small = Sample(frames=noise(2, 0), siblings=[noise(3, 1)])  # too small for AlexNet and RAFT
    assert {score.name for score in measured(chosen, small)} == {"Temporal consistency", "Motion degree"}
    still = Motion(frames=noise(1, 0).repeat(2, axis=0))
    assert MotionFidelity().measure(replace(small, motions=[still])) is None


def test_every_number_says_how_it_was_made(encoders, lpips: Path) -> None:
    frames = noise(3, 0, height=128, width=128)
    sample = Sample(
        frames=frames,
        prompt="a robot",
        references=list(frames),
        motions=[Motion(frames=sliding(3, 0))],
        siblings=[frames],
    )
    scores = measured(everything(encoders, lpips), sample)
    assert len(scores) == 10
    for score in scores:
        assert json.loads(json.dumps(score.protocol)), score.name
        assert "frames" in score.protocol
    by_name = {score.name: score for score in scores}
    assert by_name["CLIP-T"].protocol["encoder"] == "clip"
    assert by_name["DINO-I"].protocol["preprocessing"]["crop"] == SIDE
    assert {name for name, score in by_name.items() if not score.higher_is_better} == {"Leak", "LPIPS consistency"}


def test_a_bases_card_names_its_encoders() -> None:
    named = {metric.name for metric in metrics.for_base("emojiworld")}
    assert named == {
        "CLIP-T", "CLIP-I", "Temporal consistency", "DINO-I", "Leak", "Motion degree", "Motion fidelity"
    }  # fmt: skip
    assert {metric.name for metric in metrics.for_base(bases.load("tiny"))} == {"Motion degree", "Motion fidelity"}
    with pytest.raises(BadInput, match="no card"):
        metrics.for_base("tiny")
