"""The command line: arguments in, calls on the client, text out."""
