"""The two kinds of bad news that every room may bring: refused input, and a warning worth a person's time."""


class InputError(ValueError):
    """Something from outside (a flag, a file, a model folder, a frame) was refused.

    The message is one sentence that names what was refused and says what to do; the command line prints it
    alone and exits with code 2.
    """


class MultispinWarning(UserWarning):
    """Something works, but not as well as the user would expect. Tests turn it into an error."""
