"""Commands on students that are trained: they are judged and merged."""
