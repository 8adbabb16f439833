"""Faults injected into real conversions: `python -m tests.faults`, from the checkout, counts what is lost."""
