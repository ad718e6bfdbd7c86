"""The command line: what is typed is parsed, handed to one call of the library, and what comes back is printed."""
