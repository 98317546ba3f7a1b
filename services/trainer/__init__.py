"""Training as a service: jobs on Celery and Redis, behind `ports.Trainer`."""
