"""Readers of files in formats that others record: each module has the settings of a format and its reader."""
