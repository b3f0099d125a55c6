"""Programs that measure the library, a folder for each of its rooms; results/ has what they said.

Run from the root of the checkout, as `python -m benchmarks.<folder>.<program>`.
"""
