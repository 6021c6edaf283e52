"""Numbers to bytes and back: pure functions of arrays, which know nothing of rows or caches."""
