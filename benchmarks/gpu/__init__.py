"""All that is measured on a GPU, by one command: ``python -m benchmarks gpu --out DIR``."""
