"""A local endpoint with OpenAI's routes: a program changes its `base_url`, and its texts are privatized on the way.

Everything here runs on the user's machine, beside `local`. What goes on to the service is written anew from what was
understood: a field, a role or a part of a message that nobody here knows does not leave.
"""
