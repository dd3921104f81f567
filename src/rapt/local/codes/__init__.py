"""Whole texts as codes: a public encoder turns a text into a vector, and what is released stands for the whole text."""
