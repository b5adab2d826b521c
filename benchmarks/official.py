"""The plain side of the benchmarks of learning: a straightforward loop that does in every step what the official code
does.

The batch passes the autoencoder in every step, its prompts the text encoder, and for motions one of its frames the
image encoder. Blocks keep no activations and run again in the backward pass; beside a base in half precision, forward
passes are under autocast, to fp16 on a GPU, over float32 weights; the condition layer sees every token. The denoiser is
the stock class of diffusers, which repeats the text for every frame. Two things are kinder than the official code:
pictures stay in memory, decoded and resized, and dropout is off, so that both sides learn the same.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from common import stock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dreamvideo.adapters.graft import AdapterSet
from dreamvideo.bases.base import Parts, VideoBase
from dreamvideo.bases.images import embed_images
from dreamvideo.diffusion import Draw, generator

WORD = "*"
"""The placeholder whose token vector is learned."""


class Adapter(nn.Module):
    """x + up(gelu(down(x + condition(e)))), starting from the values of one of ours."""

    def __init__(self, ours: nn.Module) -> None:
        super().__init__()
        made = {name: nn.Parameter(value.detach().clone()) for name, value in ours.named_parameters()}
        self.values = nn.ParameterDict({name.replace(".", "/"): value for name, value in made.items()})

    def layer(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.values[f"{name}/weight"], self.values[f"{name}/bias"])

    def forward(self, x: Tensor, e: Tensor | None) -> Tensor:
        seen = x
        if e is not None and "condition/weight" in self.values:
            # A vector for every token, (B h w, F, D), as the official code lays it out.
            every = e.repeat_interleave(x.shape[0] // e.shape[0], dim=0).repeat(1, x.shape[1], 1)
            seen = x + self.layer("condition", every)
        return x + self.layer("up", F.gelu(self.layer("down", seen)))


class Block(nn.Module):
    """A stock transformer block with adapters beside its branches."""

    def __init__(self, block: nn.Module, adapters: Mapping[str, Adapter], given: dict[str, Tensor | None]) -> None:
        super().__init__()
        self.block, self.adapters, self.given = block, nn.ModuleDict(adapters), given

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **rest: None) -> Tensor:
        return checkpoint(self.run, hidden_states, encoder_hidden_states, self.given["e"], use_reentrant=False)

    def run(self, x: Tensor, text: Tensor | None, e: Tensor | None) -> Tensor:
        block = self.block
        x = block.attn1(block.norm1(x)) + self.beside("attn1", x, e)
        x = block.attn2(block.norm2(x), text) + self.beside("attn2", x, e)
        return block.ff(block.norm3(x)) + self.beside("ff", x, e)

    def beside(self, port: str, x: Tensor, e: Tensor | None) -> Tensor:
        return self.adapters[port](x, e) if port in self.adapters else x


class Again(nn.Module):
    """A module that keeps no activations."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: object, **named: object) -> Tensor:
        return checkpoint(self.module, *inputs, use_reentrant=False, **named)


