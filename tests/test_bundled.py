"""What comes with the package is found by lying there, and a card is checked."""

import json
from pathlib import Path

import pytest

from dreamvideo import bases, bundled, catalogue
from dreamvideo.concept import read_concept
from dreamvideo.errors import BadConfig

CARD = """
summary = "A small world."
licence = "MIT"

[defaults]
frames = 3
guidance = 2.5
"""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundled base named `small`."""
    monkeypatch.setattr(bundled, "_FOLDER", tmp_path)
    bases.load("tiny").save(tmp_path / "small")
    (tmp_path / "small" / "card.toml").write_text(CARD)
    return tmp_path / "small"


def test_a_bundled_base_is_loaded_by_its_name(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(small.parent)  # where a folder of the same name lies
    base = bases.load("small")
    assert (base.name, base.origin.reference, base.origin.licence) == ("small", "small", "MIT")
    assert (base.defaults.frames, base.defaults.guidance, base.defaults.width) == (3, 2.5, 16)


def test_a_folder_with_a_card_is_sampled_as_that_says(small: Path) -> None:
    base = bases.load(str(small))
    assert base.origin.reference == str(small)
    assert base.defaults.frames == 3


def test_the_catalogue_lists_it(small: Path) -> None:
    entry = next(entry for entry in catalogue.bases() if entry.name == "small")
    assert (entry.family, entry.licence, entry.summary, entry.needs) == ("unet3d", "MIT", "A small world.", "nothing")


@pytest.mark.parametrize("wrong", ["sumary = 'x'", "[defaults]\nframes = 'many'", "= 3"])
def test_a_wrong_card_is_named(small: Path, wrong: str) -> None:
    (small / "card.toml").write_text(wrong)
    with pytest.raises(BadConfig, match=r"card\.toml"):
        bases.load(str(small))


def test_a_card_cannot_set_what_a_base_has_not(small: Path) -> None:
    (small / "card.toml").write_text("[defaults]\nframs = 3")
    with pytest.raises(BadConfig, match="frams"):
        bases.load(str(small))


def test_examples_are_whole() -> None:
    truth = json.loads((bundled.EXAMPLES / "truth.json").read_text(encoding="utf-8"))
    files = set()
    for kind, count in (("subjects", 5), ("motions", 3)):
        folders = sorted((bundled.EXAMPLES / kind).iterdir())
        assert len(folders) >= {"subjects": 20, "motions": 10}[kind]
        for folder in folders:
            concept = read_concept(folder)
            assert (len(concept.examples), concept.left_out) == (count, ())
            assert all(bool(example.mask) == (kind == "subjects") for example in concept.examples)
            files |= {example.path.relative_to(bundled.EXAMPLES).as_posix() for example in concept.examples}
    assert truth.keys() == files
    assert all(len(row["centre"]) == len(row["scale"]) == len(row["angle"]) for row in truth.values())
