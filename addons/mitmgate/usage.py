"""A user's mistake: what the command line says in one message, with exit status 2 and no traceback."""


class UserError(Exception):
    """Something that only the user can put right; the message says what is wrong, where, and what would be right.

    Raised by any layer above core while a command starts or runs; cli.main alone catches it.
    """
