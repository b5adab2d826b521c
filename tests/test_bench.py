"""A suite makes what is missing of it, whoever does the work; its report has all that was made."""

import base64
import csv
import importlib.util
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import psutil
import pytest

from dreamvideo import catalogue, media, methods, scoring
from dreamvideo.bench import manifest, results, runner, suite
from dreamvideo.bench.diversity import diverse
from dreamvideo.bench.orders import Order, orders
from dreamvideo.bench.plan import Plan, plan
from dreamvideo.bench.report import write
from dreamvideo.bench.results import Store
from dreamvideo.bench.statistics import Difference, Score, bootstrap, summarise
from dreamvideo.bench.suite import Material, Published, Source, Suite
from dreamvideo.bench.work import Task, attempt
from dreamvideo.bench.workers import LocalWorkers, Outcome, RayWorkers, Workers
from dreamvideo.bundled import DEFAULT_BASE, bundled, card
from dreamvideo.config import build, merged, read_toml, write_toml
from dreamvideo.errors import BadConfig, BadInput, MissingWeights
from dreamvideo.metrics.lpips import Lpips, LpipsDiversity
from dreamvideo.plots import Point, scatter

SUITE = """
summary = "A comparison that takes no time."
base = "tiny"
data = "{data}"
encoders = {encoders}
sampling = {{ frames = 2, steps = 2 }}

[learning.train]
steps = 1
batch = 1

[learners.narrow]
method = "lora-subject"
settings.method.rank = 2

[comparisons.joint]
title = "Joint"
subjects = ["dog"]
motions = ["turn"]
prompts = ["{{subject}} {{motion}} in the snow", "{{subject}} {{motion}} on the road"]
seeds = [0, 1]

[comparisons.joint.entries]
LoRA = {{ subject = "narrow", motion = "lora-motion" }}
"the subject" = {{ subject = "narrow" }}
"the base" = {{}}

[comparisons.joint.published]
table = "Tab. 1"
base = "ModelScopeT2V"
rows.LoRA = {{ "CLIP-T" = 0.286 }}
"""


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory, dog: Path, turn: Path) -> Path:
    folder = tmp_path_factory.mktemp("data")
    shutil.copytree(dog, folder / "subjects" / "dog")
    (folder / "subjects" / "dog" / "concept.toml").write_text('word = "animal"')
    (folder / "motions" / "turn").mkdir(parents=True)
    shutil.copy(turn, folder / "motions" / "turn" / "turn.mp4")
    (folder / "motions" / "turn" / "concept.toml").write_text('name = "turning"\ncaption = "a car turning"')
    return folder


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Suite:
    home = bundled()[DEFAULT_BASE]
    encoders = ", ".join(f'{name} = "{home / place}"' for name, place in card(home).encoders.items())
    file = tmp_path_factory.mktemp("suites") / "small.toml"
    file.write_text(SUITE.format(data=data, encoders=f"{{ {encoders} }}"))
    return suite.read(str(file))


class Here(Workers):
    """This process, for what is not about processes."""

    def __init__(self, size: int = 1) -> None:
        self.size, self.did, self._next = size, list[Task](), list[tuple[Task, Store]]()

    def start(self, task: Task, store: Store) -> None:
        self._next.append((task, store))

    def ended(self) -> Iterator[Outcome]:
        assert len(self._next) <= self.size
        for task, store in self._next:
            self.did.append(task)
            yield Outcome(task, refused=attempt(task, store))
        self._next = []

    def close(self) -> None: ...


@dataclass(frozen=True)
class Made:
    """A suite that was run once, in this process."""

    plan: Plan
    store: Store
    did: Sequence[Task]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, small: Suite) -> Made:
    planned, store, here = plan(small), Store(tmp_path_factory.mktemp("results")), Here(2)
    assert runner.run(planned.cells.values(), store, here) == {}
    results.write_rows(store.suite(small.name) / "plan.json", planned.rows)
    return Made(planned, store, here.did)


def _files(store: Store) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((store.folder / "cells").iterdir())}


