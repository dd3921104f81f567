"""What reads the truth: the scores and the bounds. No attack imports this room."""
