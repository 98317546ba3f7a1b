"""The systems that Forward-OFA is compared with."""
