"""One module an entity; each function works on the manager that get_db_manager() returns."""
