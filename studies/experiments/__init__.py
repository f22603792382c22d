"""Small measurements behind single decisions of the package."""
