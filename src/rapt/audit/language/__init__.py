"""What an attacker knows about a language: how a token follows from the tokens around it."""
