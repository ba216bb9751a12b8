"""Explanations as a page: what was asked, what was answered, and what each passage did for the answer."""
