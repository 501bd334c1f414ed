"""Discovery, registry and manager: the only place that knows pluggy."""
