"""Benchmarks: they assert nothing, and state the machine that they ran on with every figure."""
