"""One edit: seconds, memory and quality."""
