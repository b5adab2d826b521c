"""VideoCrafter2 from a checkpoint in its published layout, written here at a tiny size."""

import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor
from videocrafter_unet import Network

from dreamvideo import bases
from dreamvideo.bases.base import VideoBase
from dreamvideo.diffusion import generator
from dreamvideo.errors import BadFile, BadInput
from dreamvideo.official import read_tensors, write_unet
from dreamvideo.sample import Composition, SampleConfig, generate

ABAR = (1 - torch.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000, dtype=torch.float64) ** 2).cumprod(0)
SIGNAL = torch.tensor([1 - 0.3 * t / 399 if t < 400 else 0.7 for t in range(1000)], dtype=torch.float64)
WIDTH = 32


def autoencoder_names(name: str) -> str:
    """diffusers' name of a layer of the autoencoder -> the official one; the decoder's levels are counted backwards."""
    for pattern, replacement in (
        (r"mid_block\.resnets\.0", "mid.block_1"),
        (r"mid_block\.resnets\.1", "mid.block_2"),
        (r"mid_block\.attentions\.0", "mid.attn_1"),
        (r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2"),
        (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
        (r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{2 - int(m[1])}.block.{m[2]}"),
        (r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{2 - int(m[1])}.upsample"),
        ("conv_norm_out", "norm_out"),
        ("conv_shortcut", "nin_shortcut"),
        ("group_norm", "norm"),
        (r"to_([qkv])\.", r"\1."),
        (r"to_out\.0", "proj_out"),
    ):
        name = re.sub(pattern, replacement, name)
    return name


def text_tensors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' text tower -> OpenCLIP's, with one more block at the end, which is not to be used."""
    state = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    tensors = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
        "text_projection": torch.randn(32, 32),
        "logit_scale": torch.tensor(1.0),
    }
    layers = {"self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2"}
    layers |= {"mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    for block in (0, 1, 2):
        source = f"encoder.layers.{block % 2}"
        for kind in ("weight", "bias"):
            joint = [state[f"{source}.self_attn.{name}_proj.{kind}"] for name in "qkv"]
            tensors[f"transformer.resblocks.{block}.attn.in_proj_{kind}"] = torch.cat(joint) * (2 if block == 2 else 1)
            for ours, theirs in layers.items():
                tensors[f"transformer.resblocks.{block}.{theirs}.{kind}"] = state[f"{source}.{ours}.{kind}"]
    return tensors


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], Path]:
    """The tensors of a published checkpoint, and the folder of the base that gives the configurations."""
    folder = tmp_path_factory.mktemp("videocrafter")
    torch.manual_seed(0)
    base = bases.load("tiny-videocrafter")
    write_unet(folder / "unet.pth", base.parts.denoiser)
    tensors = {}
    for name, tensor in read_tensors(folder / "unet.pth")[0].items():
        # Only the first temporal transformer has convolutions for projections.
        linear = (
            tensor.ndim == 3 and re.search(r"proj_(in|out)\.weight", name) and not name.startswith("input_blocks.0.")
        )
        name = name.replace("input_blocks.0.1.", "init_attn.0.").replace(".op.", ".0.op.")
        tensors[f"model.diffusion_model.{name}"] = tensor.squeeze(-1) if linear else tensor
    for layer, fan_in in ((0, WIDTH), (2, 4 * WIDTH)):
        tensors[f"model.diffusion_model.fps_embedding.{layer}.weight"] = torch.randn(4 * WIDTH, fan_in) / fan_in**0.5
        tensors[f"model.diffusion_model.fps_embedding.{layer}.bias"] = torch.randn(4 * WIDTH)
    for name, tensor in base.parts.vae.state_dict().items():
        attends = "attentions" in name and name.endswith("weight") and tensor.ndim == 2
        official = autoencoder_names(name)
        tensors[f"first_stage_model.{official}"] = tensor[..., None, None] if attends else tensor
    text = text_tensors(base.parts.text_encoder.state_dict())
    tensors |= {f"cond_stage_model.model.{name}": tensor for name, tensor in text.items()}
    tensors["scale_arr"] = torch.cat([SIGNAL[:400], torch.full((1000,), 0.7)]).float()
    tensors["betas"] = torch.zeros(1000)
    bases.load("tiny").save(folder / "model")  # other weights, which must not be used
    return {name: tensor.clone() for name, tensor in tensors.items()}, folder / "model"


def written(published: tuple[dict[str, Tensor], Path], folder: Path, **changes: Tensor | None) -> str:
    """A reference to a checkpoint with some tensors replaced or, where None, left out."""
    tensors, model = published
    kept = {name: tensor for name, tensor in {**tensors, **changes}.items() if tensor is not None}
    folder.mkdir(exist_ok=True)
    torch.save({"state_dict": kept}, folder / "model.ckpt")
    return f"{model}+{folder}"


def network(tensors: dict[str, Tensor]) -> Network:
    prefix = "model.diffusion_model."
    return Network({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}, head=8)


def inputs(base: VideoBase) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(2, 4, 3, 4, 4, generator=generator("x"))
    return x, torch.tensor([40, 800]), base.encode_text(["a dog", "a cat"])


def test_a_published_checkpoint_is_held_exactly(published, tmp_path: Path):
    tensors, _ = published
    base = bases.load(written(published, tmp_path / "vc2"))
    assert (base.family, base.name) == ("videocrafter", "model+vc2")
    theirs, (x, t, text) = network(tensors), inputs(base)
    scale = (ABAR * SIGNAL**2 + 1 - ABAR).sqrt()[t].float().view(-1, 1, 1, 1, 1)
    with torch.no_grad():
        said = base.predict(x / scale, t, text)
    assert torch.allclose(said, theirs(x, t, text, fps=28), atol=1e-5)
    assert not torch.allclose(said, theirs(x, t, text, fps=8), atol=1e-3)
    source = bases.load("tiny-videocrafter")  # what the checkpoint was written from
    # The text encoder, without its last block, and the autoencoder.
    assert torch.allclose(base.encode_text(["a dog"]), source.encode_text(["a dog"]), atol=1e-6)
    assert torch.allclose(base.decode(x), source.decode(x), atol=1e-5)
    pixels = torch.rand(1, 3, 2, 16, 16, generator=generator("pixels"))
    assert torch.allclose(base.encode_video(pixels)[0], source.encode_video(pixels)[0], atol=1e-5)
    assert base.parts.vae.config.scaling_factor == 0.18215
    assert base.image_width == 24  # the image encoder of the folder that gives the configurations


def test_a_checkpoint_of_deepspeed_is_unwrapped(published, tmp_path: Path):
    plain = bases.load(written(published, tmp_path / "plain"))
    tensors, model = published
    (tmp_path / "wrapped").mkdir()
    wrapped = {f"_forward_module.{name}": tensor for name, tensor in tensors.items()}
    torch.save({"module": wrapped, "ds_version": "0.8"}, tmp_path / "wrapped" / "model.ckpt")
    base = bases.load(f"{model}+{tmp_path / 'wrapped'}")
    with torch.no_grad():
        assert torch.equal(base.predict(*inputs(base)), plain.predict(*inputs(plain)))


def test_half_precision_is_read(published, tmp_path: Path):
    reference = written(published, tmp_path / "vc2")
    half, full = bases.load(reference, dtype="bf16"), bases.load(reference)
    assert {p.dtype for part in (half.parts.denoiser, half.parts.vae) for p in part.parameters()} == {torch.bfloat16}
    with torch.no_grad(), half.autocast():
        coarse = half.predict(*inputs(half)).float()
    with torch.no_grad():
        assert torch.allclose(coarse, full.predict(*inputs(full)), atol=0.1)


def test_it_is_saved_and_read_as_itself(published, tmp_path: Path):
    base = bases.load(written(published, tmp_path / "vc2"))
    base.save(tmp_path / "saved")
    again = bases.load(str(tmp_path / "saved"))
    assert again.family == "videocrafter"
    with torch.no_grad():
        assert torch.allclose(again.predict(*inputs(again)), base.predict(*inputs(base)), atol=1e-6)
    assert torch.equal(again.process.abar, base.process.abar)


def test_the_process_is_the_official_one_at_another_scale():
    """x_t = sqrt(abar) s x_0 + sqrt(1 - abar) eps, divided by r: the same mixture, of variance 1."""
    base = bases.load("tiny-videocrafter")
    t = torch.tensor([0, 200, 399, 400, 999])
    x0, eps = torch.randn(2, 5, 4, 1, 2, 2, generator=generator("noise")).unbind()
    official = ABAR[t].sqrt().view(-1, 1, 1, 1, 1) * SIGNAL[t].view(-1, 1, 1, 1, 1) * x0
    official = official + (1 - ABAR[t]).sqrt().view(-1, 1, 1, 1, 1) * eps
    ours = base.parts.scheduler.scale_model_input(base.process.noisy(x0, eps, t), t)
    assert torch.allclose(ours, official.float(), atol=1e-5)
    assert (base.process.abar.diff() < 0).all()


def test_sampling_is_the_official_ddim(published, tmp_path: Path):
    """Step by step as the official sampler without fresh noise: predict, take out s_t, put in s of the next time."""
    base, theirs = bases.load(written(published, tmp_path / "vc2")), network(published[0])
    text = base.encode_text(["", "a dog"]).detach()
    start = torch.randn(1, 4, 3, 4, 4, generator=generator("start"))
    x, times = start, list(range(751, 0, -250))
    for t, before in zip(times, [*times[1:], 0], strict=True):
        unconditional, conditional = theirs(x.expand(2, -1, -1, -1, -1), torch.tensor([t, t]), text, fps=28).chunk(2)
        eps = unconditional + 5 * (conditional - unconditional)
        x0 = (x - (1 - ABAR[t]).sqrt() * eps) / ABAR[t].sqrt() / SIGNAL[t]
        x = (ABAR[before].sqrt() * SIGNAL[before] * x0 + (1 - ABAR[before]).sqrt() * eps).float()
    # Ours begins where noise of variance 1 is the official noise, brought to the scale of x_t.
    scale = (ABAR * SIGNAL**2 + 1 - ABAR).sqrt()
    config = SampleConfig(steps=4, guidance=5.0, frames=3, height=16, width=16)
    ours = generate(base, "a dog", Composition(), config, seed=0, noise=start / scale[751].float())
    assert torch.allclose(ours * scale[0].float(), x, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.diffusion_model.fps_embedding.2.bias": None}, r"no tensor fps_embedding\.2\.bias"),
        ({"model.diffusion_model.out.2.bias": None}, r"missing, the first out\.2\.bias"),
        ({"model.diffusion_model.more.weight": torch.zeros(1)}, r"more\.weight is foreign"),
        (
            {"model.diffusion_model.init_attn.0.transformer_blocks.0.attn1.relative_position_k.t": torch.zeros(1)},
            "VideoCrafter1",
        ),
        ({"scale_arr": torch.ones(1400)}, "scale_arr"),
        ({"cond_stage_model.model.ln_final.bias": None}, r"no final_layer_norm\.bias"),
        ({"cond_stage_model.model.positional_embedding": torch.zeros(9, 32)}, "position_embedding"),
        ({"cond_stage_model.model.transformer.resblocks.3.ln_1.bias": torch.zeros(32)}, "4 blocks"),
        (
            {"cond_stage_model.model.transformer.resblocks.0.attn.in_proj_bias": None},
            r"no .*_proj\.bias of shape \[32\]",
        ),
        ({"first_stage_model.encoder.conv_in.weight": None}, r"autoencoder has \d+ tensors"),
        ({"first_stage_model.decoder.mid.attn_1.q.weight": torch.zeros(3, 3, 1, 1)}, "autoencoder is not"),
    ],
)
def test_other_checkpoints_are_refused(published, changes, message: str, tmp_path: Path):
    with pytest.raises(BadFile, match=message) as caught:
        bases.load(written(published, tmp_path / "vc2", **changes))
    assert "\n" not in str(caught.value)
    assert "model.ckpt" in str(caught.value)


def test_the_checkpoint_alone_is_half_a_base(published, tmp_path: Path):
    written(published, tmp_path / "vc2")
    with pytest.raises(BadInput, match=r"half of a base; write MODEL\+"):
        bases.load(str(tmp_path / "vc2"))


def test_a_checkpoint_of_something_else_is_refused(published, tmp_path: Path):
    (tmp_path / "other").mkdir()
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other" / "model.ckpt")
    with pytest.raises(BadFile, match=r"no tensor model\.diffusion_model\."):
        bases.load(f"{published[1]}+{tmp_path / 'other'}")
    (tmp_path / "other" / "model.ckpt").write_bytes(b"nothing")
    with pytest.raises(BadFile, match=r"model\.ckpt"):
        bases.load(f"{published[1]}+{tmp_path / 'other'}")
