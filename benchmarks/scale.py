"""How cost grows: one denoising step with guidance, and one update of the motion adapter, by frames, size and number of
concepts composed.

    python benchmarks/scale.py [--base emojiworld] [--rounds 2] [--out FOLDER]

Everything but one axis stays at 8 frames, the base's own size and no concept. Seconds are medians; all points of an
axis run in turns. A plot, `scale-*.png`, shows each axis relative to its first point; the grey line is cost in
proportion.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import common
import torch
from PIL import Image, ImageDraw, ImageFont

from dreamvideo.adapters.bottleneck import Bottleneck
from dreamvideo.adapters.graft import AdapterSet
from dreamvideo.bases.base import VideoBase
from dreamvideo.files import whole

FRAMES = (8, 16, 32, 64)
SCALES = (1, 1.5, 2)
"""Of the base's own height and width."""
CONCEPTS = (0, 1, 2, 4, 8)
"""Half of them identity adapters, half motion adapters, the first an identity adapter."""
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")


def stepper(base: VideoBase, *, frames: int, side: int) -> Callable[[], None]:
    """A denoising step with both branches of the guidance."""
    x = common.noise(base, frames=frames, side=side).expand(2, -1, -1, -1, -1).to(base.dtype)
    t, text = torch.tensor([500, 500], device=base.device), base.encode_text(["a dog", ""]).detach()

    @torch.no_grad()
    def step() -> None:
        base.predict(x, t, text)

    return step


def updater(base: VideoBase, *, frames: int, side: int) -> Callable[[], None]:
    """The forward and backward pass of an update of the motion adapter on one clip."""
    adapters = _motion(base).requires_grad_(True)
    x = common.noise(base, frames=frames, side=side)
    t, text = torch.tensor([500], device=base.device), base.encode_text(["a dog"]).detach()
    e = torch.zeros(1, 1, base.image_width, device=base.device)

    def update() -> None:
        with base.attached(adapters), base.given(appearance=e), base.autocast():
            base.predict(x, t, text).float().square().mean().backward()
        for parameter in adapters.parameters():
            parameter.grad = None

    return update


def composed(base: VideoBase, count: int, step: Callable[[], None]) -> Callable[[], None]:
    """`step` with that many concepts attached."""
    sets = [_identity(base) if number % 2 == 0 else _motion(base) for number in range(count)]

    def run() -> None:
        with base.attached(*sets):
            step()

    return run


def _identity(base: VideoBase) -> AdapterSet:
    return AdapterSet(Bottleneck(), base.sites("space", ("attn2",)))


def _motion(base: VideoBase) -> AdapterSet:
    return AdapterSet(Bottleneck(condition=base.image_width), base.sites("time", ("attn1", "attn2", "ff")))


def measured(base: VideoBase, rounds: int) -> dict[str, dict[str, float]]:
    """Axis -> point -> seconds."""
    own, step = base.defaults.height, stepper(base, frames=8, side=base.defaults.height)
    axes = {
        "frames, sampling": {str(n): stepper(base, frames=n, side=own) for n in FRAMES},
        "frames, learning": {str(n): updater(base, frames=n, side=own) for n in FRAMES},
        "pixels, sampling": {str(round(own * s) ** 2): stepper(base, frames=8, side=round(own * s)) for s in SCALES},
        "pixels, learning": {str(round(own * s) ** 2): updater(base, frames=8, side=round(own * s)) for s in SCALES},
        "concepts, sampling": {str(n): composed(base, n, step) for n in CONCEPTS},
    }
    return {axis: common.turns(points, base.device, rounds=rounds) for axis, points in axes.items()}


def plot(path: Path, axes: Mapping[str, Mapping[str, float]]) -> None:
    """Every axis as a line of relative cost over its points, both logarithmic in base 2; concepts count from 1."""
    size, left, top, right, bottom = (900, 560), 70, 30, 640, 490
    page = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(16)

    def at(growth: float, cost: float) -> tuple[float, float]:
        across, up = (torch.log2(torch.tensor(max(value, 1.0))).item() / 3.5 for value in (growth, cost))
        return left + across * (right - left), bottom - up * (bottom - top)

    for value in (1, 2, 4, 8):
        pen.line((*at(value, 1), *at(value, 2**3.5)), fill="#dddddd")
        pen.line((*at(1, value), *at(2**3.5, value)), fill="#dddddd")
        pen.text((at(value, 1)[0], bottom + 8), f"x {value}", fill="black", font=font, anchor="ma")
        pen.text((left - 8, at(1, value)[1]), f"x {value}", fill="black", font=font, anchor="rm")
    pen.line((*at(1, 1), *at(8, 8)), fill="#999999")
    for number, (axis, points) in enumerate(axes.items()):
        values, costs = [float(point) or 1 for point in points], [*points.values()]
        first = values[0]
        line = [at(value / first, cost / costs[0]) for value, cost in zip(values, costs, strict=True)]
        pen.line(line, fill=_COLOURS[number], width=3)
        pen.text((right + 20, top + 26 * number), axis, fill=_COLOURS[number], font=font)
    pen.text(((left + right) / 2, size[1] - 20), "growth", fill="black", font=font, anchor="mm")
    pen.text((left, 14), "cost", fill="black", font=font, anchor="lm")
    with whole(path) as draft:
        page.save(draft)


def main() -> None:
    parser = common.options(__doc__, bases=("emojiworld",))
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results: dict[str, Any] = {
        name: measured(common.load(name, options.device), options.rounds) for name in options.base
    }
    path = common.write(options.out, "scale", results, options.device)
    for name, axes in results.items():
        plot(path.with_name(f"{path.stem}-{name}.png"), axes)


if __name__ == "__main__":
    main()
