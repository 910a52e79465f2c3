"""Rows of recipes/certify.py: what they check, the published values, and the certificate that is made of them."""
