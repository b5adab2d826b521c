"""What can go wrong, as types. Every message is one line: what, which, and what to do.

DreamVideoError            exit code 1
├── BadInput               exit code 2   a file, a folder, an option or a prompt cannot be used
│   ├── BadConfig          a recipe or a setting
│   ├── BadMedia           a picture or a clip
│   ├── BadFile            an adapter file or a checkpoint
│   ├── MissingWeights     a base that is not on this machine
│   └── Unsupported        a method or an adapter that this base cannot carry
├── RunFailed              learning cannot go on; the last good state is kept
└── Interrupted            exit code 130  stopped by a signal, after saving
"""

__all__ = [
    "BadConfig",
    "BadFile",
    "BadInput",
    "BadMedia",
    "DreamVideoError",
    "Interrupted",
    "MissingWeights",
    "RunFailed",
    "Unsupported",
]


class DreamVideoError(Exception):
    """Any failure that the project explains; the command line prints its message and exits with `exit_code`."""

    exit_code = 1


class BadInput(DreamVideoError):
    """What was given cannot be used."""

    exit_code = 2


class BadConfig(BadInput):
    """An unknown, mistyped or contradictory setting."""


class BadMedia(BadInput):
    """A picture or a clip that cannot be read, or a folder without any."""


class BadFile(BadInput):
    """An adapter file or a checkpoint that is broken, foreign, or made for another base."""


class MissingWeights(BadInput):
    """The weights of a base are not on this machine and cannot be fetched."""


class Unsupported(BadInput):
    """A method, an adapter or an option that this base cannot carry."""


class RunFailed(DreamVideoError):
    """Learning cannot go on, for instance because the loss is not finite."""


class Interrupted(DreamVideoError):
    """A signal ended the run after its state was saved."""

    exit_code = 130
