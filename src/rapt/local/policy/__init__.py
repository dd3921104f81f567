"""The entity policy: what becomes of names, numbers and addresses before a text goes through a mechanism, or leaves."""
