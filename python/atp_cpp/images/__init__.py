"""From what a user brings as an image to what the vision encoder takes."""
