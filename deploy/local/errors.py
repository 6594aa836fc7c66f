"""What can go wrong with the local stack."""


class StackError(Exception):
    """The stack cannot do what was asked; the message says why and what to do, and is fit to be shown as it is."""
