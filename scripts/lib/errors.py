"""The one exception that is meant for the user's eyes."""


class UserError(Exception):
    """A mistake in input or settings: one line saying what is wrong, where, and what to do.

    Shown without a traceback. Anything else that is raised is a bug and keeps its traceback.
    """
