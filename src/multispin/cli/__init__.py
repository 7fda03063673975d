"""The command line: one thin file per command, which checks options, makes one call, and prints a table or JSON."""
