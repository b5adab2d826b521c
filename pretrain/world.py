"""EmojiWorld: pictures of things that move about in painted places, rendered without limit and with their truth.

A frame is a sprite over a place, pixels = rgb + (1 - alpha) place: the sprite's side is `scale` of the frame's, it is
turned by `angle` about its middle, and that is at `centre`. A motion is a program from time in [0, 1] to these, a place
a painter of one still picture. Both see only numbers drawn per clip, always equally many: from the same generator two
clips differ in nothing but what is asked for, and a generator on the CPU gives the same world on every device.
"""

import json
import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

__all__ = ["HELD_OUT_MOTIONS", "MOTIONS", "NARROW", "PLACES", "Clips", "Names", "World", "paths"]

Names = str | Sequence[str] | None  # one for all clips, or one for each; None: drawn

_LISTS = {
    name: tomllib.loads((Path(__file__).parent / "lists" / f"{name}.toml").read_text(encoding="utf-8"))
    for name in ("subjects", "motions", "places")
}
NARROW: tuple[str, ...] = tuple(_LISTS["subjects"]["narrow"])
PLACES: tuple[str, ...] = tuple(_LISTS["places"])
MOTIONS: tuple[str, ...] = tuple(_LISTS["motions"]["training"])
HELD_OUT_MOTIONS: tuple[str, ...] = tuple(_LISTS["motions"]["held_out"])  # their indices follow those of MOTIONS

_SENTENCES = (
    "{a} {motion} {place}",
    "{a} is {motion} {place}",
    "{a} {place}, {motion}",
    "{place} {a} is {motion}",
    "a video of {a} {motion} {place}",
)
_STILL_SENTENCES = (
    "{a} {place}",
    "{place}, {a}",
    "a picture of {a} {place}",
    "there is {a} {place}",
    "{a} {motion} {place}",
)
_SPOKEN = {"unicorn": "a", "ufo": "a", "hourglass": "an"}  # where the first letter misleads
_CLASS_WORD = 0.1  # how often a caption says the class word for the name
_NUMBERS = 16  # drawn for each of: what is seen and said, the pose, the motion, the place
_MARGIN = 1 / 8  # of a sprite's side, empty, so that blurred edges fade out
_LEVELS = 4  # of the sprites' pyramid; each has half the detail of the one before
_TURN = 2 * math.pi


@dataclass(frozen=True)
class Clips:
    """A batch of clips and all that is true of them."""

    pixels: Tensor  # (B, 3, F, H, W) in [-1, 1]
    captions: list[str]
    subject: Tensor  # (B,) index into World.subjects
    place: Tensor  # (B,) index into PLACES
    motion: Tensor  # (B,) index into MOTIONS + HELD_OUT_MOTIONS
    centre: Tensor  # (B, F, 2) x and y of the sprite's middle; the frame is [0, 1]
    scale: Tensor  # (B, F) side of the sprite over side of the frame
    angle: Tensor  # (B, F) radians, clockwise
    mask: Tensor  # (B, 1, F, H, W) alpha in [0, 1]


