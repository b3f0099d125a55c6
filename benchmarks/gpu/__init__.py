"""The program for a GPU, `python -m benchmarks.gpu`: `__main__.py` runs the parts, a file each."""
