"""The command line: read a recipe, check it, call a stage, show its progress."""
