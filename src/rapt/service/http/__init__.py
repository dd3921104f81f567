"""The API: OpenAI's shapes and a few routes of our own, checked at the door."""
