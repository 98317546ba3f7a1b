"""The plumbing that every service shares: server, guard, metrics, channels, logs."""
