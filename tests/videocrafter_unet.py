"""VideoCrafter2's denoiser, computed from its official tensors with nothing but functions: what ours is compared with.

Read off the official network (openaimodel3d.py, attention.py), for convolutions over frames, linear projections but in
`init_attn`, self-attention over frames without positions, and a frame rate that is added to the time embedding.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

HEADS_IN = 8


class Network:
    """`tensors` without the prefix `model.diffusion_model.`; `head` is the width of an attention head."""

    def __init__(self, tensors: Mapping[str, Tensor], *, head: int) -> None:
        self.tensors = tensors
        self.head = head

    @torch.no_grad()
    def __call__(self, x: Tensor, t: Tensor, text: Tensor, *, fps: int) -> Tensor:
        """x (B, C, F, h, w), t (B,), text (B, L, D) -> (B, C, F, h, w)."""
        batch, _, frames = x.shape[:3]
        emb = self.mlp(self.wave(t), "time_embed") + self.mlp(self.wave(torch.full_like(t, fps)), "fps_embedding")
        emb, text = emb.repeat_interleave(frames, dim=0), text.repeat_interleave(frames, dim=0)
        x = x.transpose(1, 2).flatten(0, 1)
        skips: list[Tensor] = []
        for number in range(self.count("input_blocks")):
            if number == 0:
                x = self.over_time(self.conv(x, "input_blocks.0.0", padding=1), "init_attn.0", batch, HEADS_IN)
            else:
                x = self.slots(x, f"input_blocks.{number}", emb, text, batch)
            skips.append(x)
        x = self.slots(x, "middle_block", emb, text, batch)
        for number in range(self.count("output_blocks")):
            x = self.slots(torch.cat([x, skips.pop()], dim=1), f"output_blocks.{number}", emb, text, batch)
        x = self.conv(F.silu(self.group_norm(x, "out.0", 1e-5)), "out.2", padding=1)
        return x.unflatten(0, (batch, frames)).transpose(1, 2)

    def count(self, blocks: str) -> int:
        return 1 + max(int(name.split(".")[1]) for name in self.tensors if name.startswith(f"{blocks}."))

    def has(self, name: str) -> bool:
        return f"{name}.weight" in self.tensors

    def slots(self, x: Tensor, block: str, emb: Tensor, text: Tensor, batch: int) -> Tensor:
        """The modules of a block, told apart by what they hold."""
        for slot in range(4):
            name = f"{block}.{slot}"
            if self.has(f"{name}.op"):
                x = self.conv(x, f"{name}.op", padding=1, stride=2)
            elif self.has(f"{name}.conv"):
                x = self.conv(F.interpolate(x, scale_factor=2.0), f"{name}.conv", padding=1)
            elif self.has(f"{name}.in_layers.0"):
                x = self.residual(x, name, emb, batch)
            elif self.has(f"{name}.norm"):
                width = self.tensors[f"{name}.norm.weight"].shape[0]
                # Of two transformers in a block the first looks within frames, the second over them.
                x = (
                    self.within_frames(x, name, text)
                    if slot == 1
                    else self.over_time(x, name, batch, width // self.head)
                )
        return x

    def residual(self, x: Tensor, name: str, emb: Tensor, batch: int) -> Tensor:
        h = self.conv(F.silu(self.group_norm(x, f"{name}.in_layers.0", 1e-5)), f"{name}.in_layers.2", padding=1)
        h = h + self.linear(F.silu(emb), f"{name}.emb_layers.1")[..., None, None]
        h = self.conv(F.silu(self.group_norm(h, f"{name}.out_layers.0", 1e-5)), f"{name}.out_layers.3", padding=1)
        if self.has(f"{name}.skip_connection"):
            x = self.conv(x, f"{name}.skip_connection")
        video = inner = (x + h).unflatten(0, (batch, -1)).transpose(1, 2)
        for number, layer in ((1, 2), (2, 3), (3, 3), (4, 3)):
            conv = f"{name}.temopral_conv.conv{number}"
            weight, bias = self.tensors[f"{conv}.{layer}.weight"], self.tensors[f"{conv}.{layer}.bias"]
            inner = F.conv3d(F.silu(self.group_norm(inner, f"{conv}.0", 1e-5)), weight, bias, padding=(1, 0, 0))
        return (video + inner).transpose(1, 2).flatten(0, 1)

    def within_frames(self, x: Tensor, name: str, text: Tensor) -> Tensor:
        tokens = self.group_norm(x, f"{name}.norm", 1e-6).flatten(2).transpose(1, 2)
        tokens = self.block(tokens, name, x.shape[1] // self.head, text)
        return x + tokens.transpose(1, 2).reshape(x.shape)

    def over_time(self, x: Tensor, name: str, batch: int, heads: int) -> Tensor:
        video = x.unflatten(0, (batch, -1)).transpose(1, 2)
        normed = self.group_norm(video, f"{name}.norm", 1e-6)
        tokens = normed.permute(0, 3, 4, 2, 1)  # (B, h, w, F, C)
        said = self.block(tokens.flatten(0, 2), name, heads, None).reshape(tokens.shape)
        return (video + said.permute(0, 4, 3, 1, 2)).transpose(1, 2).flatten(0, 1)

    def block(self, x: Tensor, name: str, heads: int, text: Tensor | None) -> Tensor:
        inner = f"{name}.transformer_blocks.0"
        x = self.linear(x, f"{name}.proj_in")
        x = x + self.attention(self.layer_norm(x, f"{inner}.norm1"), f"{inner}.attn1", heads, None)
        x = x + self.attention(self.layer_norm(x, f"{inner}.norm2"), f"{inner}.attn2", heads, text)
        value, gate = self.linear(self.layer_norm(x, f"{inner}.norm3"), f"{inner}.ff.net.0.proj").chunk(2, dim=-1)
        x = x + self.linear(value * F.gelu(gate), f"{inner}.ff.net.2")
        return self.linear(x, f"{name}.proj_out")

    def attention(self, x: Tensor, name: str, heads: int, context: Tensor | None) -> Tensor:
        seen = x if context is None else context
        q, k, v = (
            self.linear(tokens, f"{name}.{layer}").unflatten(-1, (heads, -1)).transpose(1, 2)
            for layer, tokens in (("to_q", x), ("to_k", seen), ("to_v", seen))
        )
        weights = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(dim=-1)
        return self.linear((weights @ v).transpose(1, 2).flatten(2), f"{name}.to_out.0")

    def wave(self, t: Tensor) -> Tensor:
        half = self.tensors["time_embed.0.weight"].shape[1] // 2
        angles = t[:, None].float() * torch.exp(-math.log(10000) * torch.arange(half) / half)
        return torch.cat([angles.cos(), angles.sin()], dim=1)

    def mlp(self, x: Tensor, name: str) -> Tensor:
        return self.linear(F.silu(self.linear(x, f"{name}.0")), f"{name}.2")

    def linear(self, x: Tensor, name: str) -> Tensor:
        weight = self.tensors[f"{name}.weight"]
        return F.linear(x, weight.flatten(1) if weight.ndim > 2 else weight, self.tensors.get(f"{name}.bias"))

    def conv(self, x: Tensor, name: str, *, padding: int = 0, stride: int = 1) -> Tensor:
        weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        return F.conv2d(x, weight, bias, padding=padding, stride=stride)

    def group_norm(self, x: Tensor, name: str, eps: float) -> Tensor:
        return F.group_norm(x, 32, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"], eps)

    def layer_norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"])
