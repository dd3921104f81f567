"""Tune and use a language-model service on private text without the text leaving the machine.

`rapt` implements RAPT (Li, Tan, Liu: Privacy-Preserving Prompt Tuning for Large Language Model Services,
arXiv 2305.06212). The rooms are the threat model: `rapt.local` is trusted and sees plain text, `rapt.service` sees what
`rapt.wire` carries, `rapt.audit` plays the adversary. Importing this package imports no torch.
"""

from rapt.version import __version__

__all__ = ["__version__"]
