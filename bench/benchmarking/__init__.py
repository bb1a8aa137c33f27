"""The parts of `bench/benchmark.py`, the benchmark for users. bench/README.md is its map."""
