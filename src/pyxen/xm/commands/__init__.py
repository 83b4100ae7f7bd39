"""One module for each sub-command, holding it as ``command``; imported when it is called."""
