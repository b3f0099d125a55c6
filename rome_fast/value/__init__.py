"""k* and v*: the key that the subject makes, and the value that makes the model say the target.

first_pass gives keys and what the search starts from; key averages them; search runs a step through
suffix_forward; optimize minimises the objective, with graph on a GPU; window runs many requests.
"""
