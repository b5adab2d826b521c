"""A suite, on the bases that are here, as cells with keys."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path

from dreamvideo.bench.results import Row
from dreamvideo.bench.suite import Learner, Suite
from dreamvideo.bench.work import BasePlace, Cell, Learning, digest, forget_bases, protocols
from dreamvideo.concept import Concept, read_concept
from dreamvideo.config import build
from dreamvideo.errors import MissingWeights
from dreamvideo.media import Kind
from dreamvideo.recipe import resolve
from dreamvideo.sample import SampleConfig
from dreamvideo.wording import with_article

__all__ = ["Plan", "plan"]

_KINDS: Mapping[str, Kind] = {"subject": "image", "motion": "clip"}


@dataclass(frozen=True)
class Plan:
    """All cells of a suite."""

    rows: tuple[Row, ...]
    """In the suite's order. One cell may stand in several."""
    cells: Mapping[str, Cell]
    """By key."""
    missing: Mapping[str, str]
    """Base -> why it is not here: its entries have neither rows nor cells."""


def plan(suite: Suite, *, device: str = "auto", dtype: str = "auto") -> Plan:
    """Read the concepts, resolve the recipes, and name every cell on the bases that are here.

    Raises:
        MissingWeights: no base is.
        BadInput: a concept is not here, or a recipe or a setting will not do.
    """
    build(SampleConfig, suite.sampling, where="sampling")
    own = BasePlace(
        reference=suite.base,
        image_encoder=suite.image_encoder,
        device=device,
        dtype=dtype,
        encoders=tuple(suite.encoders.items()),
    )
    rows = [(title, name) for title, comparison in suite.comparisons.items() for name in comparison.entries]
    places: dict[BasePlace, list[tuple[str, str]]] = {}
    for title, name in rows:
        other = suite.comparisons[title].entries[name].base
        place = own if other is None else replace(own, reference=other, image_encoder=None)
        places.setdefault(place, []).append((title, name))
    found: dict[tuple[str, str], list[tuple[Row, Cell]]] = {}
    missing: dict[str, str] = {}
    # Base by base: no two of them are in memory together.
    for place, named in places.items():
        try:
            found |= _planned(suite, place, named)
        except MissingWeights as error:
            missing[place.reference] = str(error)
        forget_bases()
    if not found:
        raise MissingWeights("; ".join(missing.values()))
    pairs = [pair for row in rows for pair in found.get(row, ())]
    return Plan(tuple(row for row, _ in pairs), {cell.key: cell for _, cell in pairs}, missing)


def _planned(
    suite: Suite, place: BasePlace, named: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], list[tuple[Row, Cell]]]:
    """The cells of some entries, named by comparison and entry, on their base."""
    planner = _Planner(suite, place)
    return {(title, name): list(planner.cells(title, name)) for title, name in named}


class _Planner:
    """What the cells on one base share."""

    def __init__(self, suite: Suite, place: BasePlace) -> None:
        self.suite, self.place = suite, place
        self.base, measures = place.load(), place.metrics()
        self.facts = {
            "version": version("dreamvideo"),
            "fingerprint": self.base.fingerprint,
            "base": [self.base.name, self.base.family, self.base.precision, place.image_encoder],
            "defaults": asdict(self.base.defaults),
        }
        self.measures = protocols(measures)

    def cells(self, title: str, name: str) -> Iterator[tuple[Row, Cell]]:
        """Every cell of an entry, concepts first, then prompts, then seeds."""
        comparison = self.suite.comparisons[title]
        entry = comparison.entries[name]
        for subject, motion in product(comparison.subjects or (None,), comparison.motions or (None,)):
            concepts = {
                role: self.concept(role, folder)
                for role, folder in (("subject", subject), ("motion", motion))
                if folder is not None
            }
            learned = {
                role: self.learning(
                    concepts[role], self.suite.folder / f"{role}s" / folder, self.suite.learner(learner)
                )
                for role, folder, learner in (("subject", subject, entry.subject), ("motion", motion, entry.motion))
                if learner is not None
            }
            for prompt, seed in product(comparison.prompts, comparison.seeds):
                cell = self.cell(concepts, learned, prompt, seed)
                yield (
                    Row(
                        comparison=title,
                        entry=name,
                        subject=subject,
                        motion=motion,
                        prompt=prompt,
                        seed=seed,
                        key=cell.key,
                    ),
                    cell,
                )

    def concept(self, role: str, name: str) -> Concept:
        place = f"{role}s/{name}"
        says = self.suite.material(place)
        told = {} if says is None else {"name": says.name, "word": says.word, "caption": says.caption}
        return read_concept(self.suite.folder / place, kind=_KINDS[role], **told)

    def learning(self, concept: Concept, source: Path, learner: Learner) -> Learning:
        settings = (self.suite.learning, learner.settings)
        recipe = resolve(learner.method, self.base, concept, recipe=learner.recipe, settings=settings)
        return Learning(
            key=digest({**self.facts, "recipe": recipe.digest}),
            base=self.place,
            source=source,
            method=learner.method,
            recipe=learner.recipe,
            settings=settings,
            name=concept.name,
            word=concept.word,
            caption=concept.caption,
        )

    def cell(self, concepts: Mapping[str, Concept], learned: Mapping[str, Learning], prompt: str, seed: int) -> Cell:
        words = {role: concept.name for role, concept in concepts.items()}
        if "subject" in concepts:
            words["subject"] = with_article(concepts["subject"].word or concepts["subject"].name)
        plain = prompt.format_map(words)
        if "subject" in learned:
            words["subject"] = f"a <{concepts['subject'].name}>"
        asked = prompt.format_map(words)
        pictures = concepts["subject"].examples if "subject" in concepts else ()
        clips = concepts["motion"].examples if "motion" in concepts else ()
        facts = {
            **self.facts,
            "learned": [learning.key for learning in learned.values()],
            "prompts": [asked, plain],
            "seed": seed,
            "sampling": self.suite.sampling,
            "looks": [example.digest for example in (*pictures, *clips)],
            "metrics": self.measures,
        }
        return Cell(
            key=digest(facts),
            base=self.place,
            learned=tuple(learned.values()),
            prompt=asked,
            plain=plain,
            seed=seed,
            sampling=self.suite.sampling,
            pictures=tuple(example.path for example in pictures),
            clips=tuple(example.path for example in clips),
        )
