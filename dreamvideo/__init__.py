"""DreamVideo: learn a subject from pictures, a motion from clips, and make videos of any subject in any motion.

import dreamvideo as dv

base = dv.load_base("emojiworld")
dog = dv.learn(base, "photos/dog", method="dreamvideo-subject", word="dog")
turn = dv.learn(base, "clips/turn", method="dreamvideo-motion", caption="a car turning on the road")
dv.generate(base, "a <dog> turning on the road", concepts=[dog, turn], seed=3).save("dog_turns.mp4")
dv.edit(base, "clips/turn.mp4", "a bus turning on the road", caption="a car turning on the road").save("bus_turns.mp4")
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dreamvideo.adapters.file import load as load_concept
    from dreamvideo.api import edit, generate, learn, load_base, regenerate
    from dreamvideo.sample import SampleConfig
    from dreamvideo.scoring import score
    from dreamvideo.video import Video

__all__ = ["SampleConfig", "Video", "edit", "generate", "learn", "load_base", "load_concept", "regenerate", "score"]

_HOMES = {"SampleConfig": "sample", "Video": "video", "load_concept": "adapters.file", "score": "scoring"}
_NAMES = {"load_concept": "load"}


def __getattr__(name: str) -> Any:
    """Public names are imported when first used: importing the package stays light."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_HOMES.get(name, 'api')}")
    return getattr(module, _NAMES.get(name, name))
