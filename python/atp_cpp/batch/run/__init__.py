"""Opened images -> captions, several at once."""
