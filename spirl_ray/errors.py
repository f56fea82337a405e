"""The one exception that a user is meant to read."""

from __future__ import annotations


class SpirlError(Exception):
    """Bad input or an unusable environment, said in one message that names the culprit and what to do.

    The command line prints it without a traceback and exits with status 2.
    """
