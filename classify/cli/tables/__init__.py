"""Results for stdout."""