# -- suites -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", suite.shipped())
def test_every_shipped_suite_is_sound(name: str) -> None:
    shipped = suite.read(name)
    assert shipped.size > 0
    for comparison in shipped.comparisons.values():
        if shipped.data is None:
            for folder in (
                *(f"subjects/{s}" for s in comparison.subjects),
                *(f"motions/{m}" for m in comparison.motions),
            ):
                assert (shipped.folder / folder).is_dir(), folder
        else:
            for folder in (
                *(f"subjects/{s}" for s in comparison.subjects),
                *(f"motions/{m}" for m in comparison.motions),
            ):
                assert shipped.material(folder) is not None, folder
        if comparison.published is not None:
            assert comparison.published.rows.keys() <= comparison.entries.keys()
        for entry in comparison.entries.values():
            for learner in filter(None, (entry.subject, entry.motion)):
                chosen = shipped.learner(learner)
                assert chosen.recipe in {None, *_recipes(chosen.method)}
                build(methods.find(chosen.method), chosen.settings.get("method", {}), where=f"{name}: {learner}")


def _recipes(method: str) -> tuple[str, ...]:
    return next(entry.recipes for entry in catalogue.methods() if entry.name == method)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"comparisons": {"joint": {"prompts": ["{subject} in the snow"]}}}, "must have in braces"),
        ({"comparisons": {"joint": {"prompts": ["{subject} {motion} {place}"]}}}, "must have in braces"),
        ({"comparisons": {"joint": {"prompts": ["{subject {motion}"]}}}, "prompt"),
        ({"comparisons": {"joint": {"prompts": []}}}, "no prompts"),
        ({"comparisons": {"joint": {"seeds": []}}}, "no seeds"),
        (
            {"comparisons": {"joint": {"entries": {"LoRA": {"subject": "lora-motion"}}}}},
            "neither in .learners. nor a subj",
        ),
        ({"comparisons": {"joint": {"entries": {"LoRA": {"subject": "nobody"}}}}}, "neither in .learners. nor a subj"),
        ({"comparisons": {"joint": {"entries": {"LoRA": {"subjekt": "narrow"}}}}}, "entries.LoRA.subjekt"),
        ({"comparisons": {"joint": {"subjects": [], "prompts": ["a car {motion}"]}}}, "has no subjects"),
        ({"sampeling": {}}, "did you mean sampling"),
    ],
)
def test_a_wrong_suite_is_refused(small: Suite, tmp_path: Path, data: Path, change: dict, message: str) -> None:
    values = read_toml(_written(small, tmp_path))
    write_toml(tmp_path / "wrong.toml", merged(values, change))
    with pytest.raises(BadConfig, match=message):
        suite.read(str(tmp_path / "wrong.toml"))


def _written(small: Suite, folder: Path) -> Path:
    file = folder / "right.toml"
    file.write_text(SUITE.format(data=small.data, encoders="{}"))
    assert suite.read(str(file)).comparisons == small.comparisons
    return file


def test_no_such_suite() -> None:
    with pytest.raises(BadConfig, match="there is no suite"):
        suite.read("nothing")


# -- plans ------------------------------------------------------------------------------------------------------------


def test_prompts_name_what_was_learned_and_metrics_the_class(made: Made) -> None:
    cells = {row.entry: made.plan.cells[row.key] for row in reversed(made.plan.rows)}
    assert {name: (cell.prompt, cell.plain) for name, cell in cells.items()} == {
        "LoRA": ("a <dog> turning in the snow", "an animal turning in the snow"),
        "the subject": ("a <dog> turning in the snow", "an animal turning in the snow"),
        "the base": ("an animal turning in the snow", "an animal turning in the snow"),
    }
    assert [len(cells[name].needs) for name in ("LoRA", "the subject", "the base")] == [2, 1, 0]


