"""How much an entry's videos of one prompt differ from seed to seed.

A cell has one seed, so this is measured where cells meet: for a report, of the videos' files.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from dreamvideo.bench.results import Result, Store
from dreamvideo.config import plain
from dreamvideo.metrics.metric import Metric, Sample, measured
from dreamvideo.scoring import read_video

__all__ = ["diverse"]


def diverse(results: Sequence[Result], store: Store, metric: Metric) -> tuple[Result, ...]:
    """Results with one more score: `metric` of each video with its siblings, those of the same entry and prompt and
    other seeds. Where there are none it is absent."""
    found = {}
    for _, group in groupby(sorted(results, key=_siblings), key=_siblings):
        own = list(group)
        frames = [read_video(store.video(result.row.key))[0] for result in own] if len(own) > 1 else []
        for number, result in enumerate(own):
            others = [one for place, one in enumerate(frames) if place != number]
            scores = measured([metric], Sample(frames=frames[number], siblings=others)) if others else []
            found[result.row] = {score.name: score.value for score in scores}
    protocol = {"higher_is_better": metric.higher_is_better, "protocol": plain(metric.protocol)}
    return tuple(
        replace(
            result,
            cell={
                **result.cell,
                "scores": {**result.cell["scores"], **found[result.row]},
                "metrics": {**result.cell["metrics"], metric.name: protocol},
            },
        )
        for result in results
    )


def _siblings(result: Result) -> tuple[str, ...]:
    return result.row.entry, *(part or "" for part in result.row.unit)
