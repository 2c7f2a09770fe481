"""pgtick beside its peers, on one server, with one table and the same rows: ``python bench/peers --help``."""