def test_keys_change_with_what_determines_the_result_alone(small: Suite, made: Made) -> None:
    def keys(changed: Suite) -> set[str]:
        return set(plan(changed).cells)

    joint, before = small.comparisons["joint"], set(made.plan.cells)
    assert keys(replace(small, name="other", summary="other")) == before
    assert keys(replace(small, comparisons={"again": replace(joint, title="Again")})) == before
    fewer = keys(replace(small, comparisons={"joint": replace(joint, seeds=(1,))}))
    assert fewer < before
    assert len(fewer) == len(before) / 2
    for other in (
        replace(small, sampling={**small.sampling, "steps": 3}),
        replace(small, encoders={"clip": small.encoders["clip"]}),
        replace(small, base="tiny-videocrafter"),
    ):
        assert not keys(other) & before
    learned = keys(replace(small, learning={"train": {"steps": 2, "batch": 1}})) & before
    assert learned == {row.key for row in made.plan.rows if row.entry == "the base"}


def test_an_entry_may_have_a_base_of_its_own(small: Suite, made: Made) -> None:
    joint = small.comparisons["joint"]
    entries = {"first": joint.entries["the base"], "images": suite.Entry(base="tiny-inflated"), **joint.entries}
    planned = plan(replace(small, comparisons={"joint": replace(joint, entries=entries)}))
    assert list(dict.fromkeys(row.entry for row in planned.rows)) == list(entries)
    bases = {row.entry: planned.cells[row.key].base.reference for row in planned.rows}
    assert bases == {name: "tiny-inflated" if name == "images" else "tiny" for name in entries}
    cells = {name: [row.key for row in planned.rows if row.entry == name] for name in entries}
    assert cells["first"] == cells["the base"]  # the same is asked of the same
    assert not set(cells["images"]) & set(cells["first"])
    assert made.plan.cells.keys() < planned.cells.keys()


def test_a_base_that_is_not_here_leaves_the_others(small: Suite, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    joint = small.comparisons["joint"]
    entries = {**joint.entries, "elsewhere": suite.Entry(base="nobody/has-this")}
    planned = plan(replace(small, comparisons={"joint": replace(joint, entries=entries)}))
    assert planned.rows == made.plan.rows
    assert planned.missing.keys() == {"nobody/has-this"}
    assert "nobody/has-this" in planned.missing["nobody/has-this"]
    with pytest.raises(MissingWeights, match="nobody/has-this"):
        plan(replace(small, base="nobody/has-this"))


# -- running ----------------------------------------------------------------------------------------------------------


def test_learning_is_shared_and_comes_first(made: Made) -> None:
    done: set[str] = set()
    for task in made.did:
        assert {need.key for need in task.needs} <= done
        done.add(task.key)
    # Twelve videos of three entries, but only one subject and one motion to learn.
    assert len(made.did) == len(done) == 12 + 2
    assert len(_files(made.store)) == 2 * 12


def test_a_cell_says_what_it_is(made: Made) -> None:
    row = made.plan.rows[0]
    cell = json.loads(made.store.cell(row.key).read_text())
    assert cell["scores"].keys() >= {"CLIP-T", "CLIP-I", "DINO-I", "Temporal consistency", "Motion fidelity"}
    assert cell["scores"].keys() <= cell["metrics"].keys()
    assert all(metric["protocol"] for metric in cell["metrics"].values())
    assert [(c["name"], c["role"], c["settings"]["rank"]) for c in cell["concepts"]] == [
        ("dog", "subject", 2),
        ("turning", "motion", 32),
    ]
    assert all(c["parameters"] > 0 for c in cell["concepts"])


def test_only_what_is_missing_is_made(made: Made, tmp_path: Path) -> None:
    store = Store(tmp_path / "copy")
    shutil.copytree(made.store.folder, store.folder)
    shutil.rmtree(store.folder / "learned")
    assert runner.run(made.plan.cells.values(), store, never := Here()) == {}
    assert never.did == []  # what is learned is not missed where every cell is there

    lost = next(row.key for row in made.plan.rows if row.entry == "the subject")
    before = _files(store)
    store.cell(lost).unlink()
    told: list[runner.Progress] = []
    assert runner.run(made.plan.cells.values(), store, here := Here(), on_progress=told.append) == {}
    assert [type(task).__name__ for task in here.did] == ["Learning", "Cell"]
    assert here.did[-1].key == lost
    assert [dict(progress.done) for progress in told] == [
        {"learning": (1, 1), "cell": (0, 1)},
        {"learning": (1, 1), "cell": (1, 1)},
    ]
    assert (told[0].seconds_left, told[-1].seconds_left) == (None, 0)
    assert _files(store) == before


def test_what_cannot_be_learned_fails_its_cells_alone(small: Suite, data: Path, tmp_path: Path) -> None:
    joint = small.comparisons["joint"]
    entries = {**joint.entries, "AnimateDiff": suite.Entry(motion="animatediff-motion")}
    asked = replace(small, comparisons={"joint": replace(joint, entries=entries, seeds=(0,))})
    planned, store = plan(asked), Store(tmp_path)
    failed = runner.run(planned.cells.values(), store, Here())
    assert failed.keys() == {row.key for row in planned.rows if row.entry == "AnimateDiff"}
    assert all("motion_modules" in why for why in failed.values())
    assert all(cell.done(store) for key, cell in planned.cells.items() if key not in failed)


@dataclass(frozen=True)
class Deadly(Task):
    """Kills its process the first `times` times."""

    key: str
    times: int
    alone: ClassVar[bool] = False

    @property
    def needs(self) -> Sequence[Task]:
        return ()

    def done(self, store: Store) -> bool:
        return store.cell(self.key).exists()

    def do(self, store: Store) -> None:
        store.cell(self.key).parent.mkdir(exist_ok=True)
        tries = store.folder / f"{self.key}.tries"
        before = len(tries.read_text()) if tries.exists() else 0
        tries.write_text("x" * (before + 1))
        if before < self.times:
            os.kill(os.getpid(), signal.SIGKILL)
        store.cell(self.key).write_text("{}")


def test_a_task_whose_process_dies_is_tried_again_so_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "TRIES", 2)
    store, told = Store(tmp_path), list[runner.Progress]()
    tasks = [Deadly("mild", 1), Deadly("fine", 0), Deadly("fatal", 99)]
    with LocalWorkers(2) as workers:
        failed = runner.run(tasks, store, workers, on_progress=told.append)
    assert failed == {"fatal": f"its process ended with code -9, {runner.TRIES} times"}
    assert {task.key for task in tasks if task.done(store)} == {"mild", "fine"}
    assert (tmp_path / "fatal.tries").read_text() == "x" * runner.TRIES
    assert sum(progress.trouble is not None for progress in told) == 1 + runner.TRIES
    assert multiprocessing.active_children() == []