class World:
    """The subjects of a sprite file, at one frame size. `subjects`: names, held out or not; default all training ones.

    No base knows the name of a held-out subject: captions use its class word.
    """

    def __init__(
        self,
        sprites: str | Path,
        *,
        size: int = 64,
        device: str | torch.device = "cpu",
        subjects: Sequence[str] | None = None,
    ) -> None:
        with safe_open(sprites, "pt") as file:
            rows = json.loads(file.metadata()["world"])["subjects"]
            pictures = file.get_tensor("sprites")
        if subjects is None:
            subjects = [row["name"] for row in rows if row["split"] == "training"]
        numbers = {row["name"]: number for number, row in enumerate(rows)}
        chosen = [numbers[name] for name in subjects]
        self.size = size
        self.device = torch.device(device)
        self.subjects: tuple[str, ...] = tuple(subjects)
        self.words: tuple[str, ...] = tuple(rows[number]["word"] for number in chosen)  # class word of each
        self._calls = [rows[number]["name" if rows[number]["split"] == "training" else "word"] for number in chosen]
        self._nouns = {row["word"] for row in rows if row["split"] == "held_out"}.union(self.words, self._calls)
        self._pyramid = _pyramid(pictures[chosen], size).to(self.device)

    def vocabulary(self) -> tuple[str, ...]:
        """Return every word of captions, sorted: also held-out motions and the class words of held-out subjects."""
        sentences = [sentence.replace("{", "").replace("}", "") for sentence in _SENTENCES + _STILL_SENTENCES]
        texts = [*_LISTS["places"].values(), *MOTIONS, *HELD_OUT_MOTIONS, *map(_with_article, self._nouns)]
        filled = {word for text in texts for word in text.split()}
        said = {word for text in sentences for word in text.replace(",", " ,").split()}
        return tuple(sorted(filled | (said - {"motion", "place"})))

    def clips(
        self,
        n: int,
        frames: int,
        generator: torch.Generator,
        *,
        subject: Names = None,
        place: Names = None,
        motion: Names = None,
        jitter: bool = True,
    ) -> Clips:
        """Render clips of something moving. Without `jitter` every motion takes its middle course."""
        numbers, noise = _drawn(n, generator, self.device)
        motions = _chosen(motion, MOTIONS + HELD_OUT_MOTIONS, numbers[:, 0, 2], drawn=len(MOTIONS))
        path = _course(motions, frames, numbers if jitter else torch.full_like(numbers, 0.5))
        return self._render(numbers, noise, path, motions, subject, place, _SENTENCES)

    def images(
        self,
        n: int,
        generator: torch.Generator,
        *,
        subject: Names = None,
        place: Names = None,
        jitter: bool = True,
    ) -> Clips:
        """Render clips of one frame, of wider position, scale and tilt; few captions speak of motion."""
        numbers, noise = _drawn(n, generator, self.device)
        dice = _Dice(numbers[:, 1] if jitter else torch.full_like(numbers[:, 1], 0.5))
        path = torch.stack((dice(0.3, 0.7), dice(0.32, 0.68), dice(0.3, 0.7), dice(-0.4, 0.4)), dim=-1)
        motions = [MOTIONS.index("staying still")] * n
        return self._render(numbers, noise, path, motions, subject, place, _STILL_SENTENCES)

    def caption(self, subject: str, place: str, motion: str) -> str:
        """Say what is to be seen, in the plainest of the captions' forms."""
        names = self.subjects.index(subject), PLACES.index(place), (MOTIONS + HELD_OUT_MOTIONS).index(motion)
        return self._caption(*names, 1.0, 0.0, _SENTENCES)

    def described(self, clips: Clips) -> dict[str, list[str]]:
        """What clips show, by name."""
        return {
            "subject": [self.subjects[row] for row in clips.subject],
            "place": [PLACES[row] for row in clips.place],
            "motion": [(MOTIONS + HELD_OUT_MOTIONS)[row] for row in clips.motion],
        }

    def _render(
        self,
        numbers: Tensor,
        noise: Tensor,
        path: Tensor,
        motions: list[int],
        subject: Names,
        place: Names,
        sentences: Sequence[str],
    ) -> Clips:
        subjects = _chosen(subject, self.subjects, numbers[:, 0, 0])
        places = _chosen(place, PLACES, numbers[:, 0, 1])
        ground = _by_kind(places, lambda kind, rows: _painted(kind, numbers[rows, 3], noise[rows], self.size))
        index = torch.tensor(subjects, device=self.device)
        sprites = _placed(self._pyramid[index], path, self.size)
        mask = sprites[:, 3:]
        seen = zip(subjects, places, motions, numbers[:, 0, 3].tolist(), numbers[:, 0, 4].tolist(), strict=True)
        return Clips(
            pixels=((sprites[:, :3] + (1 - mask) * ground[:, :, None]) * 2 - 1).clamp(-1, 1),
            captions=[self._caption(*what, sentences) for what in seen],
            subject=index,
            place=torch.tensor(places, device=self.device),
            motion=torch.tensor(motions, device=self.device),
            centre=path[..., :2],
            scale=path[..., 2],
            angle=path[..., 3],
            mask=mask,
        )

    def _caption(self, subject: int, place: int, motion: int, by: float, form: float, sentences: Sequence[str]) -> str:
        noun = self.words[subject] if by < _CLASS_WORD else self._calls[subject]
        return sentences[int(form * len(sentences))].format(
            a=_with_article(noun),
            place=_LISTS["places"][PLACES[place]],
            motion=(MOTIONS + HELD_OUT_MOTIONS)[motion],
        )


