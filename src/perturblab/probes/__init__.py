"""Questions put to a trained network. A probe yields rows; it prints nothing and averages nothing."""
