"""Who trains what: batches, quotas and the order of samples. NumPy and the standard library alone."""
