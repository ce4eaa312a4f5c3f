"""The one exception that means: the user can mend this."""


class UserError(ValueError):
    """A mistake the user can mend.

    The message names what failed, the value, the legal values and the next step.
    The command line prints it alone and exits with status 2.
    """
