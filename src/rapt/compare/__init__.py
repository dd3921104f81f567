"""THE LABORATORY: the same tuning on the same files with one thing changed, until the difference has an interval.

It holds clear text and a service's model in one process, as an experimenter may and a service never can: use it on text
that you may see, to choose a setting for text that you may not.
"""
