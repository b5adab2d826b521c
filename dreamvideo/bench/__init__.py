"""The benchmark: suites of comparisons, the runner that makes what is missing of them, and the report."""

__all__: list[str] = []
