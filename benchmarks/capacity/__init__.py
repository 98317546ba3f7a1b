"""What a request, a session, a version and a connection cost on this machine; and a simulation."""
