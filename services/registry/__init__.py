"""Immutable published versions, and the labels that point at them."""
