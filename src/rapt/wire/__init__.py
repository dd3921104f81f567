"""Formats of everything that crosses the wire, and nothing else: both sides agree on them.

`vocabulary_bundle` goes from the service to the user; `manifest` and `privatized_file` from the user to the service;
`adapter_card` back. Nothing here samples, trains, or opens a socket, and nothing pickled is read or written.
A reader refuses a schema that it does not know.
"""
