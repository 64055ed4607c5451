"""Whether scores foretell returns, or follow them: aligned as of each close, held against shifted scores."""
