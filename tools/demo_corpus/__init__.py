"""The training text of the demo model: facts, phrasings and prose, all written for it."""