def test_worker_processes_make_the_same_files(made: Made, tmp_path: Path) -> None:
    store = Store(tmp_path)
    cells = [made.plan.cells[row.key] for row in made.plan.rows if row.entry == "the subject"]
    with LocalWorkers(2) as workers:
        assert runner.run(cells, store, workers) == {}
    assert _files(store) == {name: data for name, data in _files(made.store).items() if name in _files(store)}
    assert len(_files(store)) == 2 * len(cells)


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra ray is not installed")
@pytest.mark.filterwarnings("ignore::FutureWarning:ray", "ignore::ResourceWarning", "ignore::DeprecationWarning:ray")
def test_ray_makes_the_same_files_though_a_worker_is_killed(made: Made, tmp_path: Path) -> None:
    store, killed, told = Store(tmp_path), [], []

    def kill(progress: runner.Progress) -> None:
        told.append(progress)
        for process in psutil.Process().children(recursive=True):
            if not killed and process.name().startswith("ray::attempt"):
                process.kill()
                killed.append(process.pid)

    with RayWorkers(2) as workers:
        assert runner.run(made.plan.cells.values(), store, workers, on_progress=kill) == {}
    assert len(killed) == sum(progress.trouble is not None for progress in told) == 1
    assert _files(store) == _files(made.store)


# -- statistics -------------------------------------------------------------------------------------------------------


