"""The frozen backbone and everything that is trained on it: values in, values out, no store and no network."""
