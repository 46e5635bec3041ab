"""Captions -> rows, and where rows go: a file, texts beside images, a table."""
