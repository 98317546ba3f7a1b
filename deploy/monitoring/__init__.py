"""Rules, runbook and dashboards of the services; see docs/monitoring.md."""
