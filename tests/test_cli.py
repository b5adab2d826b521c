"""The command line, in this process: what it prints, what it leaves, with which code it ends."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet3DConditionModel

from dreamvideo import bases, official
from dreamvideo.adapters import file
from dreamvideo.bundled import EXAMPLES, bundled
from dreamvideo.errors import Unsupported


@pytest.fixture
def learned(run, dog: Path, turn: Path) -> tuple[str, str]:
    """Files of a subject and of a motion, learned by the commands in two steps a stage."""
    for words in (
        ("subject", dog, "--word", "dog", "--steps", 2),
        ("motion", turn, "--caption", "a car turning", "--steps", 2),
    ):
        code, out, err = run(*words)
        assert code == 0, err
        assert "runs/" in out
    return "runs/dog/dog.safetensors", "runs/turn/turn.safetensors"


def test_the_whole_story(run, learned: tuple[str, str], dog: Path):
    subject, motion = learned
    options = ["--steps", 2, "--seed", 3, "--count", 2, "--out", "made/video.mp4", "--appearance", dog / "0.png"]
    code, out, err = run("generate", "a <dog> turning", "--subject", f"{subject}:0.5..1", "--motion", motion, *options)
    assert code == 0, err
    assert out.split() == ["made/video.mp4", "made/video-2.mp4"]
    first, second = (Path(name).read_bytes() for name in out.split())
    assert first != second
    code, out, _ = run("generate", "--from", "made/video-2.mp4.json", "--out", "again.mp4", "--json")
    assert (code, json.loads(out)) == (0, {"videos": ["again.mp4"]})
    assert Path("again.mp4").read_bytes() == second


@pytest.mark.parametrize("name", ["video.gif", "video.webp", "frames"])
def test_every_form_of_video(run, name: str):
    code, out, err = run("generate", "a dog", "--steps", 1, "--frames", 2, "--out", name)
    assert (code, out.strip()) == (0, name), err
    assert Path(name).is_dir() == (name == "frames")
    assert json.loads(Path(name + ".json").read_text())["prompt"] == "a dog"


def test_settings_reach_the_recipe_and_wrong_ones_are_refused(run, dog: Path):
    common = ["subject", dog, "--word", "dog", "--steps", 1]
    code, _, err = run(*common, "--set", "method.vectors=3", "--set", "train.batch=2", "--recipe", "official")
    assert code == 0, err
    recipe = Path("runs/dog/recipe.toml").read_text()
    assert "vectors = 3" in recipe
    assert "batch = 2" in recipe
    assert "dropout = 0.1" in recipe
    before = Path("runs/dog/dog.safetensors").read_bytes()
    for words, message in (
        (["--set", "method.vecters=3"], "did you mean vectors"),
        (["--set", "train.batch=four"], "train.batch"),
        (["--set", "batch"], "section.field=value"),
        (["--recipe", "fast"], "official, paper"),
        (["--method", "dreamvideo-subjekt"], "did you mean dreamvideo-subject"),
        (["--set", "train.seed=5"], "holds a run of another recipe"),
    ):
        code, out, err = run(*common, *words)
        lines = [line for line in err.splitlines() if line.startswith("dreamvideo: ")]
        assert (code, out) == (2, "")
        assert len(lines) == 1
        assert message in lines[0]
    assert Path("runs/dog/dog.safetensors").read_bytes() == before
    code, _, err = run(*common, "--set", "train.seed=5", "--restart")
    assert code == 0, err
    assert Path("runs/dog/dog.safetensors").read_bytes() != before


def test_a_paper_names_its_method_for_either(run, dog: Path, turn: Path):
    for words, method in (
        (["subject", dog, "--word", "dog", "--method", "lora"], "lora-subject"),
        (["motion", turn, "--caption", "a car", "--method", "dreamvideo"], "dreamvideo-motion"),
    ):
        code, out, err = run(*words, "--steps", 1, "--json")
        assert (code, json.loads(out)["method"]) == (0, method), err
    code, _, err = run("motion", turn, "--caption", "a car", "--method", "animatediff", "--out", "other")
    assert code == Unsupported.exit_code
    assert err.strip().endswith("base emojiworld has no time parameters named *.motion_modules.*")
    code, _, err = run("motion", turn, "--caption", "a car", "--method", "dreamix-motion")
    assert (code, "there is no method 'dreamix-motion'" in err) == (2, True)


def test_bad_input_is_one_line_and_code_2(run, dog: Path, turn: Path, tmp_path: Path):
    broken = tmp_path / "photos"
    broken.mkdir()
    (broken / "a.jpg").write_bytes(b"no picture")
    for words, message in (
        (["subject", broken, "--word", "dog"], "a.jpg"),
        (["subject", tmp_path / "nowhere", "--word", "dog"], "nowhere"),
        (["subject", dog], "--word"),
        (["motion", turn], "--caption"),
        (["motion", dog, "--caption", "a dog"], "dog"),
        (["generate"], "either a prompt or --from"),
        (["generate", "a dog", "--subject", "nowhere.safetensors"], "nowhere.safetensors"),
        (["generate", "a dog", "--base", "nowhere"], "nowhere"),
        (["generate", "--from", "nowhere.json"], "nowhere.json"),
        (["generate", "a dog", "--out", "video.xyz", "--steps", 1], ".xyz"),
        (["inspect", "nowhere"], "nowhere"),
    ):
        code, out, err = run(*words)
        lines = [line for line in err.splitlines() if line.startswith("dreamvideo: ")]
        assert (code, out, len(lines)) == (2, "", 1), (words, err)
        assert message in lines[0]


def test_a_concept_of_another_base_is_refused_with_both_names(run, learned: tuple[str, str]):
    code, _, err = run("generate", "a <dog>", "--subject", learned[0], "--base", "tiny-animatediff")
    assert code == 2
    assert "emojiworld (unet3d)" in err
    assert "tiny-animatediff (animatediff)" in err


def test_inspect_shows_each_thing(run, learned: tuple[str, str], dog: Path, turn: Path, tmp_path: Path):
    bases.load("tiny").save(tmp_path / "base")
    (dog / "notes.xyz").write_text("")
    for thing, words in (
        (dog, ["0.png", "masks", "notes.xyz", "left out"]),
        (turn, ["6", "8.0", "sampled"]),
        (learned[0], ["dreamvideo concept", "identity", "word"]),
        (tmp_path / "base", ["UNet3DConditionModel", "vae"]),
    ):
        code, out, err = run("inspect", thing)
        assert code == 0, err
        assert all(word in out for word in words), out
        code, out, _ = run("inspect", thing, "--json")
        assert isinstance(json.loads(out), dict)
    (dog / "notes.xyz").unlink()


def test_inspect_lists_what_is_broken(run, tmp_path: Path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"no picture")
    code, out, _ = run("inspect", tmp_path / "photos")
    assert code == 2
    assert "problems" in out
    assert "a.jpg" in out


def test_to_the_official_files_and_back(run, dog: Path, turn: Path):
    steps = ["--base", "tiny", "--steps", 2]
    assert run("subject", dog, "--word", "dog", *steps)[0] == 0
    assert run("motion", turn, "--caption", "a car turning", *steps)[0] == 0
    subject, motion = "runs/dog/dog.safetensors", "runs/turn/turn.safetensors"
    code, out, err = run("convert", subject, "--to", "official", "--out", "vgen", "--layers", 1)
    assert code == 0, err
    names = out.split()
    assert [Path(name).name for name in names] == ["dog_adapter_00000002.pth", "text_embedding_of_dog_0000002.pth"]
    code, out, err = run("convert", *names, "--out", "back/dog.safetensors", "--layers", 1, "--word", "dog")
    assert code == 0, err
    ours, back = file.load(subject), file.load("back/dog.safetensors")
    assert back.sets.keys() == ours.sets.keys()
    for label, adapters in ours.sets.items():
        theirs = back.sets[label].state_dict()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in adapters.state_dict().items())
    code, _, err = run("generate", "a <dog>", "--base", "tiny", "--subject", "back/dog.safetensors", "--steps", 1)
    assert code == 0, err
    code, out, err = run("convert", motion, "--to", "official", "--out", "vgen", "--layers", 1)
    assert code == 0, err
    assert official.describe(out.strip())["format"] == "official motion adapter"
    code, out, err = run("convert", subject, "--to", "diffusers", "--out", "dog-word.safetensors")
    assert code == 0, err
    assert official.describe("dog-word.safetensors")["format"] == "textual inversion (diffusers)"


def test_a_unet_to_the_official_file_and_back(run, tmp_path: Path):
    bases.load("tiny").save(tmp_path / "base")
    code, out, err = run("convert", tmp_path / "base", "--to", "official", "--out", "unet.pth")
    assert (code, out.strip()) == (0, "unet.pth"), err
    code, _, err = run("convert", "unet.pth", "--to", "diffusers", "--out", "back")
    assert code == 0, err
    before, after = (
        UNet3DConditionModel.from_pretrained(folder, subfolder="unet").state_dict()
        for folder in (tmp_path / "base", "back")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_demo_makes_a_page_with_every_video(run, tmp_path: Path):
    code, out, err = run("demo", "--base", "tiny", "--steps", 1)
    assert code == 0, err
    page = Path(out.strip()).read_text()
    shown = re.findall(r'src="([^"]+)"', page)
    assert len(shown) == 5 + 3 + 3 * 4
    assert all((tmp_path / "demo" / name).stat().st_size > 0 for name in shown)
    assert "random weights" in page


def test_any_video_is_scored(run, dog: Path, turn: Path):
    subject, other = EXAMPLES / "subjects" / "fox", EXAMPLES / "motions" / "diving" / "0.mp4"
    words = ["score", turn, "--prompt", "a car turning", "--references", subject, "--base", "emojiworld"]
    code, out, err = run(*words, "--reference-clip", turn, "--json")
    assert code == 0, err
    scores = {one["name"]: one for one in json.loads(out)["scores"]}
    assert scores.keys() == {
        "CLIP-T", "CLIP-I", "DINO-I", "Leak", "Temporal consistency", "Motion degree", "Motion fidelity"
    }  # fmt: skip
    assert scores["CLIP-T"]["protocol"]["encoder"] == "emojiworld-clip"
    assert scores["Leak"]["value"] == pytest.approx(1, abs=1e-5)  # the video is the clip
    assert scores["Motion fidelity"]["value"] == pytest.approx(1, abs=1e-5)
    code, out, err = run("score", turn, "--reference-clip", other)
    assert code == 0, err
    assert [line.split("  ")[0] for line in out.splitlines()] == ["Motion degree", "Motion fidelity"]


def test_frames_in_a_folder_are_scored(run, dog: Path):
    assert run("generate", "a dog", "--base", "tiny", "--steps", 1, "--frames", 3, "--out", "frames")[0] == 0
    code, out, err = run("score", "frames", "--references", dog, "--base", "emojiworld", "--json")
    assert code == 0, err
    assert {one["name"] for one in json.loads(out)["scores"]} >= {"DINO-I", "Temporal consistency", "Motion degree"}


@pytest.mark.parametrize(
    "words, message",
    [
        (["--base", "nowhere"], "nowhere: has no card"),
        (["--clip", EXAMPLES], "no CLIP"),
        (["--dino", bundled()["emojiworld"].parent / "emojiworld-clip"], "no DINO"),
        (["--lpips", EXAMPLES], "alexnet"),
        (["--references", "nowhere"], "nowhere"),
        (["--reference-clip", EXAMPLES / "subjects" / "fox"], "fox"),
    ],
)
def test_what_cannot_be_scored_is_one_line(run, turn: Path, words: list[object], message: str):
    code, out, err = run("score", turn, *words)
    lines = [line for line in err.splitlines() if line.startswith("dreamvideo: ")]
    assert (code, out, len(lines)) == (2, "", 1), err
    assert message in lines[0]


def test_lists_and_help_do_without_torch():
    """`bases`, `methods`, `metrics`, `inspect FOLDER` and --help import neither torch nor diffusers."""
    script = (
        "import sys; from dreamvideo import cli\n"
        "lists = (['bases'], ['methods', '--json'], ['metrics'], ['edits'])\n"
        "for words in (['--help'], ['generate', '--help'], ['edit', '--help'], *lists, ['inspect', '.']):\n"
        "    sys.argv = ['dreamvideo', *words]\n"
        "    try: cli.main()\n"
        "    except SystemExit as ended: assert not ended.code, (words, ended.code)\n"
        "heavy = {'torch', 'diffusers', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parent)
    assert done.returncode == 0, done.stderr


def test_doctor_looks_at_this_machine(run):
    code, out, _ = run("doctor", "--json")
    found = {finding["what"]: finding for finding in json.loads(out)}
    assert code == 0
    assert found["torch"]["found"] == torch.__version__
    assert all(finding["fine"] or finding["remedy"] for finding in found.values())


def test_the_benchmark_from_the_command_line(run, tmp_path: Path):
    code, out, err = run("bench", "list", "--json")
    assert code == 0, err
    assert {"emoji-small", "emoji-full", "paper"} <= {row["name"] for row in json.loads(out)}
    suite = tmp_path / "one.toml"
    suite.write_text(
        """
        summary = "Nothing learned."
        base = "tiny"
        sampling = { frames = 2, steps = 1 }
        [comparisons.base]
        title = "The base"
        prompts = ["a dog"]
        entries.base = {}
        """
    )
    code, out, err = run("bench", "report", suite)
    assert (code, "bench run" in err) == (2, True)
    code, out, err = run("bench", "run", suite, "--json")
    told = {"suite": "one", "cells": 1, "there": 1, "failed": {}, "missing": {}}
    assert (code, json.loads(out)) == (0, told), err
    assert "1 of 1 cells" in err
    code, out, err = run("bench", "report", suite, "--json")
    assert code == 0, err
    assert all(Path(file).is_file() for file in json.loads(out)["files"])
    code, out, err = run("bench", "fetch", suite)
    assert (code, "needs no outside data" in out) == (0, True), err
    code, out, err = run("bench", "fetch", "paper")
    assert code == 0, err
    assert "missing  motions/playing-guitar" in out
    assert "https://www.crcv.ucf.edu/data/UCF101.php" in out


def test_what_was_learned_is_looked_into(run, dog: Path, turn: Path):
    saved = ["--set", "train.save_every=1"]
    assert run("motion", turn, "--caption", "a car turning", "--method", "lora", "--steps", 2, *saved)[0] == 0
    code, out, err = run("analyze", "weights", "runs/turn/turn.safetensors", "--json")
    assert code == 0, err
    (means,) = json.loads(out)["means"].values()
    assert set(means) == {"self-attention"}
    assert all(Path(file).is_file() for file in json.loads(out)["files"])
    code, out, err = run("analyze", "attention", "a fox in the snow", "--word", "fox", "--steps", 2, "--json")
    assert code == 0, err
    files = [Path(file) for file in json.loads(out)["files"]]
    assert [file.name for file in files] == ["attention.npz", "attention.csv", "attention.png", "attention.mp4"]
    kept = np.load(files[0])
    assert kept["maps"].shape[:2] == (2, len(kept["frames"]))
    assert len(files[1].read_text().splitlines()) == 1 + 2 * len(kept["frames"])
    words = ["--motion", "runs/turn", "--motion-weight", 0.5, "--motion-weight", 1, "--reference-clip", turn]
    code, out, err = run("grid", "a dog turning", *words, "--steps", 1)
    assert code == 0, err
    assert "best of 4: turn, step" in out
    assert Path("grid/sheet.png").is_file()
