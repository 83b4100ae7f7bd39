"""xend's HTTP side: the table of operations, what they do, and how errors, streams and consoles look on the wire."""
