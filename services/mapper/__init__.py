"""The L block hypernetworks, behind `ports.Mapper`."""
