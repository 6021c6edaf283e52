"""Many runs of stage two as one page: figures over seeds, curves, and how their recipes differ."""