def test_the_bootstrap_against_closed_cases() -> None:
    assert bootstrap([0.25] * 7) == (0.25, 0.25)
    # The mean of two draws from {0, 1} is 0 or 1 a quarter of the time each: more than 2.5 % on either side.
    assert bootstrap([0.0, 1.0]) == (0.0, 1.0)
    # The mean of n draws has the values' own standard deviation over sqrt(n); of many it is normal.
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    low, high = bootstrap(list(values))
    half = 1.959964 * values.std() / 400**0.5
    assert np.allclose([low, high], [values.mean() - half, values.mean() + half], atol=0.02 * half * 2)
    assert bootstrap(list(values)) == (low, high)


def test_a_summary_against_numbers_by_hand() -> None:
    ours = [Score("a", 0, 0.9), Score("a", 1, 0.7), Score("b", 0, 0.5), Score("b", 1, 0.5)]
    theirs = [Score("a", 0, 0.6), Score("a", 1, 0.6), Score("b", 0, 0.5), Score("b", 1, 0.5), Score("c", 0, 9.0)]
    summary = summarise(ours, theirs, higher_is_better=True)
    assert (summary.mean, summary.videos) == (pytest.approx(0.65), 4)
    assert summary.spread == pytest.approx(np.std([0.7, 0.6], ddof=1))
    difference = summary.difference
    assert (difference.mean, difference.units, difference.wins) == (pytest.approx(0.1), 2, 0.75)
    assert (difference.low, difference.high, difference.certain) == (pytest.approx(0.0), pytest.approx(0.2), False)
    assert summarise(ours, theirs, higher_is_better=False).difference.wins == 0.25
    better, worse = ([Score(unit, 0, value) for unit in range(6)] for value in (1.0, 0.5))
    assert summarise(better, worse, higher_is_better=True).difference.certain
    assert not summarise(better[:5], worse, higher_is_better=True).difference.certain, "too few to say so"
    assert summarise(ours, None, higher_is_better=True).difference is None
    assert summarise(ours[:1], [Score("z", 0, 1.0)], higher_is_better=True).spread is None
    assert summarise(ours[:1], [Score("z", 0, 1.0)], higher_is_better=True).difference is None


# -- the report -------------------------------------------------------------------------------------------------------


def test_the_page_has_every_video_and_needs_nothing_else(small: Suite, made: Made) -> None:
    files = write(small, made.store)
    page = files[0].read_text()
    figures = re.findall(r'<video [^>]*data-key="(\w+)"', page)
    assert figures != []
    assert sorted(figures) == sorted(row.key for row in made.plan.rows)
    videos = json.loads(re.search(r'<script id="videos" type="application/json">(.*?)</script>', page, re.S)[1])
    assert {key: base64.b64decode(text) for key, text in videos.items()} == {
        key: made.store.video(key).read_bytes() for key in made.plan.cells
    }
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert len(re.findall(r'alt="(?:dog|turn)"', page)) == 3 + 4  # what was learned from
    assert "encoder: emojiworld-clip" in page
    assert "on another base and other data: ModelScopeT2V" in page
    assert "0.286" in page
    tables = {"report.html", "report.md", "cells.csv", "summary.csv", "tables.tex"}
    assert {file.name for file in files} == {*tables, "joint.png", "joint-videos.png"}
    assert media.read_image(made.store.suite(small.name) / "joint.png").pixels.shape == (640, 1200, 3)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium here")
def test_a_browser_shows_the_page(small: Suite, made: Made, tmp_path: Path) -> None:
    page = write(small, made.store)[0]
    browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    options = ["--enable-logging=stderr", "--virtual-time-budget=3000", "--dump-dom", page.as_uri()]
    seen = subprocess.run([*browser, *options], capture_output=True, text=True, check=True, timeout=120)
    assert "CONSOLE" not in seen.stderr
    rows = re.findall("<details.*?</details>", seen.stdout, re.S)
    playing = [len(re.findall('<video [^>]*src="data:video/mp4;base64,', row)) for row in rows]
    assert playing == [6, 0]  # of the two prompts the first is open: three entries, two seeds


