"""The one error that is meant for the person at the keyboard."""


class UserError(Exception):
    """Something the user gave cannot be used: a file, a field or a setting.

    The message names the thing, says what was expected, and what to do. `mum` prints it as one line without a
    traceback and exits with its status.

    Attributes:
        status: Exit status of `mum`.
    """

    status = 2
