"""What a fleet of devices needs of the cloud: arithmetic for `forward-ofa plan`, no torch."""
