"""The one exception whose message is written for users."""

from __future__ import annotations


class SpirlError(Exception):
    """Bad input or an unusable environment, in one message that says what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with status 2.
    """
