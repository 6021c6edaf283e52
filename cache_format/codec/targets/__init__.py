"""The kinds of target that a cache may hold, a module each: a row's arrays to cells and back."""
