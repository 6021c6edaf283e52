"""What every speed and size claim rests on: ``python -m benchmarks NAME --json``."""
