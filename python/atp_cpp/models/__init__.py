"""The files of a model, read and checked before the engine loads them."""
