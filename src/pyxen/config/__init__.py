"""A domain's description: the model, and the parsers for xm's and xl's files."""
