"""Whether an error says that memory ran out. Imports nothing, so that the command line can ask."""

_SAYINGS = ("out of memory", "alloc_failed", "can't allocate memory")
"""What PyTorch, the driver, cuBLAS and the allocator of processors say of it, in lower case. Some
of their errors have no class of their own."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a GPU or beside it."""
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(saying in text for saying in _SAYINGS)