def paths(motions: Sequence[str], frames: int, generator: torch.Generator) -> Tensor:
    """Where clips of these motions go, unseen: (B, F, 4), x, y, scale and angle as in `Clips`."""
    numbers, _ = _drawn(len(motions), generator, generator.device)
    return _course([(MOTIONS + HELD_OUT_MOTIONS).index(motion) for motion in motions], frames, numbers)


def _drawn(n: int, generator: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor]:
    numbers = torch.rand(n, 4, _NUMBERS, generator=generator, device=generator.device)
    noise = torch.rand(n, 2, 16, 16, generator=generator, device=generator.device)
    return numbers.to(device), noise.to(device)


def _course(motions: Sequence[int], frames: int, numbers: Tensor) -> Tensor:
    """The paths (B, F, 4) of motions, each by its own numbers; a single frame is at a random time."""
    time = torch.linspace(0, 1, frames, device=numbers.device) if frames > 1 else numbers[:, 2, -1:]
    time = time.expand(len(numbers), frames)
    return _by_kind(motions, lambda kind, rows: _moved(kind, time[rows], numbers[rows]))


def _with_article(noun: str) -> str:
    return f"{_SPOKEN.get(noun, 'an' if noun[0] in 'aeiou' else 'a')} {noun}"


def _chosen(names: Names, among: Sequence[str], shares: Tensor, *, drawn: int | None = None) -> list[int]:
    """Return an index for each clip: of the names given, else of one of the first `drawn`."""
    if names is None:
        return (shares * (drawn or len(among))).long().tolist()
    names = [names] * len(shares) if isinstance(names, str) else names
    if len(names) != len(shares) or not set(names) <= set(among):
        strange = ", ".join(sorted(set(names) - set(among))) or f"{len(names)} names"
        raise ValueError(f"{strange}: give one name of this world, or one for each of the {len(shares)} clips")
    return [among.index(name) for name in names]


def _by_kind(kinds: Sequence[int], make: Callable[[int, list[int]], Tensor]) -> Tensor:
    """Make the rows of each kind together; return them in their order."""
    groups = {kind: [row for row, its_kind in enumerate(kinds) if its_kind == kind] for kind in dict.fromkeys(kinds)}
    order = [row for rows in groups.values() for row in rows]
    made = torch.cat([make(kind, rows) for kind, rows in groups.items()])
    return made[sorted(range(len(order)), key=order.__getitem__)]


class _Dice:
    """The numbers drawn for some clips, used up one after another, each between two bounds. (B, 1) or (B, 1, 1)"""

    def __init__(self, shares: Tensor, *, dims: int = 2) -> None:
        self._shares = iter(shares.T.reshape(shares.shape[1], -1, *[1] * (dims - 1)))

    def __call__(self, low: float, high: float) -> Tensor:
        return low + (high - low) * next(self._shares)

    def sign(self) -> Tensor:
        return 1 - 2 * (next(self._shares) > 0.5).float()


