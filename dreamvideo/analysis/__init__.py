"""Questions to what was learned, one a file."""

__all__: list[str] = []
