"""pgtick: the storage layer between crypto exchange feeds and PostgreSQL."""
