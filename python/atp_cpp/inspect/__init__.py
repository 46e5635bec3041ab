"""What a file or a caption is, for a person to read."""
