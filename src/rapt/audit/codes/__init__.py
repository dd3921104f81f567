"""Attacks on codes of whole texts, each beside the blind guess and its bound."""