def test_the_tables_say_what_the_cells_say(small: Suite, made: Made) -> None:
    folder = write(small, made.store)[0].parent
    with (folder / "cells.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["cell"] for line in lines] == [row.key for row in made.plan.rows]
    for line in lines:
        scores = json.loads(made.store.cell(line["cell"]).read_text())["scores"]
        assert {name: float(line[name]) for name in scores} == scores
    with (folder / "summary.csv").open() as file:
        summary = {(line["entry"], line["metric"]): line for line in csv.DictReader(file)}
    mean = np.mean([float(line["CLIP-T"]) for line in lines if line["entry"] == "the base"])
    first = np.mean([float(line["CLIP-T"]) for line in lines if line["entry"] == "LoRA"])
    line = summary["the base", "CLIP-T"]
    assert float(line["mean"]) == pytest.approx(mean)
    assert float(line["difference"]) == pytest.approx(mean - first)
    assert float(line["difference_low"]) <= mean - first <= float(line["difference_high"])
    assert summary["LoRA", "CLIP-T"]["difference"] == ""
    assert f"{mean:.3f}" in (folder / "tables.tex").read_text()


def test_the_markdown_page_says_what_the_summary_says(small: Suite, made: Made) -> None:
    folder = write(small, made.store)[0].parent
    page = (folder / "report.md").read_text()
    with (folder / "summary.csv").open() as file:
        for line in csv.DictReader(file):
            (row,) = re.findall(rf"^\| {line['entry']} \| .*$", page, re.M)
            assert f" {float(line['mean']):.3f}" in row
            if line["difference"]:
                assert f"{float(line['difference']):+.3f} [" in row
    assert re.findall(r"^\| LoRA .*\| 2 \| [\d,]+ \| \d+ \| \d+ \|$", page, re.M), "a step for either half"
    assert "| *LoRA, as published (Tab. 1, ModelScopeT2V)* |" in page
    assert [name for name in re.findall(r"!\[.*\]\((.*)\)", page) if not (folder / name).is_file()] == []


def test_the_contact_sheet_shows_every_entry(small: Suite, made: Made) -> None:
    folder = write(small, made.store)[0].parent
    sheet = media.read_image(folder / "joint-videos.png").pixels
    keys = {(row.entry, row.prompt): row.key for row in made.plan.rows if row.seed == 0}
    assert len(keys) == 3 * 2
    for key in keys.values():
        frame = media.read_clip(made.store.video(key), size=(64, 64)).frames[0]
        places = np.lib.stride_tricks.sliding_window_view(sheet[:, :, 0], (64, 64))
        corners = np.argwhere((places[:, :, ::63, ::63] == frame[::63, ::63, 0]).all(axis=(2, 3)))
        assert any((sheet[y : y + 64, x : x + 64] == frame).all() for y, x in corners), key


def test_a_published_order_holds_or_not(made: Made, small: Suite) -> None:
    (table,) = results.tables(made.plan.rows, made.store)
    published = Published(
        table="Tab. 1", base="x", rows={"LoRA": {"CLIP-T": 0.3}, "the base": {"CLIP-T": 0.2}, "other": {"CLIP-T": 1}}
    )
    (order,) = orders(table, published)
    assert (order.metric, order.entry, order.published) == ("CLIP-T", "the base", pytest.approx(-0.1))
    assert order.measured == table.summaries["the base"]["CLIP-T"].difference
    assert list(orders(table, None)) == []

    def verdict(published: float, low: float, high: float) -> str:
        return Order("CLIP-T", "x", published, Difference((low + high) / 2, low, high, 0.5, 9)).verdict

    assert verdict(-0.1, -0.3, -0.1) == verdict(0.1, 0.1, 0.2) == "holds"
    assert verdict(-0.1, 0.1, 0.2) == verdict(0.1, -0.3, -0.1) == "reversed"
    assert verdict(0.1, -0.1, 0.2) == verdict(0.0, 0.1, 0.2) == "open"


def test_a_report_of_a_part_says_so(small: Suite, made: Made, tmp_path: Path) -> None:
    store = Store(tmp_path)
    shutil.copytree(made.store.suite(small.name), store.suite(small.name))
    with pytest.raises(BadInput, match="no cell of small is there yet"):
        write(small, store)
    (tmp_path / "cells").mkdir()
    for key in [row.key for row in made.plan.rows][:3]:
        shutil.copy(made.store.cell(key), store.cell(key))
        shutil.copy(made.store.video(key), store.video(key))
    page = write(small, store)[0].read_text()
    assert "9 cells are missing" in page
    assert len(re.findall("<video ", page)) == 3
    with pytest.raises(BadInput, match="bench run"):
        write(replace(small, name="never-run"), store)


def test_a_plot_shows_every_point(tmp_path: Path) -> None:
    points = {"one": Point(0.1, 0.2, 0.01, 0.02), "another": Point(0.3, 0.1)}
    image = media.read_image(scatter(tmp_path / "plot.png", points, x="x", y="y")).pixels
    for colour in ((0, 114, 178), (213, 94, 0)):
        assert (image == colour).all(axis=-1).sum() > 200
    scatter(tmp_path / "one.png", {"one": Point(0.1, 0.2)}, x="x", y="y")  # no extent at all


def test_diversity_is_measured_where_seeds_meet(small: Suite, made: Made, lpips: Path, tmp_path: Path) -> None:
    store, rng = Store(tmp_path / "copy"), np.random.default_rng(0)
    shutil.copytree(made.store.folder, store.folder)
    for key in made.plan.cells:  # LPIPS sees nothing in pictures as small as the tiny base's
        media.write_video(store.video(key), rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8), fps=8)
    (before,) = results.tables(made.plan.rows, store)
    metric = LpipsDiversity(Lpips.load(lpips))
    (table,) = results.tables(made.plan.rows, store, more=partial(diverse, store=store, metric=metric))
    assert table.metrics == {**before.metrics, "LPIPS diversity": True}
    rows = [row for row in made.plan.rows if row.entry == "the base"][:2]
    assert [row.seed for row in rows] == [0, 1]
    one, other = (scoring.read_video(store.video(row.key))[0] for row in rows)
    expected = float(metric.distance(one, other).mean())
    found = {result.row: result.cell["scores"]["LPIPS diversity"] for result in table.results}
    assert [found[row] for row in rows] == pytest.approx([expected, expected])
    assert expected > 0
    alone = [result for result in before.results if result.row.seed == 0]
    assert diverse(alone, store, metric)[0].cell["scores"] == before.results[0].cell["scores"]
    page = write(replace(small, encoders={**small.encoders, "lpips": str(lpips)}), store)[0].read_text()
    assert "LPIPS diversity ↑" in page
    entry = replace(small.comparisons["joint"], entries={**small.comparisons["joint"].entries, "gone": suite.Entry()})
    assert "base was not here: gone." in write(replace(small, comparisons={"joint": entry}), store)[0].read_text()


