"""Damaged files and messages by the thousand, and the processes that try them."""
