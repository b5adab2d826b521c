"""Scores of generated videos, one file each."""

__all__: list[str] = []
