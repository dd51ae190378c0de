"""The arithmetic of ε: accountant, calibration, and the noise that a plan calls for; imports no torch."""
