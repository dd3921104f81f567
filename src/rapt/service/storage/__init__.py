"""State that survives a crash: one data directory and one database, and the order in which they are written."""
