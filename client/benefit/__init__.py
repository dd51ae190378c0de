"""Did joining help this site? Its own models beside the federation's, inside its walls."""
