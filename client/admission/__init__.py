"""Whom the site answers: signature, policy, consent, questions."""
