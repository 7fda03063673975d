"""The command line: one thin file per command; arguments in, one call, a table or one JSON object out."""
