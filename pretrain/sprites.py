"""The pictures of the world: an npm package of emoji -> one safetensors file.

    python pretrain/sprites.py OUT.safetensors [--package FILE.tgz or FOLDER]

The file holds `sprites` (N, 4, SIDE, SIDE), uint8 RGBA multiplied by alpha, each subject filling its square; its
metadata `world` is JSON: the package, its licence, and name, word, split and code point of every row.
"""

import argparse
import json
import subprocess
import tarfile
import tempfile
import tomllib
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

__all__ = ["main", "picture", "subjects"]

PACKAGE = "@lobehub/fluent-emoji-3d"
SIDE = 96
LISTS = Path(__file__).parent / "lists"


def subjects() -> list[dict[str, str]]:
    """Return name, word (its class), split and code point of every subject of the lists."""
    lists = tomllib.loads((LISTS / "subjects.toml").read_text(encoding="utf-8"))
    return [
        {"name": name, "word": word, "split": split, "codepoint": codepoint}
        for split in ("training", "held_out")
        for word, names in lists[split].items()
        for name, codepoint in sorted(names.items())
    ]


def picture(image: Image.Image, side: int = SIDE) -> NDArray[np.uint8]:
    """Cut a picture to what is seen of it, centre that in a square and shrink it. (4, side, side), times alpha."""
    image = image.convert("RGBA")
    image = image.crop(image.getchannel("A").point(lambda alpha: 255 * (alpha > 8)).getbbox())
    square = Image.new("RGBA", (max(image.size),) * 2)
    square.paste(image, ((square.width - image.width) // 2, (square.height - image.height) // 2))
    small = np.array(square.convert("RGBa").resize((side, side), Image.Resampling.HAMMING))
    small = np.ascontiguousarray(small.transpose(2, 0, 1))
    small[:3] = np.minimum(small[:3], small[3:])  # filters overshoot
    return small


@contextmanager
def _assets(package: Path | None) -> Iterator[Path]:
    """Give the folder of pictures, fetched or unpacked where need be."""
    with tempfile.TemporaryDirectory() as folder:
        if package is None:
            subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL)
            package = next(Path(folder).glob("*.tgz"))
        if package.is_file():
            with tarfile.open(package) as archive:
                archive.extractall(folder, filter="data")
            package = Path(folder) / "package"
        yield package / "assets" if (package / "assets").is_dir() else package


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--package", type=Path, help="a downloaded package, packed or not; else npm fetches it")
    options = parser.parse_args()
    rows = subjects()
    with _assets(options.package) as assets:
        files = {file.stem.removesuffix("-fe0f"): file for file in assets.glob("*.webp")}
        missing = [row["name"] for row in rows if row["codepoint"] not in files]
        if missing:
            raise SystemExit(f"{assets}: has no picture of {', '.join(missing)}")
        sprites = np.stack([picture(Image.open(files[row["codepoint"]])) for row in rows])
    for row in rows:
        row["unicode"] = unicodedata.name(chr(int(row["codepoint"], 16)), "").lower()
    about = {"package": PACKAGE, "licence": "MIT", "author": "LobeHub, Microsoft", "subjects": rows}
    save_file({"sprites": torch.from_numpy(sprites)}, options.out, metadata={"world": json.dumps(about)})
    print(f"{options.out}: {len(rows)} subjects, {options.out.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
