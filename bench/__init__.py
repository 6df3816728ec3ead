"""Tools around the benchmark of `tiledattn.bench`: GPU runs, records, training of the small models."""
