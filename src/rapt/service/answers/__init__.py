"""Answers: the rows of many tenants in common passes, from a privatized query to probabilities or to a text."""
