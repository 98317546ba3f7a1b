"""Where the candidates of sessions are kept: in memory, or in Redis."""
