"""What no error may say."""

import traceback

SECRET = "zanzibarsecret"


def assert_harmless(caught):
    """One line, no full stop, and the secret nowhere in what a user or a log would see, causes included."""
    message = str(caught.value)
    assert SECRET not in message + repr(caught.value) + "".join(traceback.format_exception(caught.value))
    assert "\n" not in message
    assert not message.endswith(".")
