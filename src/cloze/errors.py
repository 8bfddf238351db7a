"""The exceptions that users are meant to see."""


class ClozeError(Exception):
    """A mistake that the user can mend.

    The message is one line: what is wrong, where, and how to mend it. The command line prints it
    without a traceback and exits with code 2 (`--debug` shows the traceback).
    """

    def __init__(self, message: object = ""):
        super().__init__(" ".join(str(message).splitlines()))


class SharedError(ClozeError):
    """One that ends all processes of a run at once, so that the main one alone has to show it."""
