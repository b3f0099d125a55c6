"""Asking before and after."""
