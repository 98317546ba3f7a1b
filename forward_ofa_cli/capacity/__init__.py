"""What a fleet of devices needs of the cloud: the arithmetic of `forward-ofa plan`, without torch."""
