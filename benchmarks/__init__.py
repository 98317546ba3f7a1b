"""Measurements that can be run again. Nothing imports them."""
