"""What runs Forward-OFA elsewhere, and the checks that it does (`python -m deploy.check`)."""
