"""Recipes: the shipped TOML files, and how a recipe is read and checked."""
