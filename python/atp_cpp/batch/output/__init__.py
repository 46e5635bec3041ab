"""Captions -> rows, and rows -> a file of rows, text files beside the images, or a table."""
