"""The command line: arguments in, calls on the client, text out."""

import gc

# Looking for garbage among what is imported takes a tenth of a short command's time; a long one is still kept small.
gc.set_threshold(50_000)
