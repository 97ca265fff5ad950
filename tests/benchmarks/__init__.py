"""Benchmarks: ratios against a floor in the same run. See ``__main__``."""
