"""Several processes: sharded parameters, ranks that must agree, launching."""
