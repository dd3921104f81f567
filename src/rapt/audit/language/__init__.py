"""An attacker's knowledge of a language: how a token follows from the tokens around it."""
