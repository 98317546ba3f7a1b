"""`make deploy-check`: a ladder of checks, from the spelling of YAML to pods that serve a device."""
