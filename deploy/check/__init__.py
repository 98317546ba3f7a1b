"""`make deploy-check`: a ladder of checks, from YAML's spelling to pods that serve a device."""
