"""The training loop in its parts: what is trained, in what order, by what steps, and what of it survives a pause."""
