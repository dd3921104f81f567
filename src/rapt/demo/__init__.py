"""The main job on real text, from a file of tweets to a report; `rapt demo` runs it.

This package is an orchestration: it calls the trusted room and the audit directly, and reaches the service only over
HTTP, as a process of its own. One module a party: `data` and `trusted_side` are trusted, `service_side`
starts the service, `run` is the story, and `leak_check` searches what the service kept.
"""
