"""The Python SDK: typed calls on the API of xend."""
