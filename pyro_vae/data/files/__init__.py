"""Data sets from files of the user's."""
