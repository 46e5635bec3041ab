"""The user's options: how to load, where to cut, how to draw tokens; checked before loading."""
