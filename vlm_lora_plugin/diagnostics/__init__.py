"""Does a run do what it should: probes that watch it while it trains."""