class Official:
    """One stage of the official procedure: the word, the identity adapter or the motion adapter."""

    def __init__(
        self,
        base: VideoBase,
        name: str,
        pixels: Sequence[Tensor],
        prompt: str,
        *,
        weights: Mapping[int, nn.Parameter],
        adapters: AdapterSet | None = None,
        word: Tensor | None = None,
        lr: float,
        warmup: int,
        seed: int,
    ) -> None:
        """`pixels` are the examples, each (3, F, H, W) in [-1, 1]; `weights` as `common.weights` gives them; `adapters`
        start the plain ones; `word` (1, D) is the vector that stands for `WORD`, and what is learned where there are no
        adapters."""
        self.base, self.name, self.pixels, self.prompt = base, name, pixels, prompt
        self.parts = stock(base, weights)
        self.half = base.dtype != torch.float32
        self.precision = torch.float16 if base.device.type == "cuda" else torch.bfloat16
        self.lr, self.warmup, self.seed = lr, warmup, seed
        self.given: dict[str, Tensor | None] = {"e": None}
        self.word = None if word is None else word.detach().clone()
        self.adapters = _put(self.parts, adapters, self.given)
        if self.word is not None:
            self._splice(self.word.requires_grad_(adapters is None))
        learned = [p for a in self.adapters.values() for p in a.parameters()] or [self.word]
        self.optimizer = torch.optim.AdamW(learned, lr=lr, weight_decay=0.0)
        scaled = self.half and self.precision == torch.float16
        self.scaler = torch.amp.GradScaler(base.device.type, enabled=scaled)
        self.empty = self._encoded([""]).detach()

    def learned(self) -> Tensor:
        """Everything, as one vector."""
        values = {
            f"{place}.{name.partition('.')[2].replace('/', '.')}": p.detach()
            for place, adapter in self.adapters.items()
            for name, p in adapter.named_parameters()
        }
        return torch.cat([values[name].flatten() for name in sorted(values)] or [self.word.detach().flatten()])

    def update(self, step: int, numbers: Sequence[int]) -> None:
        """One step on the examples of these numbers, with the draws that our loop has for it."""
        draw = Draw(self.base.process, generator(self.seed, self.name, step, 0, 0))
        pixels = torch.stack([self.pixels[number] for number in numbers]).to(self.base.device)
        for _ in numbers:
            draw.index(1)  # our loop draws a window; here there is but one
        latents = self._latents(pixels, draw)
        text = self._encoded([self.prompt] * len(numbers))
        if self.name == "motion":
            text = draw.swap(text, self.empty, 0.5)
            # One random frame of every clip.
            frame = draw.pick(pixels.permute(0, 2, 1, 3, 4).flatten(2)).view(len(pixels), 3, 1, *pixels.shape[-2:])
            self.given["e"] = draw.drop(embed_images(self.parts.image_encoder, frame), 0.5)
        if self.name == "word":
            # So do the official code's checkpoints let gradients through: all of the denoiser is differentiated.
            latents.requires_grad_()
        x_t, t, target = draw.noised(latents, offset=0.1)
        with torch.autocast(self.base.device.type, dtype=self.precision, enabled=self.half):
            prediction = self.parts.denoiser(x_t, t, text).sample
        self.scaler.scale((prediction.float() - target.detach()).square().mean()).backward()
        self.optimizer.param_groups[0]["lr"] = self.lr * min(1.0, step / max(1, self.warmup))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def _latents(self, pixels: Tensor, draw: Draw) -> Tensor:
        vae = self.parts.vae
        frames = pixels.transpose(1, 2).flatten(0, 1)
        posterior = vae.encode(frames.to(vae.dtype)).latent_dist
        mean, std = (
            (value.float() * vae.config.scaling_factor).unflatten(0, (len(pixels), -1)).transpose(1, 2)
            for value in (posterior.mean, posterior.std)
        )
        return draw.posterior(mean, std)

    def _encoded(self, prompts: Sequence[str]) -> Tensor:
        ids = self.parts.tokenizer(
            list(prompts), padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids.to(self.base.device)
        return self.parts.text_encoder(ids).last_hidden_state

    def _splice(self, word: Tensor) -> None:
        (place,) = self.parts.tokenizer(WORD, add_special_tokens=False).input_ids
        embedding = self.parts.text_encoder.get_input_embeddings()
        embedding.register_forward_hook(
            lambda _, given, out: torch.where((given[0] == place)[..., None], word.to(out.dtype), out)
        )


def _put(parts: Parts, adapters: AdapterSet | None, given: dict[str, Tensor | None]) -> dict[str, Adapter]:
    """Wrap every block of the denoiser, with plain adapters where ours stand -> them by place."""
    made = {} if adapters is None else {site.key: Adapter(g.adapter) for site, g in adapters.grafts.items()}
    denoiser = parts.denoiser
    for path, module in list(denoiser.named_modules()):
        if path.endswith((".transformer_blocks", ".resnets", ".temp_convs")):
            for number, inner in enumerate(module):
                start = f"{path}.{number}."
                here = {key.removeprefix(start): a for key, a in made.items() if key.startswith(start)}
                blocks = path.endswith(".transformer_blocks")
                module[number] = Block(inner, here, given) if blocks else Again(inner)
    return made


@torch.no_grad()
def sample(parts: Parts, noise: Tensor, prompt: str, *, steps: int, guidance: float) -> Tensor:
    """The official sampler: DDIM, a pass for each branch of the guidance -> pixels (1, 3, F, H, W)."""

    def encoded(words: str) -> Tensor:
        ids = parts.tokenizer(words, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return parts.text_encoder(ids.to(noise.device)).last_hidden_state

    scheduler, x = parts.scheduler, noise
    scheduler.set_timesteps(steps, device=noise.device)
    texts = [encoded(prompt), encoded("")]
    for t in scheduler.timesteps:
        conditional, unconditional = (parts.denoiser(x.to(text.dtype), t, text).sample.float() for text in texts)
        x = scheduler.step(unconditional + guidance * (conditional - unconditional), t, x).prev_sample
    frames = x[0].transpose(0, 1).to(parts.vae.dtype) / parts.vae.config.scaling_factor
    # Two frames at a time, as there.
    pixels = torch.cat([parts.vae.decode(pair).sample for pair in frames.split(2)])
    return pixels.float().clamp(-1, 1).transpose(0, 1)[None]
