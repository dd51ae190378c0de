"""The arithmetic of ε: accountant, calibration, the noise a plan calls for; imports no torch."""
