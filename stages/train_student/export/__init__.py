"""Student model directories: published, checked, loaded."""
