"""One edit: seconds, memory, quality, and other ways to search for v*."""
