"""Items -> opened images, in threads, within the memory that is allowed."""
