"""The second moment C = E[k k^T] of ordinary keys: kept, factored, saved, and collected.

second_moment stands on factorise and files; provenance says which model a file belongs to; collect/
makes one from texts.
"""
