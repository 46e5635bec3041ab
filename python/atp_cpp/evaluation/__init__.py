"""Accuracy against tokens on labelled questions."""
