"""Is a student as good as its teacher? Scores of both, on a named set of benchmarks, judged."""
