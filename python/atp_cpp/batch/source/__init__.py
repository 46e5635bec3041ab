"""What a user names -> items: folders, patterns, lists, tars, and shards of them."""
