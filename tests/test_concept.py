"""A folder, a file or a list -> a Concept, and what is said about files that cannot be used."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from mediafiles import as_nobody, greys, halves, save_clip, save_image, save_sound, save_without_frames, truncate
from PIL import Image

from dreamvideo import concept as concept_module
from dreamvideo.concept import LeftOut, read_concept, survey
from dreamvideo.errors import BadInput, BadMedia
from dreamvideo.media import Kind, write_video

UNMASKED = "no mask: the whole image counts"
PHOTO = halves(80, 100)


def photos(folder: Path, *names: str) -> Path:
    for name in names:
        save_image(folder / name, PHOTO)
    return folder


def masked(folder: Path, mask: np.ndarray) -> Path:
    photos(folder, "a.jpg")
    save_image(folder / "masks" / "a.png", mask)
    return folder


def refused(path: Path, kind: Kind | None = None) -> str:
    with pytest.raises(BadInput) as caught:
        read_concept(path, kind=kind)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_folder_of_photos(tmp_path: Path) -> None:
    folder = photos(tmp_path / "my dog.v2", "b.jpg", "a.png", "c.JPEG")
    concept = read_concept(folder, kind="image")
    assert (concept.name, concept.word, concept.caption, concept.kind) == ("my dog.v2", None, None, "image")
    assert [example.path.name for example in concept.examples] == ["a.png", "b.jpg", "c.JPEG"]
    assert concept.left_out == ()
    first = concept.examples[0]
    assert (first.kind, first.width, first.height, first.frames, first.fps) == ("image", 100, 80, 1, None)
    assert (first.caption, first.mask, first.alpha, first.notes) == (None, None, False, (UNMASKED,))
    assert first.digest == hashlib.sha256((folder / "a.png").read_bytes()).hexdigest()


def test_folder_of_clips(tmp_path: Path) -> None:
    folder = tmp_path / "turn"
    frames = greys([20, 40, 60, 80], 96, 128)
    save_clip(folder / "1.mp4", frames, [0, 40, 80, 120])
    write_video(folder / "2.gif", frames, fps=8)
    write_video(folder / "3.webp", frames, fps=8)
    concept = read_concept(folder)
    assert (concept.name, concept.kind) == ("turn", "clip")
    assert [(example.frames, example.width, example.height) for example in concept.examples] == [(4, 128, 96)] * 3
    assert [example.fps for example in concept.examples] == pytest.approx([25, 8, 8], rel=0.05)
    assert all(example.notes == () for example in concept.examples)


def test_names_and_captions_of_the_folder(tmp_path: Path) -> None:
    folder = photos(tmp_path / "dog", "a.jpg", "b.jpg")
    (folder / "concept.toml").write_text('name = "rex"\nword = "dog"\ncaption = "a photo of rex"\n')
    (folder / "b.txt").write_text("rex\n  sleeping\n")
    concept = read_concept(folder)
    assert (concept.name, concept.word, concept.caption) == ("rex", "dog", "a photo of rex")
    assert [example.caption for example in concept.examples] == ["a photo of rex", "rex sleeping"]
    assert concept.left_out == ()


def test_explicit_arguments_win(tmp_path: Path) -> None:
    folder = photos(tmp_path / "dog", "a.jpg")
    (folder / "concept.toml").write_text('name = "rex"\nword = "dog"\ncaption = "a photo"\n')
    (folder / "a.txt").write_text("its own")
    concept = read_concept(folder, name="max", word="cat", caption="given")
    assert (concept.name, concept.word, concept.caption) == ("max", "cat", "given")
    assert concept.examples[0].caption == "given"


def test_concept_toml_is_strict(tmp_path: Path) -> None:
    settings = photos(tmp_path, "a.jpg") / "concept.toml"
    settings.write_text('nmae = "rex"\n')
    assert refused(tmp_path) == f"{settings}: unknown key 'nmae'; the keys are name, word, caption"
    settings.write_text("word = 3\n")
    assert "word must be a text" in refused(tmp_path)
    settings.write_text("word = \n")
    assert "is not TOML" in refused(tmp_path)
    settings.write_bytes(b'word = "\xff"')
    assert "is not UTF-8" in refused(tmp_path)


def test_metadata_gives_captions(tmp_path: Path) -> None:
    photos(tmp_path, "a.jpg", "b.jpg")
    metadata = tmp_path / "metadata.jsonl"
    metadata.write_text('{"file_name": "b.jpg", "caption": "ein süßer Hund", "more": 1}\n\n', encoding="utf-8")
    concept = read_concept(tmp_path)
    assert [example.caption for example in concept.examples] == [None, "ein süßer Hund"]
    assert read_concept(tmp_path / "b.jpg").examples[0].caption == "ein süßer Hund"
    for line in ('{"file_name": "b.jpg"}', "b.jpg: a dog", '["b.jpg"]'):
        metadata.write_text(f"\n{line}\n")
        assert "line 2 is not an object with file_name and caption" in refused(tmp_path)
    metadata.write_text('{"file_name": "z.jpg", "caption": "gone"}\n')
    assert "names z.jpg, which is not there" in refused(tmp_path)
    metadata.write_text('{"file_name": "b.jpg", "caption": null}\n')
    assert "a caption that is no text" in refused(tmp_path)


# Masks


def test_mask_beside_the_picture(tmp_path: Path) -> None:
    mask = np.zeros((80, 100), np.uint8)
    mask[20:60] = 255
    example = read_concept(masked(tmp_path, mask)).examples[0]
    assert example.mask == tmp_path / "masks" / "a.png"
    assert not example.alpha and example.notes == ()


def test_smaller_mask_of_the_same_shape_is_fine(tmp_path: Path) -> None:
    assert read_concept(masked(tmp_path, np.full((27, 33), 255, np.uint8))).examples[0].mask is not None


def test_masks_that_cannot_be_used(tmp_path: Path) -> None:
    line = refused(masked(tmp_path / "shape", np.full((100, 80), 255, np.uint8)))
    assert line.startswith(f"{tmp_path / 'shape' / 'a.jpg'}: its mask {tmp_path / 'shape' / 'masks' / 'a.png'}: ")
    assert "another shape (80x100, the picture is 100x80)" in line
    assert "black everywhere" in refused(masked(tmp_path / "black", np.zeros((80, 100), np.uint8)))
    folder = masked(tmp_path / "broken", np.full((80, 100), 255, np.uint8))
    truncate(folder / "masks" / "a.png")
    assert "its mask" in refused(folder) and "damaged" in refused(folder)


def test_own_alpha_is_the_mask_unless_there_is_a_file(tmp_path: Path) -> None:
    cut_out = np.dstack([PHOTO, np.where(np.arange(100) < 50, 255, 0).astype(np.uint8)[None].repeat(80, 0)])
    save_image(tmp_path / "a.png", cut_out)
    example = read_concept(tmp_path).examples[0]
    assert example.alpha and example.mask is None and example.notes == ()
    save_image(tmp_path / "masks" / "a.png", np.full((80, 100), 255, np.uint8))
    example = read_concept(tmp_path).examples[0]
    assert not example.alpha and example.mask is not None


def test_transparent_everywhere(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", np.dstack([PHOTO, np.zeros((80, 100), np.uint8)]))
    assert "transparent everywhere" in refused(tmp_path)


# What is left out, and what cannot be


def test_other_files_are_left_out_with_a_reason(tmp_path: Path) -> None:
    photos(tmp_path, "a.jpg")
    (tmp_path / "README.txt").write_text("about these photos")
    (tmp_path / "photo.heic").write_bytes(b"x")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    (tmp_path / "._a.jpg").write_bytes(b"x")
    (tmp_path / "old").mkdir()
    save_image(tmp_path / "masks" / "gone.png", PHOTO)
    concept = read_concept(tmp_path)
    assert [example.path.name for example in concept.examples] == ["a.jpg"]
    assert {entry.path.name: entry.why for entry in concept.left_out} == {
        "README.txt": "neither a picture nor a clip by its name",
        "photo.heic": "neither a picture nor a clip by its name",
        "old": "a folder; only masks/ is looked into",
        "gone.png": "a mask is named after its picture, NAME.png; this one is not",
    }


def test_both_kinds(tmp_path: Path) -> None:
    photos(tmp_path, "a.jpg")
    clip = save_clip(tmp_path / "b.mp4", greys([10, 20]), [0, 40])
    assert "holds both pictures and clips; say which with a subject or a motion method" in refused(tmp_path)
    concept = read_concept(tmp_path, kind="image")
    assert [example.path.name for example in concept.examples] == ["a.jpg"]
    assert concept.left_out == (LeftOut(clip, "not one of the pictures that are asked for"),)
    assert read_concept(tmp_path, kind="clip").examples[0].path == clip
    truncate(tmp_path / "a.jpg")  # broken, but not asked for
    assert read_concept(tmp_path, kind="clip").kind == "clip"


def test_nothing_to_learn_from(tmp_path: Path) -> None:
    assert "holds no pictures or clips" in refused(tmp_path)
    (tmp_path / "notes.md").write_text("x")
    line = refused(tmp_path, kind="image")
    assert line.startswith(f"{tmp_path}: holds no pictures; a subject needs pictures (.jpeg, .jpg, .png, .webp)")
    assert line.endswith("Left out: notes.md (neither a picture nor a clip by its name), 1 in all")
    with pytest.raises(BadMedia):
        read_concept(tmp_path)


def test_missing_or_foreign_path(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "dgo")
    (tmp_path / "a.pdf").write_bytes(b"x")
    assert "cannot be used" in refused(tmp_path / "a.pdf")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("truncated.jpg", "damaged"),
        ("empty.jpg", "is empty"),
        ("text.png", "is not a picture"),
        ("zero.mp4", "holds no frames"),
        ("sound.mp4", "holds only sound"),
    ],
)
def test_a_broken_file_is_an_error_and_not_dropped(tmp_path: Path, name: str, said: str) -> None:
    path = tmp_path / name
    if name == "truncated.jpg":
        truncate(save_image(path, PHOTO))
    elif name == "empty.jpg":
        path.touch()
    elif name == "text.png":
        path.write_text("this is no picture")
    elif name == "zero.mp4":
        save_without_frames(path)
    else:
        save_sound(path)
    photos(tmp_path, "good.jpg")
    line = refused(tmp_path)
    assert line.startswith(f"{path}: ") and said in line


def test_an_unreadable_file_is_an_error(tmp_path: Path) -> None:
    photos(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "b.jpg").chmod(0)
    code = """
