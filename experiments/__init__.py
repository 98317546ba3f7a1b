"""Experiments: recipes with promised figures. They import everything; nothing imports them."""
