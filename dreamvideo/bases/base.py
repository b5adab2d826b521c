"""What the project asks of a base model, whatever its family."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor, nn

from dreamvideo.adapters.attention import Control, Kept
from dreamvideo.adapters.graft import AdapterSet, Site, attach, detach
from dreamvideo.adapters.layers import LAYERS, Embedding
from dreamvideo.adapters.ports import BasicTransformerBlock, Condition, Givens, Reach, ResnetBlock2D, open_ports
from dreamvideo.adapters.words import Word
from dreamvideo.bases import modes
from dreamvideo.bases.images import decode_frames, embed_images, encode_frames
from dreamvideo.bases.modes import Compile
from dreamvideo.bases.places import Places
from dreamvideo.bases.records import DTYPES, Defaults, Origin, Parts, fingerprint
from dreamvideo.bases.text import batched, tokenize
from dreamvideo.diffusion import Process, process_of
from dreamvideo.errors import BadInput, MissingWeights, Unsupported

__all__ = ["DTYPES", "Compile", "Defaults", "Origin", "Parts", "VideoBase", "fingerprint"]


class VideoBase(ABC):
    """One base model. It is frozen: what is learned is attached to it and owned by its `AdapterSet`.

    Questions a family answers:
    `load`: how is it read from a folder in diffusers' layout? `tiny`: what is its smallest random instance?
    `time_modules`: which of its modules mix frames?
    `predict`: what does the denoiser say, with every quirk of the family hidden?
    `pipeline`: which stock pipeline runs on the same parts?

    Answered here for blocks within such modules, AutoencoderKL and CLIP's text encoder, to be answered anew by a family
    with others: `axis`: what does the transformer block at a path mix?
    `encode_ids`: tokens -> text states. `encode_video`, `decode`: pixels <-> latents. `latent_shape`: of which size?
    """

    family: ClassVar[str]
    tiny_name: ClassVar[str]
    """The name under which `tiny(0)` can be asked for."""
    denoiser_class: ClassVar[str]
    """The class name in the denoiser's config, by which a folder is recognised."""
    addition: ClassVar[str | None] = None
    """What may stand behind the + of a reference, FOLDER+ADDITION: the class name in that folder's config, or the name
    of a checkpoint in it."""
    names: ClassVar[Mapping[str, str | None]] = {}
    """Hub ids that this family is known to read -> licence."""
    image_encoder_id: ClassVar[str | None] = None
    """Hub id of the image encoder for appearance guidance, where the base itself has none."""
    time_modules: ClassVar[tuple[type[nn.Module], ...]] = ()
    """Ported classes of the family's own: of the modules that mix frames, or that know how many there are."""
    time_paths: ClassVar[tuple[str, ...]] = ()
    """Further parts of the denoiser whose parameters count as temporal."""
    reaches: ClassVar[tuple[Reach, ...]] = ("frame",)
    """At which frames its spatial self-attention can look."""

    def __init__(self, origin: Origin, *, parts: Parts, defaults: Defaults) -> None:
        self.origin = origin
        self.parts = parts
        self.defaults = defaults
        self.givens = Givens()
        self.fingerprint = fingerprint(parts.denoiser)
        self._attached: list[AdapterSet] = []
        for module in parts.modules:
            module.requires_grad_(False).eval()
        # Before compiling, offloading or caching: hooks of those would shadow the ports.
        open_ports(parts.denoiser, self.givens, (BasicTransformerBlock, ResnetBlock2D, *LAYERS, *self.time_modules))
        open_ports(parts.text_encoder, self.givens, (Embedding,))
        self._places = Places(
            origin.name,
            parts.denoiser,
            self._embedding,
            block_axis=self.axis,
            time_modules=self.time_modules,
            time_paths=self.time_paths,
        )

    # -- what a family answers -------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def load(
        cls,
        folder: str,
        *,
        addition: str | None,
        origin: Origin,
        dtype: torch.dtype,
        device: str,
        image_encoder: str | None,
    ) -> "VideoBase":
        """Read a base from a folder in diffusers' layout; `addition` and `image_encoder` are folders or None.

        Raises:
            BadInput: the folder and its addition do not fit together.
        """

    @classmethod
    @abstractmethod
    def tiny(cls, seed: int) -> "VideoBase":
        """A random base in memory, in under a second."""

    @abstractmethod
    def predict(self, x_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """The denoiser's prediction. x_t (B, C, F, h, w), t (B,) or (), text (B, L, D) -> (B, C, F, h, w)."""

    @abstractmethod
    def pipeline(self) -> Any:
        """The stock diffusers pipeline around the same parts, with what is attached still attached."""

    # -- what it may answer anew ------------------------------------------------------------------------------

    def axis(self, path: str) -> Literal["space", "time", "joint"]:
        """What the transformer block at `path` of the denoiser mixes."""
        owner = self.parts.denoiser.get_submodule(path.partition(".transformer_blocks.")[0])
        return "time" if isinstance(owner, self.time_modules) else "space"

    def encode_ids(self, ids: Tensor) -> Tensor:
        """Token ids (B, L) -> text states (B, L, D), with gradient for learned words."""
        return self.parts.text_encoder(ids).last_hidden_state

    def encode_video(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, F, H, W) in [-1, 1] -> mean and deviation of the latents (B, C, F, h, w), scaled."""
        return encode_frames(self.parts.vae, pixels)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, F, h, w) -> pixels (B, 3, F, H, W) in [-1, 1]."""
        return decode_frames(self.parts.vae, latents)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(C, F, h, w) of a video.

        Raises:
            BadInput: no frame, or a size that the autoencoder and the denoiser cannot halve as often as they do.
        """
        config, pixels = self.parts.denoiser.config, self.parts.factor
        unit = pixels * 2 ** (len(config.block_out_channels) - 1)
        if frames < 1:
            raise BadInput(f"--frames {frames}: at least 1")
        for name, size in (("height", height), ("width", width)):
            if size < unit or size % unit:
                raise BadInput(f"--{name} {size}: this base needs a multiple of {unit}")
        return config.in_channels, frames, height // pixels, width // pixels

    # -- final ------------------------------------------------------------------------------------------------

    @final
    @property
    def name(self) -> str:
        return self.origin.name

    @final
    @property
    def process(self) -> Process:
        """The noise process that the base was trained on."""
        return process_of(self.parts.scheduler.config, self.parts.scheduler.alphas_cumprod)

    @final
    @property
    def device(self) -> torch.device:
        return next(self.parts.denoiser.parameters()).device

    @final
    @property
    def dtype(self) -> torch.dtype:
        """In which it computes: that of the frozen weights, but for those that are stored in 8 bits."""
        return next(self.parts.denoiser.parameters()).dtype

    @final
    @property
    def precision(self) -> str:
        """Of the frozen weights, as it is written in options: int8 or fp8 where they are stored so, else `dtype`."""
        return self._places.storage or next(name for name, dtype in DTYPES.items() if dtype == self.dtype)

    @final
    def store(self, form: str) -> None:
        """Keep the weights of the denoiser's blocks in 8 bits from now on, in one of `adapters.storage.FORMATS`.

        Raises:
            Unsupported: they are stored already.
        """
        self._places.store(form)

    @final
    def to(self, device: torch.device | str) -> "VideoBase":
        """Move all parts."""
        for module in self.parts.modules:
            module.to(device)
        return self

    @final
    def save(self, folder: str | Path) -> None:
        """Write all parts in diffusers' layout, as `load` and stock pipelines read them. Detach everything first.

        Raises:
            Unsupported: weights are stored in 8 bits, from which the base's own cannot be had back.
        """
        if self._places.storage is not None:
            raise Unsupported(f"base {self.name} is stored as {self.precision}: load it in another --dtype to save it")
        self.parts.save(Path(folder))
        self.pipeline().save_config(folder)

    @final
    def sites(self, axis: str, ports: tuple[str, ...]) -> tuple[Site, ...]:
        """All places of the given axis and ports on residual streams or the token embedding, in the model's order.

        Raises:
            Unsupported: the base has no such place, or mixes space and time in the same blocks, so that the axis does
                not exist by itself.
        """
        return tuple(self._places.words(ports) if axis == "text" else self._places.residual(axis, ports))

    @final
    def linears(self, axis: str, layers: Sequence[str]) -> tuple[Site, ...]:
        """The outputs of the linear layers in transformer blocks of the given axis, in the model's order.

        Args:
            layers: patterns for a layer's path inside its block, such as `attn2.to_k`, `attn1.*` or `ff.*`.

        Raises:
            Unsupported: as `sites`; or no layer fits one of the patterns.
        """
        return tuple(self._places.linears(axis, layers))

    @final
    def weights(self, axis: str, names: Sequence[str] = ("*",)) -> tuple[Site, ...]:
        """The denoiser's parameters of the given axis whose whole name fits one of the patterns `names`, in order.

        Raises:
            Unsupported: as `sites`; or one of them belongs to a module of a sort that has no ports.
        """
        return tuple(self._places.parameters(axis, names))

    @final
    def locate(self, site: Site) -> nn.Module:
        """The module that has the site's port.

        Raises:
            BadFile: this base has no such place, or it has another size.
        """
        return self._places.locate(site)

    @final
    def attach(self, *sets: AdapterSet) -> None:
        """Lend sets to the base. They act on every call until they are detached.

        Raises:
            BadInput: another learned word of the same name is attached.
            BadFile: the base has no such place.
        """
        for adapters in sets:
            if isinstance(adapters.kind, Word) and adapters.kind.name in self._words:
                raise BadInput(f"two subjects are named {adapters.kind.name}: learn one under another --name")
            adapters.to(device=self.device)
            attach(adapters, self.locate)
            self._attached.append(adapters)

    @final
    def detach(self, *sets: AdapterSet) -> None:
        """Take sets back."""
        for adapters in sets:
            detach(adapters, self.locate)
            self._attached = [other for other in self._attached if other is not adapters]

    @final
    @contextmanager
    def attached(self, *sets: AdapterSet) -> Iterator[None]:
        """`attach` for the length of a block."""
        lent: list[AdapterSet] = []
        try:
            for adapters in sets:
                self.attach(adapters)
                lent.append(adapters)
            yield
        finally:
            self.detach(*lent)

    @final
    def given(
        self, *, appearance: Tensor | None = None, strength: Tensor | float = 1.0, bypass_time: bool = False
    ) -> AbstractContextManager[None]:
        """What calls inside the block are given beside their inputs.

        Args:
            appearance: image vectors (B, 1, D) for adapters with a condition layer, B the denoiser's batch or 1.
                None skips the condition layers; zeros do not, because they have a bias.
            strength: lambda, the factor on what condition layers say; one number, or (B, 1, 1).
            bypass_time: skip every module that mixes frames where the input has one frame.
        """
        condition = None
        if appearance is not None:
            factor = torch.as_tensor(strength, dtype=appearance.dtype, device=appearance.device)
            condition = Condition(appearance, factor.reshape(-1, 1, 1))
        return self.givens.using({"condition": condition, "bypass_time": bypass_time})

    @final
    def reaching(self, reach: Reach) -> AbstractContextManager[None]:
        """At which frames spatial self-attention looks inside the block, see `Reach`; `given` leaves it as it is.

        Raises:
            Unsupported: this family's cannot.
        """
        if reach not in self.reaches:
            raise Unsupported(f"base {self.name} knows no {reach} attention, only {', '.join(self.reaches)}")
        return self.givens.using({"reach": reach})

    @final
    def attending(self, control: Control | None, kept: Kept | None = None) -> AbstractContextManager[None]:
        """Inside the block `control` changes the probabilities of attention, and `kept` holds the one text's values."""
        return self.givens.using({"control": control, "kept": kept})

    @final
    @contextmanager
    def learning(
        self, *, rematerialise: bool = False, offload: bool = False, dropout: float = 0.0, compile: Compile = "none"
    ) -> Iterator[None]:
        """How the frozen denoiser runs while something attached to it is learned.

        Args:
            rematerialise: blocks keep no activations and compute them again in the backward pass.
            offload: autoencoder and image encoder wait in main memory, and compute there when asked.
            dropout: chance of dropout in convolutional blocks (transformer blocks have none).
            compile: what torch.compile is given, see `modes.Compile`.
        """
        with (
            modes.learning(self.parts.denoiser, [*self._places.blocks.values()], dropout=dropout, compile=compile),
            modes.waiting(*(part for part in (self.parts.vae, self.parts.image_encoder) if offload and part)),
            self.givens.using({"rematerialise": rematerialise}),
        ):
            yield

    @final
    @contextmanager
    def resting(self) -> Iterator[None]:
        """Inside the block nothing of `learning` acts: what is sampled for a look is what sampling will give."""
        with modes.resting(self.parts.denoiser):
            yield

    @final
    def autocast(self) -> torch.autocast:
        """Compute in the dtype of the frozen weights where that is half precision; what is learned stays float32."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    @final
    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> text states (B, L, D). `<name>` is the attached learned word of that name.

        Raises:
            BadInput: a prompt names a word that is not attached.
        """
        unique = list(dict.fromkeys(prompts))  # A batch often says one thing.
        ids = tokenize(self.parts.tokenizer, unique, self._words, first=self._embedding.num_embeddings).to(self.device)
        states = dict(zip(unique, self.encode_ids(ids), strict=True))
        return batched(states, prompts)

    @final
    def token_vectors(self, text: str) -> Tensor:
        """The token vectors (n, D) of a word of the vocabulary, to start a learned word from."""
        ids = self.parts.tokenizer(text, add_special_tokens=False).input_ids
        return self._embedding.weight[ids].float()

    @final
    @torch.no_grad()
    def embed_images(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, F, H, W) in [-1, 1] -> image vectors (B, F, D), not normalised.

        Raises:
            MissingWeights: the base has no image encoder.
        """
        if self.parts.image_encoder is None:
            name = self.image_encoder_id or "a CLIP vision model with projection"
            raise MissingWeights(
                f"base {self.name} has no image encoder, which appearance guidance needs: "
                f"name one with --image-encoder ({name}), or do without: --set method.condition=false"
            )
        return embed_images(self.parts.image_encoder, pixels)

    @final
    @property
    def image_width(self) -> int | None:
        """Width of an image vector, or None where there is no image encoder."""
        encoder = self.parts.image_encoder
        return None if encoder is None else encoder.config.projection_dim

    @final
    @property
    def _words(self) -> dict[str, int]:
        """Attached learned words and their numbers of vectors, in the order of their ids."""
        return {a.kind.name: a.kind.vectors for a in self._attached if isinstance(a.kind, Word)}

    @final
    @property
    def _embedding(self) -> Any:
        return self.parts.text_encoder.get_input_embeddings()
