"""The command line: `forward-ofa`, and the demo behind `make demo`.

Modules import the heavy packages (torch, grpc) inside the commands that need
them, so that `--help` and `cost` answer at once.
"""
