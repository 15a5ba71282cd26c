"""The one exception that programs turn into a single line and exit status 2."""


class InputError(ValueError):
    """A mistake in what the user gave: a file, an option, a value.

    The message names the value and how to mend it. Programs print it as one line and exit with status 2;
    in Python it is an ordinary ``ValueError``.
    """


class DivergedError(InputError):
    """A training whose loss is not a finite number any more."""
