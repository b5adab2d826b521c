"""`python -m dreamvideo`."""

from dreamvideo.cli import main

__all__: list[str] = []

main()