try:
    read_concept(".")
except BadMedia as error:
    print(error)
"""
    assert as_nobody(tmp_path, code) == "b.jpg: cannot be read (Permission denied); check its name and permissions"


def test_several_broken_files_make_one_line(tmp_path: Path) -> None:
    photos(tmp_path, "a.jpg", "b.jpg", "c.jpg", "d.jpg")
    for name in ("b.jpg", "c.jpg", "d.jpg"):
        (tmp_path / name).write_bytes(b"")
    line = refused(tmp_path)
    assert line.startswith(f"{tmp_path / 'b.jpg'}: is empty")
    assert line.endswith(f"(and 2 more; `dreamvideo inspect {tmp_path}` lists them)")
    found = survey(tmp_path)
    assert [example.path.name for example in found.examples] == ["a.jpg"]
    assert [problem.path.name for problem in found.problems] == ["b.jpg", "c.jpg", "d.jpg"]
    assert found.problems[0].why == "is empty; put a whole copy in its place"


# Odd files that are used, with a note


def test_odd_pictures_are_used(tmp_path: Path) -> None:
    save_image(tmp_path / "1 dot.png", np.full((1, 1, 3), 9, np.uint8))
    Image.fromarray(PHOTO).convert("CMYK").save(tmp_path / "2 ink.jpg")
    save_image(tmp_path / "3 deep.png", np.full((80, 100), 40000, np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    save_image(tmp_path / "4 süß 犬.jpg", PHOTO, exif=exif)
    examples = read_concept(tmp_path).examples
    assert [(example.width, example.height) for example in examples] == [(1, 1), (100, 80), (100, 80), (80, 100)]
    assert examples[0].notes == (UNMASKED, "1x1 is smaller than 64 pixels: it is enlarged")
    assert all(example.notes == (UNMASKED,) for example in examples[1:])
    assert examples[3].path.name == "4 süß 犬.jpg"


def test_a_mask_fits_the_rotated_photo(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    save_image(tmp_path / "a.jpg", PHOTO, exif=exif)
    save_image(tmp_path / "masks" / "a.png", np.full((100, 80), 255, np.uint8))
    assert read_concept(tmp_path).examples[0].mask is not None


def test_odd_clips_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concept_module, "FRAME_LIMIT", 6)
    frames = greys(list(range(20, 180, 20)), 64, 64)
    save_clip(tmp_path / "1.mp4", frames, [0, 40, 80, 120, 280, 440, 600, 760])
    save_clip(tmp_path / "2.mp4", frames[:1], [0])
    examples = read_concept(tmp_path).examples
    assert examples[0].notes == ("variable frame rate, read at 9.211 fps", "only the first 6 frames are used")
    assert examples[1].notes == ("one frame: nothing moves",)


# A file, a list


def test_one_file(tmp_path: Path) -> None:
    photos(tmp_path, "my dog.jpg", "other.jpg")
    (tmp_path / "concept.toml").write_text('name = "the folder"\n')
    (tmp_path / "my dog.txt").write_text("a dog")
    concept = read_concept(tmp_path / "my dog.jpg")
    assert concept.name == "my dog"
    assert [(example.path.name, example.caption) for example in concept.examples] == [("my dog.jpg", "a dog")]


def test_official_list(tmp_path: Path) -> None:
    photos(tmp_path / "data", "a.jpg", "b.jpg")
    save_image(tmp_path / "data" / "masks" / "a.png", np.full((80, 100), 255, np.uint8))
    names = tmp_path / "train dog.txt"
    names.write_text(f"\ufeffdata/b.jpg|||a * sleeping\n\n{tmp_path / 'data' / 'a.jpg'}|||a *\n", encoding="utf-8")
    concept = read_concept(names)
    assert concept.name == "train dog"
    assert [(example.path.name, example.caption) for example in concept.examples] == [
        ("b.jpg", "a * sleeping"),
        ("a.jpg", "a *"),
    ]
    assert concept.examples[1].mask is not None


def test_lists_that_are_wrong(tmp_path: Path) -> None:
    names = tmp_path / "list.txt"
    names.write_text("gone.jpg|||a dog\n")
    assert "gone.jpg: cannot be read (No such file" in refused(names)
    names.write_text("gone.jpg a dog\n")
    assert "line 1 is not `file|||caption`" in refused(names)
    names.write_text("\n")
    assert "holds no pictures or clips" in refused(names)


def test_survey_never_fails_on_broken_files(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    (tmp_path / "b.webp").write_text("no")
    save_sound(tmp_path / "c.mp4")
    (tmp_path / "d.png").symlink_to(tmp_path / "nowhere.png")
    found = survey(tmp_path)
    assert found.examples == () and found.name == tmp_path.name
    assert [problem.path.name for problem in found.problems] == ["a.jpg", "b.webp", "c.mp4", "d.png"]
    assert all(problem.why and str(tmp_path) not in problem.why for problem in found.problems)


@pytest.mark.skipif("DREAMVIDEO_SHARED" not in os.environ, reason="DREAMVIDEO_SHARED names no folder of real files")
def test_real_folders() -> None:
    data = Path(os.environ["DREAMVIDEO_SHARED"]) / "data"
    dog = read_concept(data / "dog", word="dog")
    assert dog.kind == "image" and len(dog.examples) == 6 and all(example.mask for example in dog.examples)
    motion = read_concept(data / "motion")
    assert [(example.frames, round(example.fps or 0)) for example in motion.examples] == [(32, 20), (91, 30)]
