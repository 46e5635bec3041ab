"""Folders, patterns, lists and tars that a user names -> items; also one shard of the items."""
