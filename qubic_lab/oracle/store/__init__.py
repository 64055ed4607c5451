"""The bitemporal database of prices and texts, and snapshots of what was known at an instant."""
