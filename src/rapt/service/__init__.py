"""HONEST BUT CURIOUS: the room that tunes and serves, and that must learn nothing but privatized tokens and labels.

It never imports `rapt.local`. What it knows about a text is what `rapt.wire` carries.
"""
