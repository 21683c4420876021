"""The one error that the command shows without a traceback."""


class DeployError(Exception):
    """Something the user can mend; the text says what came, what was expected, what to do."""
