"""Directories without a right to write, also where the tests run as root.

What lets root pass over file modes is given up while the block runs.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_OVERRIDES_MODES = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
_CAPABILITIES_V3 = 0x20080522


@contextmanager
def bound_by_modes() -> Iterator[None]:
    """Give up, for this thread and those that it starts, what lets root pass over file modes."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_V3, 0)
    before = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice 32 bits of each
    if libc.capget(header, before):
        raise OSError(ctypes.get_errno(), "capget")
    without = (ctypes.c_uint32 * 6)(*before)
    without[0] &= ~_OVERRIDES_MODES
    if libc.capset(header, without):
        raise OSError(ctypes.get_errno(), "capset")
    try:
        yield
    finally:
        libc.capset(header, before)


@contextmanager
def read_only(root: Path) -> Iterator[None]:
    """Take away every right to write in ``root``, from root too."""
    paths = [root, *root.rglob("*")]
    modes = {path: path.stat().st_mode for path in paths}
    for path in paths:
        path.chmod(modes[path] & ~0o222)
    try:
        with bound_by_modes():
            with pytest.raises(PermissionError):
                (root / "file").touch()
            yield
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
