"""THE ADVERSARY AND THE JUDGE: how much could the service really learn?

An attack sees only `view.AdversaryView`; the truth is held by `view.Truth`, which only the scoring reads.
"""
