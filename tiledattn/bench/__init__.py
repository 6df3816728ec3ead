"""Benchmarks: `tiledattn bench --help`."""
