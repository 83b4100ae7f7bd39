"""Programs for guests that need nothing there: machine code made of a small part of Python.

``language`` has what such a program may use besides integers, ``compiler`` makes an executable of one, and
``agent`` is the one there is. Why not C or a shell's script: docs/decisions/0008-the-agent-is-compiled-python.md.
"""
