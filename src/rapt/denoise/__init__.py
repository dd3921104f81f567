"""THE PROVIDER'S WORKSHOP: makes a backbone that expects noise, out of public text that it privatizes itself.

No user's text comes near it, so it spends nobody's budget. What it learns helps a service to understand privatized
text, and it would help an attacker as much: `rapt audit` has attackers who learn in the same way.
"""
