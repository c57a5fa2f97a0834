"""Sizes, costs and published numbers of the recipes."""
