"""From a request to tokens, and from the model's logits back to words.

request -> encode (chat, lookup, target, border, ids) -> the model -> readback; contexts samples
the texts that precede a prompt.
"""