# -- outside data -----------------------------------------------------------------------------------------------------


def test_the_manifest_is_held_against_what_is_there(small: Suite, data: Path) -> None:
    def found(place: str, **changes: object) -> tuple[str, str]:
        material = Material(**{"take": "dataset/dog", "files": 3, **changes})
        source = Source(address="https://example.org", terms="free", how="copy it", material={place: material})
        (finding,) = manifest.check(replace(small, sources={"photos": source}))
        assert set(finding.unchecked) == {
            name
            for name, field in (("contents", "sha256"), ("number of files", "files"), ("frames", "frames"))
            if getattr(material, field) is None and (field != "frames" or place.startswith("motions"))
        }
        assert manifest.wanted([finding]) == (["photos"] if finding.state in ("missing", "changed") else [])
        return finding.state, finding.found

    assert found("subjects/cat")[0] == "missing"
    state, says = found("subjects/dog")
    assert state == "unrecorded"
    assert found("subjects/dog", sha256=says.split()[-1]) == ("there", "")
    assert found("subjects/dog", sha256="0" * 64)[0] == "changed"
    assert found("subjects/dog", files=4) == ("changed", "3 files, not 4")
    assert found("motions/turn", files=1, frames=(0, 5))[0] == "unrecorded"
    assert found("motions/turn", files=1, frames=(0, 7)) == ("changed", "turn.mp4 has not the 8 frames 0 to 7")