# -- sprites ----------------------------------------------------------------------------------------------------------


def _pyramid(sprites: Tensor, size: int) -> Tensor:
    """Prepare sprites for all scales: level l is blurred to `size` / 2^l. (N, 4, P, P) -> (N, 4, L, size', size')"""
    sprites = F.pad(sprites, [round(sprites.shape[-1] * _MARGIN)] * 4)
    side = round(size * (1 + 2 * _MARGIN))
    levels = []
    for part in sprites.split(64):  # float needs four times the room
        fine = part.float()
        coarse = [F.interpolate(fine, side // 2**level, mode="bilinear", antialias=True) for level in range(_LEVELS)]
        levels.append(torch.stack([F.interpolate(one, side, mode="bilinear") for one in coarse], dim=2).round().byte())
    return torch.cat(levels)


def _placed(pyramids: Tensor, path: Tensor, size: int) -> Tensor:
    """Put sprites where `path` (B, F, 4) says, trilinearly. (B, 4, L, P, P) -> (B, 4, F, size, size) in [0, 1]"""
    x, y, scale, angle = path[..., None, None].unbind(2)
    ticks = (torch.arange(size, device=path.device) + 0.5) / size
    right, down = ticks - x, ticks[:, None] - y
    cos, sin = angle.cos() * 2 / scale / (1 + 2 * _MARGIN), angle.sin() * 2 / scale / (1 + 2 * _MARGIN)
    level = (-scale.log2() - 0.5).clamp(0, _LEVELS - 1)  # half a level too fine: a little sharper, hardly rougher
    depth = ((2 * level + 1) / _LEVELS - 1).expand(*path.shape[:2], size, size)
    grid = torch.stack((cos * right + sin * down, cos * down - sin * right, depth), dim=-1)
    return F.grid_sample(pyramids.float() / 255, grid, align_corners=False).clamp(0, 1)


# -- motions: time (B, F) and numbers -> what is added to x and y, multiplies the scale and is added to the angle ------

_Course = tuple[Tensor | float, Tensor | float, Tensor | float, Tensor | float]


def _moved(kind: int, time: Tensor, numbers: Tensor) -> Tensor:
    """Run a motion's program from a resting pose. (B, F) -> (B, F, 4): x, y, scale, angle"""
    pose = _Dice(numbers[:, 1])
    x, y, scale, angle = pose(0.45, 0.55), pose(0.45, 0.55), pose(0.4, 0.58), pose(-0.12, 0.12)
    right, down, zoom, turn = _PROGRAMS[(MOTIONS + HELD_OUT_MOTIONS)[kind]](time, _Dice(numbers[:, 2]))
    return torch.stack([part + 0 * time for part in (x + right, y + down, scale * zoom, angle + turn)], dim=-1)


def _wave(cycles: Tensor) -> Tensor:
    return (_TURN * cycles).sin()


def _zigzag(cycles: Tensor) -> Tensor:
    """Go to and fro between -1 and 1 at an even pace."""
    return 4 * (cycles % 1 - 0.5).abs() - 1


def _circling(t: Tensor, dice: _Dice) -> _Course:
    reach, phase = dice(0.18, 0.25), dice.sign() * dice(0.9, 1.2) * t + dice(0, 1)
    return reach * _wave(phase), reach * _wave(phase + 0.25), 1, 0


def _swinging(t: Tensor, dice: _Dice) -> _Course:
    lean = dice(0.55, 0.75) * _wave(dice(0.9, 1.2) * t + dice(0, 1))
    return 0.42 * lean.sin(), 0.42 * lean.cos() - 0.37, 1, -lean


def _spiralling(t: Tensor, dice: _Dice) -> _Course:
    reach, phase = 0.03 + dice(0.24, 0.28) * t, dice.sign() * dice(1.4, 1.7) * t + dice(0, 1)
    return reach * _wave(phase), reach * _wave(phase + 0.25), 1, 0


def _looping(t: Tensor, dice: _Dice) -> _Course:
    side, reach, part = dice.sign(), dice(0.15, 0.19), ((t - 0.15) / 0.7).clamp(0, 1)
    right = dice(0.45, 0.55) * (t - 0.5) + reach * _wave(part)
    return side * right, reach * _wave(part + 0.25), 1, -side * _TURN * part


def _making_an_eight(t: Tensor, dice: _Dice) -> _Course:
    phase = dice.sign() * t + dice(0, 1)
    return dice(0.22, 0.26) * _wave(phase), dice(0.19, 0.23) * _wave(2 * phase), 1, 0


def _rolling(t: Tensor, dice: _Dice) -> _Course:
    side = dice.sign()
    return side * dice(0.5, 0.6) * (t - 0.5), 0.12, 1, side * dice(0.9, 1.1) * _TURN * t


def _diving(t: Tensor, dice: _Dice) -> _Course:
    side = dice.sign()
    return side * dice(0.45, 0.55) * (t - 0.5), dice(0.45, 0.55) * (t**2 - 0.5), 1, side * dice(0.7, 0.9) * t


_PROGRAMS: Mapping[str, Callable[[Tensor, _Dice], _Course]] = {
    "moving left": lambda t, dice: (dice(0.45, 0.6) * (0.5 - t), 0, 1, 0),
    "moving right": lambda t, dice: (dice(0.45, 0.6) * (t - 0.5), 0, 1, 0),
    "rising": lambda t, dice: (0, dice(0.45, 0.6) * (0.5 - t), 1, 0),
    "falling": lambda t, dice: (0, dice(0.45, 0.6) * (t**1.5 - 0.5), 1, 0),
    "bouncing": lambda t, dice: (0, 0.18 - dice(0.34, 0.42) * _wave(dice(0.9, 1.1) * t + dice(0, 0.5)).abs(), 1, 0),
    "spinning": lambda t, dice: (0, 0, 1, _TURN * dice.sign() * dice(0.8, 1.2) * t),
    "growing": lambda t, dice: (0, 0, (dice(0.9, 1.15) * (t - 0.6)).exp(), 0),
    "shrinking": lambda t, dice: (0, 0, (dice(0.9, 1.15) * (0.4 - t)).exp(), 0),
    "shaking": lambda t, dice: (dice(0.07, 0.11) * _wave(3 * t + dice(0, 1)), 0, 1, 0),
    "circling": _circling,
    "swinging": _swinging,
    "staying still": lambda _t, _dice: (0, 0, 1, 0),
    "zigzagging": lambda t, dice: (
        dice.sign() * dice(0.5, 0.6) * (t - 0.5),
        dice(0.18, 0.22) * _zigzag(2 * t + dice(0, 1)),
        1,
        0,
    ),
    "spiralling": _spiralling,
    "looping": _looping,
    "making an eight": _making_an_eight,
    "hopping": lambda t, dice: (
        dice.sign() * dice(0.5, 0.6) * (t - 0.5),
        0.15 - dice(0.26, 0.34) * _wave(t).abs(),
        1,
        0,
    ),
    "pulsing": lambda t, dice: (0, 0, (dice(0.3, 0.4) * _wave(2 * t + dice(0, 1))).exp(), 0),
    "flipping": lambda t, dice: (0, 0.18 - dice(1.4, 1.7) * t * (1 - t), 1, dice.sign() * _TURN * t),
    "rolling": _rolling,
    "approaching": lambda t, dice: (
        dice.sign() * dice(0.22, 0.3) * (1 - t),
        dice(0.2, 0.28) * (t - 1),
        (1.1 * (t - 0.75)).exp(),
        0,
    ),
    "rocking": lambda t, dice: (0, 0, 1, dice(0.5, 0.65) * _wave(dice(1.4, 1.7) * t + dice(0, 1))),
    "pacing": lambda t, dice: (dice(0.23, 0.28) * _zigzag(dice(0.95, 1.1) * t + dice(0, 1)), 0, 1, 0),
    "diving": _diving,
}


# -- places -----------------------------------------------------------------------------------------------------------


class _Canvas:
    """The grounds of some clips in the making: colours (B, 3, S, S), covered one after another."""

    def __init__(self, shares: Tensor, noise: Tensor, size: int) -> None:
        ticks = (torch.arange(size, device=noise.device) + 0.5) / size
        self.x, self.y, self.size = ticks[None, None], ticks[None, :, None], size
        self.dice = _Dice(shares, dims=3)
        self._noise = noise
        self.colours = noise.new_zeros(len(noise), 3, size, size)

    def _colour(self, code: str) -> Tensor:
        return torch.tensor(list(bytes.fromhex(code)), device=self.x.device).view(1, 3, 1, 1) / 255

    def cover(self, colour: str, where: Tensor | None = None, *, fade_to: str | None = None, until: float = 1) -> None:
        """Paint `colour` all over or `where` (B, S, S) is 1; with `fade_to` it turns to that from the top `until`."""
        paint = self._colour(colour)
        if fade_to is not None:
            paint = paint + (self._colour(fade_to) - paint) * (self.y / until).clamp(0, 1)[:, None]
        where = torch.ones_like(self.y) if where is None else where
        self.colours = self.colours + (paint - self.colours) * where[:, None]

    def inside(self, distance: Tensor) -> Tensor:
        """Where a distance, in sides of the frame, is positive, with a soft edge of a pixel."""
        return (distance * self.size + 0.5).clamp(0, 1)

    def disc(self, x: Tensor, y: Tensor, radius: Tensor | float) -> Tensor:
        return self.inside(radius - ((self.x - x) ** 2 + (self.y - y) ** 2).sqrt())

    def clouds(self, across: int, down: int, *, layer: int = 0) -> Tensor:
        """Smooth noise, in about [0, 1], with so many features across and down."""
        noise = self._noise[:, layer : layer + 1, :down, :across]
        return F.interpolate(noise, self.size, mode="bicubic")[:, 0]

    def squares(self, across: int, down: int, *, layer: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """A number in [0, 1] for each square of a grid, and where in its square a pixel is, in [-1/2, 1/2]."""
        noise = self._noise[:, layer : layer + 1, :down, :across]
        flat = F.interpolate(noise, self.size, mode="nearest")[:, 0]
        return flat, (self.x * across) % 1 - 0.5, (self.y * down) % 1 - 0.5

    def dots(self, share: float, radius: float) -> Tensor:
        """Soft dots, in that share of squares: stars, flakes."""
        number, right, down = self.squares(9, 9)
        aside = 0.6 * (number / share - 0.5)  # off the grid
        distance = ((right - aside) ** 2 + (down + aside) ** 2).sqrt()
        return (number < share) * (1.5 - distance / radius).clamp(0, 1)

    def hills(self, height: Tensor, swell: float, cycles: float) -> Tensor:
        """Everything below a wavy line."""
        line = height + swell * _wave(cycles * self.dice(0.7, 1.3) * self.x + self.dice(0, 1))
        return self.inside(self.y - line)


_Painter = Callable[[_Canvas], None]
_PAINTERS: dict[str, _Painter] = {}  # by name


def _painted(kind: int, numbers: Tensor, noise: Tensor, size: int) -> Tensor:
    """Paint a place. (B, numbers), (B, 2, 16, 16) -> (B, 3, size, size) in [0, 1]"""
    canvas = _Canvas(numbers, noise, size)
    light = canvas.dice(0.92, 1.05)[:, None]
    _PAINTERS[PLACES[kind]](canvas)
    return (canvas.colours * light).clamp(0, 1)


def _painter(paint: _Painter) -> _Painter:
    _PAINTERS[paint.__name__[1:]] = paint
    return paint


@_painter
def _sky(c: _Canvas) -> None:
    c.cover("1f78e6", fade_to="8fd2ff")
    billows = 0.65 * c.clouds(3, 6) + 0.35 * c.clouds(6, 12, layer=1)
    c.cover("ffffff", ((billows - 0.57) * 7).clamp(0, 0.95))


@_painter
def _grass(c: _Canvas) -> None:
    c.cover("8fd0ff", fade_to="e4f6ff", until=0.4)
    c.cover("3f9a35", c.hills(c.dice(0.26, 0.34), 0.04, 1.5))
    ground = c.hills(c.dice(0.38, 0.46), 0.03, 1)
    c.cover("8fdc4b", ground, fade_to="4caf2e")
    c.cover("3a9426", ground * ((c.clouds(8, 12) - 0.55) * 2).clamp(0, 0.6))


@_painter
def _beach(c: _Canvas) -> None:
    c.cover("6fc6ff", fade_to="d9f2ff", until=0.35)
    c.cover("1e8fd0", c.inside(c.y - c.dice(0.28, 0.36)), fade_to="37c4d8", until=0.6)
    shore, swell = c.dice(0.52, 0.6), 0.02 * _wave(c.dice(1, 2) * c.x + c.dice(0, 1))
    c.cover("ffffff", c.inside(c.y - shore - swell + 0.03))
    sand = c.inside(c.y - shore - swell)
    c.cover("f7dfa5", sand, fade_to="efcb86")
    c.cover("d9b26a", sand * ((c.clouds(8, 12) - 0.6) * 2).clamp(0, 0.4))


@_painter
def _night(c: _Canvas) -> None:
    c.cover("070b2b", fade_to="27306f", until=0.8)
    c.cover("ffffff", c.dots(0.2, 0.11))
    x, y = c.dice(0.12, 0.88), c.dice(0.1, 0.2)
    c.cover("fff3c4", c.disc(x, y, 0.085))
    c.cover("0b1036", c.disc(x + 0.045, y - 0.025, 0.075))
    c.cover("0d1a24", c.hills(c.dice(0.78, 0.86), 0.03, 1.2))


@_painter
def _snow(c: _Canvas) -> None:
    c.cover("93a7bd", fade_to="c9d6e4", until=0.6)
    number, right, _ = c.squares(6, 1, layer=1)
    height = 0.5 - 0.16 * number
    c.cover("41695f", c.inside((c.y - height) * 0.3 - (right / 6).abs()) * c.inside(0.7 - c.y))
    c.cover("ffffff", c.hills(c.dice(0.52, 0.6), 0.03, 1), fade_to="dbe8f6")
    c.cover("ffffff", c.dots(0.3, 0.15))


@_painter
def _desert(c: _Canvas) -> None:
    c.cover("ffd98a", fade_to="fff0cf", until=0.4)
    c.cover("fffbe8", c.disc(c.dice(0.15, 0.85), c.dice(0.1, 0.2), 0.08))
    c.cover("dc9a4a", c.hills(c.dice(0.36, 0.44), 0.06, 1))
    c.cover("c97f33", c.hills(c.dice(0.55, 0.63), 0.07, 1))
    c.cover("e3a04c", c.hills(c.dice(0.74, 0.82), 0.05, 1))


@_painter
def _forest(c: _Canvas) -> None:
    c.cover("1f5a35", fade_to="6fae55")
    number, right, _ = c.squares(6, 1)
    trunk = c.inside(0.02 + 0.02 * number - ((right + 0.4 * (number - 0.5)) / 6).abs())
    c.cover("5a3a22", trunk)
    c.cover("2c7a2f", c.hills(c.dice(0.78, 0.86), 0.02, 1.5))
    leaves = c.clouds(8, 8, layer=1)
    c.cover("134a26", c.inside((leaves - 0.35) * 0.4 + 0.22 - c.y))
    c.cover("2f7d38", c.inside((leaves - 0.55) * 0.4 + 0.1 - c.y))


@_painter
def _sunset(c: _Canvas) -> None:
    c.cover("52257a", fade_to="f2583e", until=0.45)
    c.cover("f2583e", c.inside(c.y - 0.45), fade_to="ffb13d", until=0.75)
    c.cover("ffe27a", c.disc(c.dice(0.25, 0.75), 0.66, c.dice(0.15, 0.2)))
    c.cover("3a1838", c.hills(c.dice(0.68, 0.74), 0.03, 1))


@_painter
def _sea(c: _Canvas) -> None:
    c.cover("bfe6ff", fade_to="eefaff", until=0.25)
    horizon = c.dice(0.2, 0.28)
    water = c.inside(c.y - horizon)
    c.cover("2bb0e6", water, fade_to="063f8c")
    depth = (c.y - horizon).clamp(min=0.01)
    crest = _wave(6 * depth.sqrt() + 0.25 * _wave(c.dice(1.5, 2.5) * c.x + c.dice(0, 1)))
    c.cover("8fe0ff", water * ((crest - 0.6) * 2).clamp(0, 0.6))


@_painter
def _road(c: _Canvas) -> None:
    horizon, middle = c.dice(0.3, 0.38), c.dice(0.44, 0.56)
    c.cover("a8c4d8", fade_to="dfeaf0", until=0.35)
    ground = c.inside(c.y - horizon)
    c.cover("6aa84a", ground)
    depth = (c.y - horizon).clamp(min=0)
    aside = (c.x - middle - (0.5 - middle) * depth).abs()
    c.cover("f2f2f2", ground * c.inside(0.06 + 0.72 * depth - aside))
    c.cover("4d5159", ground * c.inside(0.05 + 0.66 * depth - aside))
    dash = (_wave(3.2 / (depth + 0.25) + c.dice(0, 1)) > 0).float()
    c.cover("ffd53d", ground * dash * c.inside(0.05 * depth - aside))


@_painter
def _city(c: _Canvas) -> None:
    c.cover("c79fd0", fade_to="ffd9b8", until=0.8)
    for layer, (wall, across, top) in enumerate((("8d86b8", 8, 0.15), ("454a78", 5, 0.35))):
        number, right, _ = c.squares(across, 1, layer=layer)
        house = c.inside(c.y - top - 0.3 * number) * c.inside((0.46 - right.abs()) / across)
        c.cover(wall, house)
    lit, right, down = c.squares(10, 10, layer=1)
    c.cover("ffe08a", house * (lit > 0.45) * c.inside((0.28 - right.abs()) / 10) * c.inside((0.28 - down.abs()) / 10))
    c.cover("5c5f66", c.inside(c.y - 0.86))


@_painter
def _room(c: _Canvas) -> None:
    c.cover("f0c6b4", fade_to="e2a894", until=0.7)
    x, y = c.dice(0.18, 0.82), c.dice(0.2, 0.26)
    across, down = (c.x - x).abs(), (c.y - y).abs()
    c.cover("ffffff", c.inside(0.15 - across) * c.inside(0.16 - down))
    c.cover("8fd3ff", c.inside(0.12 - across) * c.inside(0.13 - down))
    c.cover("ffffff", c.inside(0.015 - across.minimum(down)) * c.inside(0.15 - across) * c.inside(0.16 - down))
    floor = c.dice(0.68, 0.74)
    c.cover("ffffff", c.inside(c.y - floor + 0.035))
    c.cover("a9703c", c.inside(c.y - floor))
    slant = (c.x - 0.5) / (0.6 + c.y - floor) * 5 + c.dice(0, 1)
    c.cover("7d4c22", c.inside(c.y - floor) * ((slant % 1 - 0.5).abs() < 0.08))
