"""What the user asks for: how to load, where to cut, how to draw; checked before loading."""
