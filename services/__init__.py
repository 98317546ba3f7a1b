"""Forward-OFA's cloud: see ARCHITECTURE.md."""

import os

# gRPC's core writes to stderr past our logs, and below ERROR also what strangers send, byte by
# byte. It looks at this when grpc is imported, so it has to be said before.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
