"""The page on the user's own machine, which the gateway serves: what would leave, what did, and what can be read of it.

It holds clear text, so it stands above the trusted rooms, asks the gateway alone and is asked from loopback alone. What
it shows is computed here by the user's own setting, or measured before and kept with its lines; nothing is estimated.
"""
