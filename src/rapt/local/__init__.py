"""TRUSTED: the only room that sees plain text.

It may read the user's files and write privatized ones; it never sends a plain `str` anywhere, imports no torch, and
its client takes wire values only.
"""
