"""The one exception that means: the user can fix this; and what the system's own errors mean."""

import errno


class UserError(ValueError):
    """A mistake the user can fix.

    The message names what failed, the value, the legal values and the next step.
    The command line prints it alone and exits with status 2.
    """


def explain(error: OSError) -> str:
    """What an error of the operating system means to a user, and what to do about it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        what = "The disk is full" if error.errno == errno.ENOSPC else "The disk's quota is used up"
        where = f": {error.filename} could not be written" if error.filename else ""
        return (
            f"{what}{where}. Make room there, or choose a folder on another disk; the same command "
            "then goes on. The files that are there are whole."
        )
    if error.filename is None:
        return str(error)
    return (
        f"{error.filename}: {error.strerror}. Look whether the path is right, and may be read and "
        "written by you."
    )


def short(value: object) -> str:
    """A value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text):,} characters)"
