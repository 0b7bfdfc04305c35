"""Reproducible benchmarks: each prints one JSON line a figure, then a table. Run them as `python -m bench.NAME`."""
