"""Scores and bounds: the code that reads the truth. No attack imports this room."""
