"""PyTorch modules whose tables, or whole models, live in a drive."""
