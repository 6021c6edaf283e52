"""``python -m pipeline``, the same as the command ``pipeline``."""

import sys

if __name__ == "__main__":
    # Python looks in the working directory first, where a stranger's json.py may lie. It stays
    # only where this package itself comes from there.
    if not sys.flags.safe_path and __file__.rpartition("/pipeline/")[0] != sys.path[0].rstrip("/"):
        del sys.path[0]
    from pipeline.cli import main

    main(prog_name="pipeline")
