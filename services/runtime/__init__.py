"""The plumbing that every service shares: server, interceptor, metrics, channels, logs."""
