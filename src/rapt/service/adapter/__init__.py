"""The adapter: what tuning leaves behind, as a value, as files, and as a stranger's files that are checked first."""
