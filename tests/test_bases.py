"""Bases from disk, by name and by hub id; ports that refuse what they would change."""

import pytest
import torch
from diffusers import DiffusionPipeline

from dreamvideo import bases
from dreamvideo.adapters.bottleneck import Bottleneck
from dreamvideo.adapters.graft import AdapterSet, Site
from dreamvideo.bases.base import VideoBase
from dreamvideo.errors import BadFile, BadInput, MissingWeights, Unsupported


def answer(base: VideoBase) -> torch.Tensor:
    x = torch.linspace(-1, 1, 4 * 2 * 4 * 4).view(1, 4, 2, 4, 4)
    with torch.no_grad():
        return base.predict(x, torch.tensor([500]), base.encode_text(["a dog, é"]))


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:FutureWarning")
def test_a_folder_in_diffusers_layout_loads_and_says_the_same(base: VideoBase, tmp_path):
    base.save(tmp_path / "saved")
    loaded = bases.load(str(tmp_path / "saved"))
    assert type(loaded) is type(base)
    assert loaded.name == "saved"
    assert loaded.image_width == base.image_width
    assert (loaded.defaults.height, loaded.defaults.width) == (16, 16)
    assert torch.allclose(answer(loaded), answer(base), atol=1e-5)
    assert loaded.fingerprint == base.fingerprint


def test_stock_diffusers_reads_what_we_save(unet3d: VideoBase, tmp_path):
    unet3d.save(tmp_path)
    pipe = DiffusionPipeline.from_pretrained(tmp_path)
    theirs = pipe.unet(torch.ones(1, 4, 2, 4, 4), 500, unet3d.encode_text(["a dog"])).sample
    ours = unet3d.predict(torch.ones(1, 4, 2, 4, 4), torch.tensor([500]), unet3d.encode_text(["a dog"]))
    assert torch.allclose(theirs, ours, atol=1e-5)


def test_half_precision_weights_are_read_and_run(unet3d: VideoBase, tmp_path):
    unet3d.save(tmp_path)
    half = bases.load(str(tmp_path), dtype="bf16")
    assert half.precision == "bf16"
    with half.autocast():
        coarse = answer(half)
    assert coarse.dtype == torch.bfloat16
    assert torch.allclose(coarse.float(), answer(unet3d), atol=0.1)


@pytest.mark.parametrize(
    ("reference", "error", "message"),
    [
        ("no-such-base", BadInput, "dreamvideo bases"),
        ("./no/such", BadInput, "dreamvideo bases"),
        ("nobody/no-such-model", MissingWeights, "copy its folder"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(
    reference: str, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(error, match=message) as caught:
        bases.load(reference)
    assert "\n" not in str(caught.value)


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"no unet/config\.json"):
        bases.load(str(tmp_path))
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text('{"_class_name": "UNet1DModel"}')
    with pytest.raises(Unsupported, match="UNet1DModel"):
        bases.load(str(tmp_path))


def test_ports_refuse_a_block_they_do_not_understand():
    family = bases.available()["unet3d"]
    parts = family.tiny(0).parts
    block = family.tiny(0)._places.blocks["transformer_in.transformer_blocks.0"]
    assert block.norm_type == "layer_norm"
    fresh = family.tiny(0)
    with pytest.raises(Unsupported, match="hook"):
        from dreamvideo.adapters.ports import BasicTransformerBlock, close_ports, open_ports

        close_ports(fresh.parts.denoiser, (BasicTransformerBlock,))
        stock = fresh.parts.denoiser.transformer_in.transformer_blocks[0]
        stock.forward = stock.forward
        open_ports(fresh.parts.denoiser, fresh.givens, (BasicTransformerBlock,))
    del stock.forward
    for name, value, message in (("norm_type", "ada_norm", "ada_norm"), ("_chunk_size", 2, "chunking")):
        before = getattr(stock, name)
        setattr(stock, name, value)
        with pytest.raises(Unsupported, match=message):
            open_ports(fresh.parts.denoiser, fresh.givens, (BasicTransformerBlock,))
        setattr(stock, name, before)
    assert parts is not fresh.parts


def test_sites_are_where_the_paper_puts_adapters(unet3d: VideoBase):
    """Identity: spatial cross-attention. Motion: all branches of all temporal transformers, the first one too."""
    space, time = unet3d.sites("space", ("attn2",)), unet3d.sites("time", ("attn1", "attn2", "ff"))
    assert all(".attentions." in site.path and site.port == "attn2" for site in space)
    assert {site.path for site in time} >= {"transformer_in.transformer_blocks.0"}
    assert all(".temp_attentions." in site.path or site.path.startswith("transformer_in") for site in time)
    assert len(time) == 3 * (len(space) + 1)
    assert next(site.width for site in time if site.path.startswith("transformer_in")) == 64


def test_a_site_of_another_base_is_refused(unet3d: VideoBase):
    for site in (
        Site("nowhere", "attn2", "space", 32),
        Site(unet3d.sites("space", ("attn2",))[0].path, "attn2", "space", 48),
    ):
        with pytest.raises(BadFile, match=f"width {site.width}"):
            unet3d.attach(AdapterSet(Bottleneck(), [site]))


def test_sets_are_attached_and_detached_once(unet3d: VideoBase):
    adapters = AdapterSet(Bottleneck(), unet3d.sites("space", ("attn2",)))
    unet3d.attach(adapters)
    with pytest.raises(Unsupported, match="attached already"):
        unet3d.attach(adapters)
    unet3d.detach(adapters)
    with pytest.raises(Unsupported, match="not attached"):
        unet3d.detach(adapters)


def test_moving_the_model_moves_what_is_attached(unet3d: VideoBase):
    """Ports hold the modules as children, so the model's own `to` reaches them; their scale stays settable."""
    adapters = AdapterSet(Bottleneck(), unet3d.sites("space", ("attn2",)))
    with unet3d.attached(adapters):
        unet3d.parts.denoiser.to(torch.float64)
        assert {p.dtype for p in adapters.parameters()} == {torch.float64}
        adapters.scale(0.25)
        assert all(graft.scale.item() == 0.25 for graft in adapters.grafts.values())
