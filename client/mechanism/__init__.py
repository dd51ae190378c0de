"""Where the guarantee is made: draw, clip, sum, noise."""
