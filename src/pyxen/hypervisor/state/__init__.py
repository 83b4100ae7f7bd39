"""A suspended guest's state as a stream, and back: see ``sections`` for the form and ``words`` for what is in it."""
