"""Attacks on a tuned model: what it gives away about its texts, and what repeated releases of a text add up to.

The attackers here are not the service, which holds the privatized file anyway: they are whoever gets the adapter, or a
file with several releases of one text. Attack and score stay apart as in the rest of the audit: an attack takes what
the attacker holds or made himself, and only functions that score take the truth.
"""
