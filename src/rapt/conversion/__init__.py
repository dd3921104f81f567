"""Public weights from a foreign format into Hugging Face's layout, once, into a cache folder: numpy alone, no torch.

Both sides need the result: the service loads all of it, a user the tokenizer and the embedding table. Both convert the
same bytes with the same arithmetic, so their vocabulary hashes are equal.
"""
